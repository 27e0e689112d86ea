"""Data read where the taps of a strided convolution are, by sums of slices along one axis after the other: for Inductor.

    at_taps[y, t] = sum_c factor_1[t_1, c_1] factor_2[t_2, c_2] ... fine[stride * y - low + c]

Data has its channels last, ``(N, *size, groups, channels)``: whatever the stride, a sample is one contiguous piece, along which
Inductor vectorises. Taps come before the channels. Eagerly the same code runs, but every term of a sum is written out.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ccrewrite.gathering.corners import unpadded


class Strided(NamedTuple):
    """One axis: coarse sample ``y`` reads the fine samples ``stride * y - low`` and following, as many as ``factor`` ``(taps,
    cells)`` has cells; ``near``: for every tap, the cells whose factor may not be zero."""

    factor: Tensor
    stride: int
    low: int
    fine: int
    coarse: int
    near: Sequence[range]


def near_taps(taps: int, spacing: int, margin: int, reach: int) -> list[range]:
    """For taps ``spacing`` apart, the first one ``margin`` cells from the window's border: the cells at most ``reach`` away.

    >>> near_taps(2, 3, 1, 2)
    [range(0, 4), range(2, 6)]
    """
    cells = spacing * (taps - 1) + 1 + 2 * margin
    places = [margin + spacing * tap for tap in range(taps)]
    return [range(max(0, place - reach), min(cells, place + reach + 1)) for place in places]


def at_taps(fine: Tensor, axes: Sequence[Strided]) -> Tensor:
    """``(N, *fine, groups, C)`` -> ``(N, *coarse, groups, *taps, C)``."""
    return stages(fine, axes)[-1]


def from_taps(coarse: Tensor, axes: Sequence[Strided]) -> Tensor:
    """The adjoint: ``(N, *coarse, groups, *taps, C)`` -> ``(N, *fine, groups, C)``."""
    for axis, along in enumerate(axes):
        coarse = _spread(coarse, 1 + axis, 2 + len(axes), along)
    return coarse


def stages(fine: Tensor, axes: Sequence[Strided]) -> list[Tensor]:
    """``fine``, and what becomes of it along one axis after the other, the last one first; at the end ``at_taps``. Each is
    written out: the next reads every sample several times."""
    found, first = [fine], 2 + len(axes)
    for axis in reversed(range(len(axes))):
        along = axes[axis]
        data = _padded(found[-1], 1 + axis, along)
        taps: list[Tensor] = []
        for tap, cells in enumerate(along.near):
            terms = [along.factor[tap, cell] * _every(data, 1 + axis, cell, along) for cell in cells]
            taps.append(functools.reduce(operator.add, terms).to(fine.dtype))
        found.append(unpadded(torch.stack(taps, first)))
    return found


def gradients(
    passed: Sequence[Tensor], coarse: Tensor, axes: Sequence[Strided], wants_fine: bool, wants_factors: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """Of ``(at_taps(fine) * coarse).sum()``: that of ``fine``, and those of the factors. ``passed`` is ``stages(fine)``."""
    found: list[Tensor] = []
    first = 2 + len(axes)
    for axis, along in enumerate(axes):
        if wants_factors:
            found.append(_factor_gradient(passed[len(axes) - 1 - axis], coarse, 1 + axis, first, along))
        if wants_fine or axis + 1 < len(axes):
            coarse = _spread(coarse, 1 + axis, first, along)
    return (coarse if wants_fine else None), found


def _factor_gradient(fine: Tensor, coarse: Tensor, dim: int, first: int, along: Strided) -> Tensor:
    data, nothing = _padded(fine, dim, along), fine.new_zeros((), dtype=along.factor.dtype)
    rows: list[Tensor] = []
    for tap, cells in enumerate(along.near):
        arrived = coarse.select(first, tap)
        sums = {cell: (arrived * _every(data, dim, cell, along)).sum() for cell in cells}
        rows += [sums[cell].to(nothing.dtype) if cell in sums else nothing for cell in range(along.factor.shape[1])]
    return torch.stack(rows).view(along.factor.shape)


def convolved(input: Tensor, mixing: Tensor, axes: Sequence[Strided], groups: int) -> Tensor:
    """The convolution with the weights ``mixing`` ``(out, taps * C/groups)``: ``(N, C, *fine)`` -> ``(N, out, *coarse)``, whose
    channels are last in memory."""
    read = at_taps(torch.unflatten(input.movedim(1, -1), -1, (groups, -1)), axes)
    return mix(read.flatten(1 + len(axes)), mixing, groups).movedim(-1, 1)


def convolved_transposed(input: Tensor, mixing: Tensor, axes: Sequence[Strided], groups: int) -> Tensor:
    """The transposed one with the weights ``mixing`` ``(groups * taps * out/groups, C/groups)``: ``(N, C, *coarse)`` ->
    ``(N, out, *fine)``, whose channels are last in memory."""
    products = mix(input.movedim(1, -1), mixing, groups)
    return from_taps(tapwise(products, axes, groups), axes).flatten(1 + len(axes)).movedim(-1, 1)


def tapwise(products: Tensor, axes: Sequence[Strided], groups: int) -> Tensor:
    """``(N, *coarse, channels)`` -> ``(N, *coarse, groups, *taps, C)``"""
    return torch.unflatten(products, -1, (groups, *(len(axis.factor) for axis in axes), -1))


def mix(data: Tensor, mixing: Tensor, groups: int) -> Tensor:
    """``(N, *size, in)`` and ``(out, in / groups)`` -> ``(N, *size, out)``."""
    out = torch.ops.aten.convolution(_picture(data), mixing[:, :, None, None], None, *_ONE_TAP, groups)
    return out.permute(0, 2, 3, 1).reshape(*data.shape[:-1], len(mixing))


def mix_backward(gradient: Tensor, data: Tensor, mixing: Tensor, groups: int, wants: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """The gradients of ``data`` and ``mixing``, as far as ``wants`` says."""
    tensors = _picture(gradient), _picture(data), mixing[:, :, None, None]
    found = torch.ops.aten.convolution_backward(*tensors, None, *_ONE_TAP, groups, [*wants, False])
    d_data = found[0].permute(0, 2, 3, 1).reshape(data.shape) if wants[0] else data
    return d_data, found[1].reshape(mixing.shape) if wants[1] else mixing


# A product over channels as a convolution with one tap. A dilation of 2, which one tap doesn't feel, makes torch take oneDNN on
# one thread too: on some processors twice as fast as its matrix product.
_ONE_TAP = ([1, 1], [0, 0], [2, 2], False, [0, 0])


def _picture(data: Tensor) -> Tensor:
    """All samples as one row of a picture, in torch's format of channels last."""
    return unpadded(data.reshape(1, 1, -1, data.shape[-1])).permute(0, 3, 1, 2)


