"""Where the samples of a tensor lie in the inputs: one ``Grid``, an affine map, for each dimension. Exact, as fractions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction


@dataclass(frozen=True)
class Grid:
    """One dimension of a tensor: sample ``y`` lies at ``origin + step * y`` of an input's dimension, which has ``size``."""

    size: int
    step: Fraction = Fraction(1)
    origin: Fraction = Fraction(0)

    def then(self, step: Fraction | int, origin: Fraction | int) -> Grid:
        """The grid of samples that lie at ``origin + step * y`` of this one."""
        return replace(self, step=self.step * step, origin=self.origin + self.step * origin)

    def centre(self, samples: int) -> Fraction:
        return self.origin + self.step * Fraction(samples - 1, 2)

    @property
    def middle(self) -> Fraction:
        """The centre of the input."""
        return Fraction(self.size - 1, 2)


Merged = tuple[tuple[int, Grid | None], ...]
"""Several dimensions in one, as after a flatten: their sizes and grids."""
Grids = tuple[Grid | Merged | None, ...]
"""One entry for each dimension of a tensor; None where its samples have no place in the input (channels)."""


def then(grid: Grid | Merged | None, step: Fraction | int, origin: Fraction | int) -> Grid | None:
    """``Grid.then`` of what may be no single grid."""
    return grid.then(step, origin) if isinstance(grid, Grid) else None


def windowed(grids: Grids, rank: int, maps: Iterable[tuple[Fraction, Fraction]]) -> Grids:
    """The last dimensions through (step, origin) pairs; the others of the ``rank`` dimensions have no place any more."""
    pairs = list(maps)
    last = [then(grid, *pair) for grid, pair in zip(grids[-len(pairs) :], pairs, strict=True)]
    return (*(None for _ in range(rank - len(last))), *last)


def broadcast(shape: Sequence[int], sources: Iterable[tuple[Sequence[int], Grids]]) -> Grids:
    """Of an operation that takes sample to sample: the grids of ``sources`` (shapes and grids) aligned at the last dimension.
    Dimensions that keep their size keep their samples."""
    grids: list[Grid | Merged | None] = [None] * len(shape)
    for of_source, found in sources:
        for back, (size, grid) in enumerate(zip(reversed(of_source), reversed(found), strict=True), 1):
            if back <= len(shape) and int(shape[-back]) == int(size) and grids[-back] is None:
                grids[-back] = grid
    return tuple(grids)
