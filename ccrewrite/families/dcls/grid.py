"""The start of every tap of a DCLS layer, and what moves it: all of a layer's geometry that is constant.

A layer made of a convolution has its taps on the dilated grid. One with ``elements`` starts all of them at the window's centre,
along the axes that move; along the others it has a tap in each cell.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ccrewrite.families.interpolation import MIN_WIDTH, Interpolation, KeepInside
from ccrewrite.families.look import readable
from ccrewrite.ir.geometry import ConvGeometry, Ints
from ccrewrite.ir.json_types import JsonObject


class Axis(NamedTuple):
    """One axis of the window: where its taps start, and which entry of ``offset`` moves them."""

    size: int
    """Cells of the window."""
    dim: int
    """The dimension of the taps (of ``weight.shape[2:]``) that runs along this axis."""
    origin: float
    """Start of the first tap, in cells."""
    step: int
    """Cells from one tap's start to the next one's, along ``dim``; 0 where all start at ``origin``."""
    row: int
    """Index into ``offset``'s first dimension; -1: this axis doesn't move."""

    @property
    def moves(self) -> bool:
        return self.row >= 0

    def start(self, taps: Sequence[int], like: Tensor) -> Tensor:
        """Start of every tap, ``(prod(taps),)``, in cells, with the dtype and device of ``like``."""
        start = _kept_start if readable([like]) else _start
        return start(self, tuple(taps), like.dtype, like.device)


def _start(axis: Axis, taps: Ints, dtype: torch.dtype, device: torch.device) -> Tensor:
    count = taps[axis.dim]
    along = torch.linspace(axis.origin, axis.origin + axis.step * (count - 1), count, dtype=dtype, device=device)
    return along.view([-1 if d == axis.dim else 1 for d in range(len(taps))]).expand(*taps).flatten()


@lru_cache(maxsize=1024)
def _kept_start(axis: Axis, taps: Ints, dtype: torch.dtype, device: torch.device) -> Tensor:
    """It depends on nothing that is learned: kept from call to call."""
    with torch.inference_mode(False), torch.no_grad():
        return _start(axis, taps, dtype, device)


class Alike(NamedTuple):
    """Axes one after the other that are of one size and all move, or one that doesn't: computed together, for on small kernels
    the number of operators is what takes time."""

    size: int
    axes: tuple[Axis, ...]

    @property
    def moves(self) -> bool:
        return self.axes[0].moves


def alike(axes: Sequence[Axis]) -> list[Alike]:
    """``axes`` in their order, those that can be computed together as one."""
    found: list[Alike] = []
    for axis in axes:
        if found and found[-1].moves and axis.moves and found[-1].size == axis.size:
            found[-1] = Alike(axis.size, (*found[-1].axes, axis))
        else:
            found.append(Alike(axis.size, (axis,)))
    return found


class Grid(NamedTuple):
    """What the positions, widths and kernel of a layer are computed with, besides its parameters."""

    axes: tuple[Axis, ...]
    interpolation: Interpolation
    width: float
    """Of every tap at the start, in samples."""

    @classmethod
    def of_taps(cls, geometry: ConvGeometry, margin: Ints, moving: Ints, interpolation: Interpolation, width: float) -> Self:
        """A tap for each weight, on the dilated grid."""
        axes = tuple(
            Axis(size=n + 2 * m, dim=a, origin=float(m), step=d, row=moving.index(a) if a in moving else -1)
            for a, (n, m, d) in enumerate(zip(geometry.extent, margin, geometry.dilation, strict=True))
        )
        return cls(axes, interpolation, width)

    @classmethod
    def of_elements(
        cls, geometry: ConvGeometry, margin: Ints, moving: Ints, interpolation: Interpolation, width: float
    ) -> Self:
        """Elements that start at the centre along the axes ``moving``, and fill the others."""
        still = [a for a in range(geometry.ndim) if a not in moving]
        axes = tuple(
            Axis(size=n + 2 * m, dim=0, origin=m + (n - 1) / 2, step=0, row=moving.index(a))
            if a in moving
            else Axis(size=n + 2 * m, dim=1 + still.index(a), origin=0.0, step=1, row=-1)
            for a, (n, m) in enumerate(zip(geometry.kernel_size, margin, strict=True))
        )
        return cls(axes, interpolation, width)

    @property
    def window(self) -> Ints:
        return tuple(axis.size for axis in self.axes)

    def positions(self, taps: Sequence[int], offset: Tensor) -> list[Tensor]:
        """Position of every tap on each axis, ``(A, B, prod(taps))`` in cells of the window, kept inside it.

        ``offset``: ``(learned axes, A, B, *taps)``, in samples.
        """
        return [along for found in positions_alike(alike(self.axes), taps, offset) for along in found.unbind()]

    def widths(self, widening: Tensor | None) -> list[Tensor | None]:
        """Width of every tap on each axis, ``(A, B, prod(taps))`` in samples, ``width * exp(widening)``; None: it has none."""
        if widening is None:
            return [None] * len(self.axes)
        found: list[Tensor | None] = []
        for widths in widths_alike(alike(self.axes), self, widening):
            found += [None] if widths is None else widths.unbind()
        return found

    def to_text(self) -> str:
        """For operators, whose arguments are tensors, numbers and text."""
        return json.dumps({**self._asdict(), "axes": [axis._asdict() for axis in self.axes]})

    @staticmethod
    @lru_cache
    def from_text(text: str) -> Grid:
        data: JsonObject = json.loads(text)
        return Grid(tuple(Axis(**axis) for axis in data["axes"]), data["interpolation"], data["width"])


def positions_alike(kinds: Sequence[Alike], taps: Sequence[int], offset: Tensor) -> list[Tensor]:
    """For each of ``kinds``, ``(axes, A, B, prod(taps))``."""
    found: list[Tensor] = []
    offset = offset.flatten(3)
    for kind in kinds:
        starts = torch.stack([axis.start(taps, offset) for axis in kind.axes])[:, None, None]
        if kind.moves:
            moved = starts + offset[kind.axes[0].row : kind.axes[-1].row + 1]
            found.append(KeepInside.apply(moved, 0, kind.size - 1))
        else:
            found.append(starts.expand(1, *offset.shape[1:]))
    return found


def widths_alike(kinds: Sequence[Alike], grid: Grid, widening: Tensor | None) -> Sequence[Tensor | None]:
    """For each of ``kinds``, ``(axes, A, B, prod(taps))``; None where an axis doesn't move."""
    if widening is None:
        return [None] * len(kinds)
    widths = KeepInside.apply(grid.width * widening.flatten(3).exp(), MIN_WIDTH[grid.interpolation], float("inf"))
    return [widths[k.axes[0].row : k.axes[-1].row + 1] if k.moves else None for k in kinds]
