"""Which form of a DCLS convolution is the cheapest in eager mode, at the sizes of a call.

Estimates in nanoseconds of one core, from shapes alone. The constants were fitted to ``benchmarks/speed/eager_forms.py`` on one
machine. They compare forms with each other; no more is asked of them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from ccrewrite.families.dcls.forms import slices
from ccrewrite.gathering.places import Layout


class Cost(NamedTuple):
    forward: float
    step: float
    """Forward and backward."""


MULTIPLY = Cost(0.011, 0.033)
"""One multiplication of a dense convolution, or of a product with what was read."""
DEPTHWISE = {1: Cost(0.4, 1.4), 2: Cost(0.03, 0.8), 3: Cost(0.3, 0.9)}
"""The same of a depthwise convolution, by its number of axes."""
PASS = {1: Cost(0.45, 2.0), 2: Cost(0.45, 3.2), 3: Cost(0.45, 4.0)}
"""One sample copied, interpolated along one axis or added, by the number of axes."""
PLACED = Cost(2.5, 7.0)
"""One cell of an effective kernel, filled."""
SPARSE = 8
"""On other devices, from so many cells a tap."""
CALL = Cost(4e3, 3e4)
"""One tap's operators being called."""


def cheapest(default: str, sharing: str, input: Tensor, weight: Tensor, layout: Layout, training: bool) -> str:
    """``default``, or "slices" where that is estimated to take less time than the effective kernel on its window."""
    if not slices.takes(sharing, weight, layout, input.device):
        return default
    if input.device.type != "cpu":
        return "slices" if math.prod(layout.window) > SPARSE * math.prod(weight.shape[2:]) else default
    if default != "window":  # what moves products along every axis by a band matrix is never cheaper
        return "slices"
    at = int(training)
    out, inner, *taps = weight.shape
    batch = len(input) if input.dim() == 2 + len(layout.window) else 1
    outputs = batch * math.prod(layout.outputs(input))
    cells, count, ndim = math.prod(layout.window), math.prod(taps), len(layout.window)
    if inner == 1:
        multiply, passes = DEPTHWISE[ndim][at], count * out * outputs * (2 + ndim) * PASS[ndim][at]
        sliced = passes
    else:
        multiply, passes = MULTIPLY[at], count * min(input.shape[-1 - ndim], 2 * out) * outputs * ndim * PASS[ndim][at]
        sliced = passes + out * inner * count * outputs * multiply
    window = out * inner * cells * (outputs * multiply + PLACED[at])
    return "slices" if sliced + count * CALL[at] < window else default
