"""Convolutions whose kernel is, along each axis and for every tap, one filter for all channels: sums of slices, in eager mode.

    coarse(y) = sum_t weight_t . (filter_t * fine)(stride * y - low)        filter_t[c] = factor_1[t_1, c_1] factor_2[t_2, c_2]

Beside a window of so many cells a filter is a few slices, each scaled and added where it lies; all taps together are then one
product over channels with the untouched weight. Torch's depthwise and grouped convolutions of so few channels each are slower.
``Bank`` computes that, its adjoint (a transposed convolution) and the gradients, in blocks of rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ccrewrite.gathering.mixing import mix, mix_backward
from ccrewrite.gathering.strided import Strided
from ccrewrite.ir.typed import number_rows

BLOCK_BYTES = 4 * 2**20
"""So much of the filtered data is there at a time."""


class Met(NamedTuple):
    """Gradients: of what is finer and coarser (None where not asked for), of the mixing and of the factors."""

    fine: Tensor | None
    coarse: Tensor | None
    mixing: Tensor
    factors: list[Tensor]


class Bank:
    """``mixing`` is ``(coarser channels, finer channels / groups * taps)``, data ``(N, channels, *size)``. ``within``: how many
    of a group's finer channels lie within the taps there, 1 or all."""

    def __init__(self, axes: Sequence[Strided], mixing: Tensor, groups: int = 1, within: int = 1) -> None:
        self.axes, self.mixing, self.groups, self.within = list(axes), mixing, groups, within
        self.coarse = [axis.coarse for axis in axes]

    def coarser(self, fine: Tensor) -> Tensor:
        """``(N, C, *fine)`` -> ``(N, C', *coarse)``."""
        found = [self._mixed(self._filtered(fine, rows)[-1]) for rows in self._blocks(len(fine))]
        return found[0] if len(found) == 1 else torch.cat(found, 2)

    def finer(self, coarse: Tensor) -> Tensor:
        """The adjoint, of one group: ``(N, C', *coarse)`` -> ``(N, C, *fine)``."""
        channels = self.mixing.shape[1] // math.prod(len(axis.factor) for axis in self.axes)
        out = coarse.new_zeros(len(coarse), channels, *(axis.fine for axis in self.axes))
        mixing = self.mixing.T.contiguous()[:, :, None]
        for rows in self._blocks(len(coarse)):
            met = coarse[:, :, rows.start : rows.stop]
            taps = mix(met.flatten(2), mixing, 1).view(len(met), -1, *met.shape[2:])
            self._add_(out, self._together(taps, 1), rows)
        return out

    def meet(self, fine: Tensor, coarse: Tensor, *, wants_fine: bool, wants_coarse: bool) -> Met:
        """The gradients of ``(coarser(fine) * coarse).sum()``."""
        mixing = self.mixing[:, :, None]
        d_fine, d_coarse = torch.zeros_like(fine) if wants_fine else None, list[Tensor]()
        d_mixing = torch.zeros_like(self.mixing)
        d_factors = [torch.zeros_like(axis.factor) for axis in self.axes]
        for rows in self._blocks(len(fine)):
            met, filtered = coarse[:, :, rows.start : rows.stop], self._filtered(fine, rows)
            if wants_coarse:
                d_coarse.append(self._mixed(filtered[-1]))
            taps, of_block = mix_backward(met.flatten(2), filtered[-1].flatten(2), mixing, self.groups, True)
            d_mixing += of_block[:, :, 0]
            taps = taps.view(filtered[-1].shape)
            for axis in reversed(range(len(self.axes))):
                along = self.axes[axis]
                low = along.low if axis else along.low - along.stride * rows.start
                correlate_(d_factors[axis], filtered[axis], taps, axis, along, low, self.within)
                if axis:
                    taps = together(taps, axis, along.factor, along.stride, along.low, along.fine, self.within)
            if d_fine is not None:
                self._add_(d_fine, taps, rows)
        joined = torch.cat(d_coarse, 2) if wants_coarse else None
        return Met(d_fine, joined, d_mixing, d_factors)

    def _blocks(self, batch: int) -> Iterator[range]:
        """Rows of what is coarser."""
        row = batch * self.mixing.shape[1] * self.groups * math.prod(self.coarse[1:]) * self.mixing.element_size()
        count = min(self.coarse[0], -(-row * self.coarse[0] // BLOCK_BYTES))
        rows = -(-self.coarse[0] // max(1, count))
        return (range(start, min(start + rows, self.coarse[0])) for start in range(0, self.coarse[0], rows))

    def _filtered(self, fine: Tensor, rows: range) -> list[Tensor]:
        """What is finer, and what becomes of it along one axis after the other; channels ``(C, taps)``."""
        first = self.axes[0]
        found = [
            fine,
            apart(fine, 0, first.factor, first.stride, first.low - first.stride * rows.start, len(rows), self.within),
        ]
        for axis, along in enumerate(self.axes[1:], 1):
            found.append(apart(found[-1], axis, along.factor, along.stride, along.low, along.coarse, self.within))
        return found

    def _mixed(self, filtered: Tensor) -> Tensor:
        return mix(filtered.flatten(2), self.mixing[:, :, None], self.groups).view(len(filtered), -1, *filtered.shape[2:])

    def _together(self, taps: Tensor, first: int) -> Tensor:
        for axis in reversed(range(first, len(self.axes))):
            along = self.axes[axis]
            taps = together(taps, axis, along.factor, along.stride, along.low, along.fine, self.within)
        return taps

    def _add_(self, total: Tensor, taps: Tensor, rows: range) -> None:
        """``total`` plus what becomes of these rows of the taps along the first axis."""
        along = self.axes[0]
        start = min(max(0, along.stride * rows.start - along.low), along.fine)
        stop = min(along.fine, along.stride * (rows.stop - 1) - along.low + along.factor.shape[1])
        if start < stop:
            low = along.low - along.stride * rows.start + start
            total[:, :, start:stop] += together(taps, 0, along.factor, along.stride, low, stop - start, self.within)


def apart(data: Tensor, axis: int, factor: Tensor, stride: int, low: int, outputs: int, within: int) -> Tensor:
    """``(N, A * within, *size)`` filtered along an axis by every tap: ``(N, A * taps * within, *size)``, ``outputs`` there."""
    dim, data = 3 + axis, torch.unflatten(data, 1, (-1, within))
    phases = [data] if stride == 1 else [_every(data, dim, phase, stride).contiguous() for phase in range(stride)]
    out = data.new_zeros(*data.shape[:2], len(factor), *data.shape[2:dim], outputs, *data.shape[dim + 1 :])
    for target, cells in zip(out.unbind(2), number_rows(factor), strict=True):
        for cell, value in enumerate(cells):
            start, stop, begin = _met(cell - low, stride, data.shape[dim], outputs)
            if value and start < stop:
                read = phases[begin % stride].narrow(dim, begin // stride, stop - start)
                target.narrow(dim, start, stop - start).add_(read, alpha=value)
    return out.flatten(1, 3)


def together(data: Tensor, axis: int, factor: Tensor, stride: int, low: int, size: int, within: int) -> Tensor:
    """The adjoint: ``(N, A * taps * within, *size)`` -> ``(N, A * within, *size)`` with ``size`` samples along the axis."""
    dim = 3 + axis
    parts = torch.unflatten(data, 1, (-1, len(factor), within)).unbind(2)
    shape = list(parts[0].shape)
    shape[dim] = -(-size // stride)
    totals = [data.new_zeros(shape) for _ in range(stride)]
    for part, cells in zip(parts, number_rows(factor), strict=True):
        for cell, value in enumerate(cells):
            start, stop, begin = _met(cell - low, stride, size, part.shape[dim])
            if value and start < stop:
                target = totals[begin % stride].narrow(dim, begin // stride, stop - start)
                target.add_(part.narrow(dim, start, stop - start), alpha=value)
    if stride == 1:
        return totals[0].flatten(1, 2)
    shape[dim] = size
    out = data.new_empty(shape)
    for phase, total in enumerate(totals[:size]):
        every = _every(out, dim, phase, stride)
        every.copy_(total.narrow(dim, 0, every.shape[dim]))
    return out.flatten(1, 2)


def correlate_(gradient: Tensor, data: Tensor, taps: Tensor, axis: int, along: Strided, low: int, within: int) -> None:
    """Adds the gradient of an axis's factor, from those of ``apart``'s results."""
    dim, stride, data = 3 + axis, along.stride, torch.unflatten(data, 1, (-1, within))
    phases = [data] if stride == 1 else [_every(data, dim, phase, stride).contiguous() for phase in range(stride)]
    parts = torch.unflatten(taps, 1, (-1, len(along.factor), within)).unbind(2)
    for tap, (part, cells) in enumerate(zip(parts, along.near, strict=True)):
        for cell in cells:
            start, stop, begin = _met(cell - low, stride, data.shape[dim], part.shape[dim])
            if start < stop:
                read = phases[begin % stride].narrow(dim, begin // stride, stop - start)
                gradient[tap, cell] += (read * part.narrow(dim, start, stop - start)).sum()


def _met(offset: int, stride: int, size: int, outputs: int) -> tuple[int, int, int]:
    """Where output ``y`` reads sample ``stride * y + offset``: the first output that meets one of ``size`` samples, the one
    after the last, and the first sample."""
    start, stop = max(0, -(offset // stride)), min(outputs, (size - 1 - offset) // stride + 1)
    return start, stop, stride * start + offset


def _every(data: Tensor, dim: int, first: int, step: int) -> Tensor:
    return data[(*(slice(None),) * dim, slice(first, None, step))]
