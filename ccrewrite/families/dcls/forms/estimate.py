"""A static guess at how long each form of a DCLS layer takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ccrewrite.families.estimate import MULTIPLY, dense_seconds, positions
from ccrewrite.ir.calls import CallShapes
from ccrewrite.ir.geometry import Ints

SHIFTED = 1.0e-9, 4.5e-9
"""Seconds of one sample of a tap shifted and weighted, in ``products`` and ``shifts``: forward; forward and backward."""
TAPPED = 0.3e-9, 1.0e-9
"""The same in ``taps``."""
BANDED = 0.02e-9, 0.06e-9
"""One multiplication in a band matrix's product."""


def estimates(forms: Sequence[str], call: CallShapes, taps: Ints, window: Ints, training: bool) -> dict[str, float]:
    """Seconds of one call on one core in each of ``forms``, of a layer with this shape of taps and this window."""
    ndim, count = len(window), math.prod(taps)
    out, inner = call.weight[:2]
    sizes, channels, stride = call.input[-ndim:], call.input[-ndim - 1], call.arguments["stride"]
    samples = positions(call, transposed=False)
    mixed = out * inner * samples * count * MULTIPLY[training]
    shifted = count * samples * SHIFTED[training]
    found = {
        "window": dense_seconds(call, window, False, training),
        "bands": mixed * math.prod(stride) + count * out * samples * sum(sizes) * BANDED[training],
        "products": mixed + shifted * out,
        "shifts": mixed * (4 / 3 if training else 1) + shifted * (channels + training * out) / (1 + training),
        "taps": channels * count * samples * TAPPED[training],
    }
    return {form: found[form] for form in forms}
