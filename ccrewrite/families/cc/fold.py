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

DEPTHWISE_COST = {1: 36, 2: 4, 3: 30}
"""Multiplications that a dense convolution does in the time of one of a depthwise convolution, by the number of axes."""
LANES = 16
"""Output channels that a convolution computes side by side, whether they are there or not."""
GROUPED_COST = 45
"""The same for a grouped transposed convolution along one axis."""
SAMPLE_COST = 45
"""The same for a sample that is written and read once more."""
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
    filters = _transposed_cost(sampling, geometry) if geometry.transposed else _cost(factors, geometry)
    make_ = functools.partial(filtered.make_, factors=factors, margin=sampling.margin)
    cost_of_dense = channels * cells / (channels * taps + filters)
    return (Alternative("filtered", cost_of_dense, FILTERED_PAYS, sampling.window, taps, make_),)


def factors_of(sampling: CCSampling) -> list[Tensor]:
    """For each axis what a tap contributes to the cells of the window, ``(taps, cells)``, as the sampling is now."""
    with full_precision(next(sampling.parameters()).device):
        found = factors(sampling.along(), sampling.kernel_size, sampling.dilation, sampling.margin, range(sampling.ndim))
    return [found[axis].detach() for axis in range(sampling.ndim)]


def _cost(factors: list[Tensor], geometry: ConvGeometry) -> float:
    """Of the filters, for one output sample, in multiplications."""
    taps = math.prod(geometry.kernel_size)
    support = math.prod(min(5, factor.shape[1]) for factor in factors)
    return geometry.in_channels * taps * (support * DEPTHWISE_COST[geometry.ndim] + SAMPLE_COST)


def _transposed_cost(sampling: CCSampling, geometry: ConvGeometry) -> float:
    """The same for one input sample: an axis after the other, the last one first."""
    total, left, grown = 0.0, math.prod(geometry.kernel_size), 1
    for taps, cells, step in reversed(list(zip(geometry.kernel_size, sampling.window, geometry.stride, strict=True))):
        total += geometry.out_channels * left * cells * grown * GROUPED_COST
        left, grown = left // taps, grown * step
    return total
