"""A static guess at how long each form of a DCLS layer takes, on one core: compiled, or as eager code runs it.

From shapes alone. The constants were fitted on one machine, the eager ones to ``benchmarks/speed/eager_forms.py``. They compare
forms with each other; no more is asked of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ccrewrite.families.dcls.forms import slices
from ccrewrite.families.estimate import MULTIPLY, dense_seconds, positions
from ccrewrite.gathering.places import Layout
from ccrewrite.ir.calls import CallShapes
from ccrewrite.ir.geometry import Ints

SHIFTED = 1.0e-9, 4.5e-9
"""Seconds of one sample of a tap shifted and weighted, in ``products`` and ``shifts``: forward; forward and backward."""
TAPPED = 0.3e-9, 1.0e-9
"""The same in ``taps``."""
BANDED = 0.02e-9, 0.06e-9
"""One multiplication in a band matrix's product."""

EAGER = 0.011e-9, 0.033e-9
"""Eagerly: one multiplication of a dense convolution, or of a product with what was read."""
EAGER_DEPTHWISE = {1: (0.03e-9, 0.1e-9), 2: (0.02e-9, 0.07e-9), 3: (0.3e-9, 0.9e-9)}
"""The same of a depthwise convolution, by its number of axes (``gathering/depthwise.py``; of three, torch's own)."""
PASS = {1: (0.45e-9, 2.0e-9), 2: (0.45e-9, 3.2e-9), 3: (0.45e-9, 4.0e-9)}
"""One sample copied, interpolated along one axis or added, by the number of axes."""
PLACED = 2.5e-9, 7.0e-9
"""One cell of an effective kernel, filled."""
CALL = 4e-6, 3e-5
"""One tap's operators being called."""
WAITED = 100
"""How much longer slices take on other devices in compiled models: they are waited for."""
SPARSE = 8
"""On other devices slices pay from so many cells a tap."""


def estimates(forms: Sequence[str], call: CallShapes, taps: Ints, window: Ints, training: bool) -> dict[str, float]:
    """Seconds of one compiled call in each of ``forms``, of a layer with this shape of taps and this window."""
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
        "slices": _sliced((out, inner, count), ndim, channels, samples, training)
        * (1 if call.device.type == "cpu" else WAITED),
    }
    return {form: found[form] for form in forms}


def cheapest(default: str, sharing: str, input: Tensor, weight: Tensor, layout: Layout, training: bool) -> str:
    """In eager mode: ``default``, or "slices" where that takes less time than the effective kernel on its window."""
    if not slices.takes(sharing, weight, layout, input.device):
        return default
    count, ndim = math.prod(weight.shape[2:]), len(layout.window)
    if input.device.type != "cpu":
        return "slices" if math.prod(layout.window) > SPARSE * count else default
    if default != "window":  # what moves products along every axis by a band matrix is never cheaper
        return "slices"
    batch = len(input) if input.dim() == 2 + ndim else 1
    samples = batch * math.prod(layout.outputs(input))
    out, inner = weight.shape[:2]
    sliced = _sliced((out, inner, count), ndim, input.shape[-1 - ndim], samples, training)
    multiply = (EAGER_DEPTHWISE[ndim] if inner == 1 else EAGER)[training]
    window = out * inner * math.prod(layout.window) * (samples * multiply + PLACED[training])
    return "slices" if sliced < window else default


def _sliced(weight: tuple[int, int, int], ndim: int, channels: int, samples: int, training: bool) -> float:
    """Data of so many ``channels`` read at every tap of a ``weight`` of shape ``(out, in/groups, taps)``, and their product."""
    out, inner, count = weight
    called = count * CALL[training]
    if inner == 1:
        return called + count * out * samples * (2 + ndim) * PASS[ndim][training]
    passes = count * min(channels, 2 * out) * samples * ndim * PASS[ndim][training]
    return called + passes + out * inner * count * samples * EAGER[training]
