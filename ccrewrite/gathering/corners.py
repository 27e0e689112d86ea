"""Linear interpolation at a tap's position by gathering: the corners of the cell that it is in, and windows to gather from.

``x[y + p] = sum_corners prod_axis (1 - f or f) x[y + floor(p) or floor(p) + 1]``, ``f = p - floor(p)``

A window view of padded data makes one flat index of all axes: element ``i`` of it starts the output-sized window that is ``i``
elements further on. Gathering from such a view is contiguous along the output.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Pads = Sequence[tuple[int, int]]
gather = torch.ops.aten._unsafe_index.Tensor
"""Indexing without a check of bounds: every index is known to be inside."""
Corner = tuple[str, ...]
"""A sample next to a position: per axis the name of one of ``Corners``' first three fields."""


class Corners(NamedTuple):
    """Where taps are between samples. All of the positions' shape, ``(ndim, ...)``, one entry per axis and tap."""

    low: Tensor
    """The sample at or before the position (int64)."""
    high: Tensor
    """The sample after it, or the window's last one (int64)."""
    below: Tensor
    """The sample before it, or the window's first one (int64): ``low`` unless the position is on a sample."""
    fraction: Tensor
    """Distance from ``low``, in samples."""
    slope: Tensor
    """Of ``x[high] - x[below]``, the part that is the derivative: on a sample the mean of both sides, 1/2; else 1."""

    @classmethod
    def of(cls, positions: Tensor, window: Sequence[int]) -> Corners:
        """``positions``: ``(ndim, ...)``, in cells, within ``[0, window - 1]`` on each axis."""
        low = positions.floor()
        high = torch.stack([(along + 1).clamp_max(n - 1) for along, n in zip(low, window, strict=True)])
        below = (positions.ceil() - 1).clamp_min(0)
        slope = torch.where(positions == low, 0.5, 1.0).to(positions.dtype)
        return cls(low.long(), high.long(), below.long(), positions - low, slope)

    def reversed(self, window: Sequence[int]) -> Corners:
        """The same samples counted from the window's end, as the backward of a convolution meets them."""
        low, high, below = (
            torch.stack([n - 1 - along for along, n in zip(samples, window, strict=True)])
            for samples in (self.low, self.high, self.below)
        )
        return self._replace(low=low, high=high, below=below)

    def value(self) -> list[tuple[Corner, Tensor]]:
        """The samples that the value at a position is made of, and their coefficients."""
        return _products([self._along(a) for a in range(len(self.low))])

    def derivative(self, axis: int) -> list[tuple[Corner, Tensor]]:
        """The same for the derivative along ``axis``."""
        factors = [self._along(a) for a in range(len(self.low))]
        factors[axis] = [("below", -self.slope[axis]), ("high", self.slope[axis])]
        return _products(factors)

    def flat_index(self, corners: Sequence[Corner], strides: Sequence[int]) -> dict[Corner, Tensor]:
        """``flat`` of each of ``corners``, kept."""
        return dict(zip(corners, stored([self.flat(corner, strides) for corner in corners]), strict=True))

    def flat(self, corner: Corner, strides: Sequence[int]) -> Tensor:
        """Flat index of a corner in data of these strides."""
        return functools.reduce(operator.add, (getattr(self, side)[a] * strides[a] for a, side in enumerate(corner)))

    def _along(self, axis: int) -> list[tuple[str, Tensor]]:
        fraction = self.fraction[axis]
        return [("low", 1 - fraction), ("high", fraction)]


def _products(factors: list[list[tuple[str, Tensor]]]) -> list[tuple[Corner, Tensor]]:
    return [
        (tuple(side for side, _ in corner), functools.reduce(operator.mul, (factor for _, factor in corner)))
        for corner in itertools.product(*factors)
    ]


def stored(columns: Sequence[Tensor]) -> Sequence[Tensor]:
    """``columns``, kept by Inductor, which would else compute them again for every output (``as_strided`` needs a buffer).

    They lie in memory side by side, so that no axis of theirs is contiguous: Inductor vectorises along the outputs then.
    """
    table = torch.stack(list(columns), -1)
    return table.as_strided(table.shape, table.stride()).unbind(-1)


def unpadded(x: Tensor) -> Tensor:
    """``x``, contiguous, with rows that Inductor leaves as long as they are.

    On a GPU it pads long ones, and a view that joins axes of them is a copy then.
    """
    x = x.contiguous()
    return x.as_strided(x.shape, x.stride())


def pad(x: Tensor, pads: Pads) -> Tensor:
    """Zeros before and after the last ``len(pads)`` axes."""
    return F.pad(x, [n for pair in reversed(pads) for n in pair])


def full(pads: Pads, window: Sequence[int]) -> list[tuple[int, int]]:
    """The padding with which the backward's windows over the output's gradient give the input's size again."""
    return [(n - 1 - low, n - 1 - high) for (low, high), n in zip(pads, window, strict=True)]


def span(window: Sequence[int], strides: Sequence[int]) -> int:
    """How many windows a flat index of them can start at."""
    return sum((n - 1) * stride for n, stride in zip(window, strides, strict=True)) + 1


def row_strides(sizes: Sequence[int]) -> list[int]:
    """Strides of contiguous data of these sizes."""
    return [math.prod(sizes[a + 1 :]) for a in range(len(sizes))]


def beside(x: Tensor, ndim: int) -> Tensor:
    """``x`` with ``ndim`` further axes of size 1."""
    return x.view(*x.shape, *(1,) * ndim)