def _spread(coarse: Tensor, dim: int, first: int, along: Strided) -> Tensor:
    """The adjoint along one axis. Fine samples that are ``stride`` apart read alike."""
    stride, low = along.stride, along.low
    count = -(-along.fine // stride)
    reads = [
        [
            (tap, (phase + low - cell) // stride)
            for tap, cells in enumerate(along.near)
            for cell in cells
            if (phase + low - cell) % stride == 0
        ]
        for phase in range(stride)
    ]
    places = [place for phase in reads for _, place in phase]
    before, after = -min(places), count + max(places) - along.coarse  # negative numbers crop
    data = F.pad(coarse, [0, 0] * (coarse.dim() - 1 - dim) + [before, after])
    phases: list[Tensor] = []
    for phase, terms in enumerate(reads):
        read = [
            along.factor[tap, phase + low - stride * place] * data.select(first, tap).narrow(dim, before + place, count)
            for tap, place in terms
        ]
        total = functools.reduce(operator.add, read) if read else data.select(first, 0).narrow(dim, 0, count) * 0
        phases.append(total.to(coarse.dtype))
    joined = phases[0] if stride == 1 else torch.stack(phases, dim + 1).flatten(dim, dim + 1).narrow(dim, 0, along.fine)
    return unpadded(joined)


def _padded(fine: Tensor, dim: int, along: Strided) -> Tensor:
    read = (along.coarse - 1) * along.stride + along.factor.shape[1]
    return F.pad(fine, [0, 0] * (fine.dim() - 1 - dim) + [along.low, read - along.low - along.fine])


def _every(padded: Tensor, dim: int, first: int, along: Strided) -> Tensor:
    """Every ``stride``-th sample, one for each coarse one."""
    span = (along.coarse - 1) * along.stride + 1
    part = padded.narrow(dim, first, span)
    return part if along.stride == 1 else part[(slice(None),) * dim + (slice(None, None, along.stride),)]
