"""What a DCLS layer can be folded to besides a dense kernel."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ccrewrite.folded import gathered, shifted, sparse
from ccrewrite.folded.alternative import Alternative
from ccrewrite.folded.cuts import cut_out, used
from ccrewrite.folded.shifted import ShiftedSampling
from ccrewrite.gathering.places import Tap, taps_at
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.torch_private import ConvNd

if TYPE_CHECKING:
    from ccrewrite.families.dcls.sampling import DclsSampling

READ_COST = 40
"""Multiplications that a convolution does in the time in which a sample is read and interpolated along one axis."""
GATHER_COST = 75
"""Multiplications that a dense convolution does in the time of gathering, weighting and adding one sample."""
APART_PAYS = 1.25
"""From how much estimated time of a dense kernel, over that of slices at the taps, these are taken."""
GATHERED_PAYS = 1.5
"""The same of gathered taps."""
SPARSE_PAYS = {1: 1.0, 2: 3.0, 3: 3.0}
"""From how many cells of a dense kernel for each one visited they are visited alone, by the number of axes, where nothing is
measured. Between 1.5 and 3, large maps gain and small ones lose. Torch's own depthwise convolutions of one axis are slow."""


def alternatives(sampling: DclsSampling, geometry: ConvGeometry) -> tuple[Alternative, ...]:
    """Taps that lie far apart stay apart where the input channels share their positions. Of a depthwise kernel, the cells that
    aren't zero can be visited alone."""
    padded = geometry.padding_mode == "zeros" or not any(sampling.margin)
    if geometry.groups == 1 and sampling.interpolation == "linear" and padded:
        if sampling.sets == (1, 1):
            return (_shifted(sampling, geometry),)
        if sampling.sets == (geometry.out_channels, 1):
            return (_gathered(sampling, geometry),)
    if geometry.depthwise and not any(s > 1 for s in geometry.stride):
        return (_sparse(sampling),)
    return ()


def _shifted(sampling: DclsSampling, geometry: ConvGeometry) -> Alternative:
    taps, kernel = taps_of(sampling), _used_cells(sampling).shape[1:]
    samples = sum(2 ** sum(fraction > 0 for fraction in tap.fractions) for tap in taps)
    channels = geometry.in_channels * geometry.out_channels
    narrow = min(geometry.in_channels, geometry.out_channels)
    apart = channels * len(taps) + READ_COST * narrow * len(taps) * len(sampling.axes)
    make_ = functools.partial(shifted.make_, taps=taps, window=sampling.window, margin=sampling.margin)
    return Alternative("shifted", channels * kernel.numel() / apart, APART_PAYS, tuple(kernel), samples, make_)


def _gathered(sampling: DclsSampling, geometry: ConvGeometry) -> Alternative:
    cells, positions = _used_cells(sampling), torch.stack([along[:, 0] for along in sampling.cells()])
    kernel, inner = cells.shape[1:], geometry.in_channels
    apart = math.prod(sampling.taps) * (inner + GATHER_COST * 2**geometry.ndim)
    make_ = functools.partial(gathered.make_, positions=positions, window=sampling.window, margin=sampling.margin)
    samples = int(cells.sum()) // len(cells)
    return Alternative("gathered", inner * kernel.numel() / apart, GATHERED_PAYS, tuple(kernel), samples, make_)


def _sparse(sampling: DclsSampling) -> Alternative:
    cells = _used_cells(sampling)
    visited, kernel = int(cells.flatten(1).sum(1).amax()), cells.shape[1:]

    def make_(conv: ConvNd) -> str:
        return sparse.make_(conv, sampling.kernel(conv.weight), sampling.margin)

    return Alternative("sparse", kernel.numel() / visited, SPARSE_PAYS[sampling.ndim], tuple(kernel), visited, make_)


def _used_cells(sampling: DclsSampling) -> Tensor:
    """Where the smallest kernel that a layer can be folded to isn't zero, ``(positions' sets, *kernel)``. Positions tell that,
    whatever the weights."""
    like = sampling.offset
    kernel = sampling.kernel(torch.ones(*sampling.sets, *sampling.taps, dtype=like.dtype, device=like.device))
    return used(cut_out(kernel, sampling.margin)[0], sampling.ndim)


def taps_of(sampling: DclsSampling) -> tuple[Tap, ...]:
    """Where each tap of a linear, shared sampling lies now."""
    return taps_at(torch.stack([cells.flatten() for cells in sampling.cells()]))


def fixed(sampling: DclsSampling) -> nn.Module | None:
    """What evaluates calls whose weight is known at run time only, where a dense kernel would be mostly zeros."""
    geometry = sampling.geometry
    if geometry.groups > 1 or sampling.interpolation != "linear" or sampling.sets != (1, 1):
        return None
    if not _shifted(sampling, geometry).pays:
        return None
    return ShiftedSampling(taps_of(sampling), sampling.window, sampling.margin, sampling.kernel_size, sampling.dilation)
