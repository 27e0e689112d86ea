"""Where taps are, for reading data there in eager mode: one place for all channels (``Shared``), or one for each (``Own``).

Data is padded by one sample more than its convolution pads it, for a tap's neighbours. A shared tap is a slice of it, a view.
Taps of each channel's own are copied: one contiguous piece for each channel, by an index. Both are interpolated by one ``lerp``
along each axis.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ccrewrite.gathering.corners import Pads, pad
from ccrewrite.ir.geometry import Ints
from ccrewrite.ir.typed import integer_rows, number_rows


class Layout(NamedTuple):
    """What the calls of one convolution have in common."""

    window: Ints
    stride: Ints
    pads: Pads
    groups: int

    def outputs(self, input: Tensor) -> Ints:
        """The output's size."""
        axes = zip(input.shape[-len(self.window) :], self.pads, self.window, self.stride, strict=True)
        return tuple((n + low + high - w) // s + 1 for n, (low, high), w, s in axes)


def padded(data: Tensor, pads: Pads) -> Tensor:
    """``data`` with its convolution's padding and a sample more at both ends."""
    return pad(data, [(low + 1, high + 1) for low, high in pads])


def met_again(arrived: Tensor, sizes: Ints, layout: Layout) -> Tensor:
    """``arrived`` ``(N, C, *outputs)``, padded so that reading it at ``Places.reversed`` gives ``sizes`` samples: the
    adjoint of reading ``padded`` data of these sizes."""
    if max(layout.stride) > 1:
        spread = arrived.new_zeros(*arrived.shape[:2], *_spans(arrived, layout.stride))
        spread[(..., *(slice(None, None, step) for step in layout.stride))] = arrived
        arrived = spread
    axes = zip(sizes, arrived.shape[2:], layout.window, layout.pads, strict=True)
    return padded(arrived, [(w - 1 - low, n - m + low) for n, m, w, (low, _) in axes])


def _spans(data: Tensor, stride: Ints) -> list[int]:
    return [(n - 1) * step + 1 for n, step in zip(data.shape[2:], stride, strict=True)]


def every(data: Tensor, axis: int, first: int, count: int, step: int) -> Tensor:
    """``count`` samples along a spatial axis, ``step`` apart: a view."""
    if step == 1:
        return data.narrow(2 + axis, first, count)
    return data.narrow(2 + axis, first, (count - 1) * step + 1)[(slice(None),) * (2 + axis) + (slice(None, None, step),)]


class Tap(NamedTuple):
    """Where one tap is: the cell at or before it, per axis, and how far beyond that, in samples."""

    cells: Ints
    fractions: tuple[float, ...]


def taps_at(positions: Tensor) -> tuple[Tap, ...]:
    """The taps at ``positions`` ``(ndim, taps)``, in cells. Reads values."""
    low = positions.detach().floor()
    cells, fractions = integer_rows(low.long().T), number_rows((positions.detach().double() - low).T)
    return tuple(Tap(tuple(c), tuple(f)) for c, f in zip(cells, fractions, strict=True))


def read(data: Tensor, tap: Tap, outputs: Ints, stride: Ints, *, but: int = -1, out: Tensor | None = None) -> Tensor:
    """``padded`` data at a tap, interpolated along each axis: ``(N, C, *outputs)``; along axis ``but`` all of it. May be a
    view, or ``out``."""
    starts: list[int] = []  # not list[int](), which torch.compile can't trace; likewise below
    between: list[int] = []
    for axis, (cell, fraction, n, step) in enumerate(zip(tap.cells, tap.fractions, outputs, stride, strict=True)):
        starts.append(0)
        if axis == but:
            continue
        if not fraction:
            data = every(data, axis, cell + 1, n, step)
            continue
        if between:  # which is interpolated later: by then the others' samples are few
            before = between[-1]
            data = data.narrow(2 + before, starts[before], (outputs[before] - 1) * stride[before] + 2)
            starts[before] = 0
        starts[axis] = cell + 1
        between.append(axis)
    for axis in reversed(between):
        n, step, start = outputs[axis], stride[axis], starts[axis]
        here, beyond = every(data, axis, start, n, step), every(data, axis, start + 1, n, step)
        if out is not None and axis == between[0]:
            return torch.lerp(here, beyond, tap.fractions[axis], out=out)
        data = torch.lerp(here, beyond, tap.fractions[axis])
    return data


def give_(data: Tensor, tap: Tap, arrived: Tensor, stride: Ints) -> None:
    """The adjoint of ``read``: adds ``arrived`` ``(N, C, *outputs)`` to ``padded`` ``data`` at a tap."""
    outputs = arrived.shape[2:]
    between = [range(1 + (f > 0)) for f in tap.fractions]
    for corner in itertools.product(*between):
        near, share = data, 1.0
        for axis, (cell, f, side) in enumerate(zip(tap.cells, tap.fractions, corner, strict=True)):
            near = every(near, axis, cell + 1 + side, outputs[axis], stride[axis])
            share *= f if side else 1 - f
        near.add_(arrived, alpha=share)


class Places(ABC):
    """The places of a convolution's taps, read off ``positions`` ``(ndim, 1 or channels, taps)``, in cells of the window."""

    def __init__(self, positions: Tensor, window: Ints, stride: Ints) -> None:
        self.positions, self.window, self.stride = positions.detach(), window, stride

    @staticmethod
    def of(positions: Tensor, window: Ints, stride: Ints) -> Places:
        return (Shared if positions.shape[1] == 1 else Own)(positions, window, stride)

    @abstractmethod
    def value(self, data: Tensor, tap: int, outputs: Ints, *, out: Tensor | None = None) -> Tensor:
        """``padded`` data at a tap, interpolated: ``(N, C, *outputs)``. May be a view, or ``out``."""

    @abstractmethod
    def slopes(self, data: Tensor, tap: int, arrived: Tensor) -> Tensor:
        """``arrived`` ``(N, C, *outputs)`` times the derivatives of ``value`` along the axes, summed over all that shares the
        place: ``(ndim, 1 or channels)``. On a sample the mean of both sides; beyond the window its last sample goes on."""

    def reversed(self) -> Places:
        """The same places counted from the window's last cell, as what a convolution gives back meets them (``met_again``)."""
        last = self.positions.new_tensor([n - 1 for n in self.window])[:, None, None]
        return type(self)(last - self.positions, self.window, (1,) * len(self.window))


def met(one: Tensor, other: Tensor) -> Tensor:
    """The sum of the products of all their elements."""
    if one.is_contiguous() and other.is_contiguous():
        return torch.dot(one.view(-1), other.view(-1))
    return (one * other).sum()


class Shared(Places):
    def __init__(self, positions: Tensor, window: Ints, stride: Ints) -> None:
        super().__init__(positions, window, stride)
        self.taps = taps_at(self.positions[:, 0])

    def value(self, data: Tensor, tap: int, outputs: Ints, *, out: Tensor | None = None) -> Tensor:
        return read(data, self.taps[tap], outputs, self.stride, out=out)

    def slopes(self, data: Tensor, tap: int, arrived: Tensor) -> Tensor:
        spare = torch.empty_like(arrived, memory_format=torch.contiguous_format)
        return self.slopes_(data, [tap], [spare], [arrived])

    def slopes_(self, data: Tensor, taps: Sequence[int], spare: Sequence[Tensor], arrived: Sequence[Tensor]) -> Tensor:
        """``slopes`` of several taps, ``(ndim, taps)``. Writes over ``spare``, tensors like those that ``arrived``."""
        found = [
            [self._slope_(data, tap, axis, *each) for tap, *each in zip(taps, spare, arrived, strict=True)]
            for axis in range(len(self.window))
        ]
        return torch.stack([torch.stack(along) for along in found])

    def _slope_(self, data: Tensor, tap: int, axis: int, spare: Tensor, arrived: Tensor) -> Tensor:
        cell, size = self.taps[tap].cells[axis], self.window[axis]
        if size == 1:
            return data.new_zeros(())
        between = self.taps[tap].fractions[axis] > 0
        before, after = (cell, cell + 1) if between else (max(cell - 1, 0), min(cell + 1, size - 1))
        n, step = arrived.shape[2 + axis], self.stride[axis]
        near = data.narrow(2 + axis, before + 1, (n - 1) * step + 1 + after - before)
        along = read(near, self.taps[tap], tuple(arrived.shape[2:]), self.stride, but=axis) if data.dim() > 3 else near
        torch.sub(every(along, axis, after - before, n, step), every(along, axis, 0, n, step), out=spare)
        total = met(spare, arrived)
        return total if between else total / 2


class Own(Places):
    def __init__(self, positions: Tensor, window: Ints, stride: Ints) -> None:
        super().__init__(positions, window, stride)
        low = self.positions.floor()
        self.cells = low.long()
        fraction = self.positions - low
        self.between = [bool(along.any()) for along in fraction]
        self.fractions = fraction.view(*fraction.shape, *(1,) * len(window))

    def value(self, data: Tensor, tap: int, outputs: Ints, *, out: Tensor | None = None) -> Tensor:
        wide = [int(between) for between in self.between]
        found = self._copied(data, self.cells[:, :, tap], outputs, wide)
        return self._interpolated(found, tap, outputs, [axis for axis, w in enumerate(wide) if w], out)

    def _copied(self, data: Tensor, cells: Tensor, outputs: Ints, wide: Sequence[int]) -> Tensor:
        """``(N, C, *(size + wide))`` from ``cells`` ``(ndim, C)`` on, where the size is what ``outputs`` span."""
        for axis, (n, step, more) in enumerate(zip(outputs, self.stride, wide, strict=True)):
            data = data.unfold(2 + axis, (n - 1) * step + 1 + more, 1)
        channel = torch.arange(data.shape[1], device=data.device)
        return data[(slice(None), channel, *(cells + 1))]

    def _interpolated(self, data: Tensor, tap: int, outputs: Ints, axes: Sequence[int], out: Tensor | None = None) -> Tensor:
        for axis in range(len(outputs)):
            if axis not in axes:
                data = every(data, axis, 0, outputs[axis], self.stride[axis])
        for axis in reversed(axes):
            here, beyond = (every(data, axis, first, outputs[axis], self.stride[axis]) for first in (0, 1))
            fraction = self.fractions[axis, :, tap].to(data.dtype)
            data = torch.lerp(here, beyond, fraction.expand_as(here), out=out if axis == axes[0] else None)
        return data

    def slopes(self, data: Tensor, tap: int, arrived: Tensor) -> Tensor:
        return torch.stack([self._slope(data, tap, axis, arrived) for axis in range(len(self.window))])

    def _slope(self, data: Tensor, tap: int, axis: int, arrived: Tensor) -> Tensor:
        cells, outputs = self.cells[:, :, tap], tuple(arrived.shape[2:])
        between = self.fractions[axis, :, tap].flatten() > 0
        before = torch.where(between, cells[axis], (cells[axis] - 1).clamp_min(0))
        after = (cells[axis] + 1).clamp_max(self.window[axis] - 1)
        wide = [int(b and a != axis) for a, b in enumerate(self.between)]
        others = [a for a, w in enumerate(wide) if w]
        ends = [
            self._copied(data, torch.stack([end if a == axis else along for a, along in enumerate(cells)]), outputs, wide)
            for end in (after, before)
        ]
        change = self._interpolated(ends[0].sub_(ends[1]), tap, outputs, others)
        met = (arrived * change).sum((0, *range(2, arrived.dim())))
        return met * torch.where(between, 1.0, 0.5).to(met.dtype)
