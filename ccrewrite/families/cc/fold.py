"""What a CC layer can be folded to besides a dense kernel: filters for its taps, beside the untouched weight."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

from torch import Tensor

from ccrewrite.families.cc.factors import factors
from ccrewrite.folded import filtered
from ccrewrite.folded.alternative import Alternative
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.operators import full_precision

if TYPE_CHECKING:
    from ccrewrite.families.cc.sampling import CCSampling

LANES = 16
"""Output channels that a convolution computes side by side, whether they are there or not."""
SAMPLE_COST = {1: 100, 2: 100, 3: 230}
"""Multiplications that a dense convolution does in the time in which a sample is filtered, by the number of axes."""
FILTERED_PAYS = 1.2
"""From how much estimated time of a dense kernel, over that of filters, these are taken."""


def alternatives(sampling: CCSampling, geometry: ConvGeometry) -> tuple[Alternative, ...]:
    """Filters for each tap, where the layer isn't depthwise; of a transposed layer along each axis, where it has one group."""
    padded = geometry.padding_mode == "zeros" or not any(sampling.margin)
    if not padded or min(geometry.in_channels, geometry.out_channels) == geometry.groups:
        return ()
    sides = zip(geometry.output_padding, geometry.stride, strict=True)
    if geometry.transposed and (geometry.groups > 1 or any(extra >= step for extra, step in sides)):
        return ()
    factors = factors_of(sampling)
    channels = geometry.in_channels * max(geometry.out_channels, LANES) // geometry.groups
    taps, cells = math.prod(geometry.kernel_size), math.prod(sampling.window)
    filters = _cost(geometry)
    make_ = functools.partial(filtered.make_, factors=factors, margin=sampling.margin)
    cost_of_dense = channels * cells / (channels * taps + filters)
    return (Alternative("filtered", cost_of_dense, FILTERED_PAYS, sampling.window, taps, make_),)


def factors_of(sampling: CCSampling) -> list[Tensor]:
    """For each axis what a tap contributes to the cells of the window, ``(taps, cells)``, as the sampling is now."""
    with full_precision(next(sampling.parameters()).device):
        found = factors(sampling.along(), sampling.kernel_size, sampling.dilation, sampling.margin, range(sampling.ndim))
    return [found[axis].detach() for axis in range(sampling.ndim)]


def _cost(geometry: ConvGeometry) -> float:
    """Of the filters, for one sample of the coarser side, in multiplications: one axis after the other."""
    g, samples = geometry, 0
    each = SAMPLE_COST[2 if g.transposed else g.ndim]
    for axis in range(g.ndim):
        samples += math.prod(g.kernel_size[: axis + 1]) * math.prod(g.stride[axis + 1 :])
    return (g.out_channels if g.transposed else g.in_channels) * samples * each
