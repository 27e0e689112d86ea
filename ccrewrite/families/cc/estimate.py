"""A static guess at how long each form of a CC layer takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ccrewrite.families.cc.profile import SUPPORT
from ccrewrite.families.estimate import MULTIPLY, dense_seconds
from ccrewrite.ir.calls import CallShapes
from ccrewrite.ir.geometry import ConvGeometry, Ints

READ = 0.06e-9, 0.3e-9
"""Seconds of one sample read by a filter and weighted, compiled: forward; forward and backward."""
AGAIN = 1.0, 4 / 3
"""Products with the weight over those of the plain convolution: for a transposed one's backward they are made again."""


def estimates(
    forms: Sequence[str], call: CallShapes, geometry: ConvGeometry, window: Ints, axes: Ints, training: bool
) -> dict[str, float]:
    """Seconds of one call on one core in each of ``forms``, of a layer with this window that learns along ``axes``."""
    ndim = len(window)
    g = ConvGeometry.from_call("conv_transpose" if geometry.transposed else "conv", call.weight, call.arguments)
    sizes = call.input[-ndim:]
    outputs = [max(1, n) for n in g.output_size(sizes)]
    fine, coarse = (outputs, sizes) if g.transposed else (sizes, outputs)
    batch = call.input[0] if len(call.input) == ndim + 2 else 1
    lattice, read = list(fine), 0
    for a in reversed(range(ndim)):
        lattice[a] = coarse[a] * g.kernel_size[a]
        read += math.prod(lattice) * (2 * SUPPORT + 1 if a in axes else 1)
    channels = g.out_channels if g.transposed else g.in_channels
    products = g.in_channels * g.out_channels // g.groups * math.prod(g.kernel_size) * math.prod(coarse)
    again = AGAIN[training and g.transposed]
    found = {
        "separable": dense_seconds(call, window, g.transposed, training),
        "filtered": batch * (products * MULTIPLY[training] * again + channels * read * READ[training]),
    }
    return {form: found[form] for form in forms}
