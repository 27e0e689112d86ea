"""Where the taps of a DCLS layer are: read, kept inside the window, rounded to samples, recorded and pictured."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.families.dcls.grid import Grid
from ccrewrite.families.interpolation import MIN_WIDTH
from ccrewrite.families.learnable import Recording, clamp_between_, rounded
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.geometry import Ints
from ccrewrite.ir.json_types import JsonObject
from ccrewrite.ir.typed import integers

SHOWN_POSITIONS = 200
"""Most positions that a picture lists; its statistics are of all."""


class TapPositions(Sampling):
    """The positions of a DCLS sampling, which makes the attributes."""

    parameter_group = "positions"

    offset: nn.Parameter
    """``(len(axes), A, B, *taps)``, in samples."""
    widening: nn.Parameter | None
    """Of the same shape: the logarithm of each tap's width over ``width``; None for "linear"."""
    axes: Ints
    grid: Grid

    def cells(self) -> list[Tensor]:
        """Where the taps are on each axis, ``(A, B, prod(taps))`` in samples from the window's first cell, inside it."""
        return self.grid.positions(self.taps, self.offset)

    def positions(self) -> Tensor:
        """Where the taps are: ``(len(axes), A, B, *taps)``, in samples from the window's centre, inside the window."""
        found = self.cells()
        return torch.stack([found[a] - (self.window[a] - 1) / 2 for a in self.axes]).view(self.offset.shape)

    def widths(self) -> Tensor | None:
        """Width of every tap, of ``offset``'s shape, in samples; None for "linear"."""
        found = self.grid.widths(self.widening)
        return None if self.widening is None else torch.stack([w for w in found if w is not None]).view(self.offset.shape)

    def clamp_(self) -> None:
        placed = [self.grid.axes[axis] for axis in self.axes]
        starts = torch.stack([axis.start(self.taps, self.offset) for axis in placed])
        ends = starts.new_tensor([axis.size - 1 for axis in placed])[:, None] - starts
        shape = (len(placed), 1, 1, *self.taps)
        clamp_between_(self.offset, -starts.view(shape), ends.view(shape))
        if self.widening is not None:
            narrowest = math.log(MIN_WIDTH[self.grid.interpolation] / self.grid.width)
            clamp_between_(self.widening, starts.new_tensor(narrowest), starts.new_tensor(math.inf))

    @torch.no_grad()
    def snap_(self, tol: float, *, width: float | None = None) -> float:
        moved, cells = 0.0, self.cells()
        for offset, axis in zip(self.offset, self.axes, strict=True):
            away = cells[axis].round() - cells[axis]
            near = away.abs() <= tol
            placed = torch.where(near, cells[axis].round(), cells[axis])
            offset.copy_((placed - self.grid.axes[axis].start(self.taps, self.offset)).view(offset.shape))
            moved = max(moved, float((away.abs() * near).max()))
        if width is not None and self.widening is not None:
            self.widening.fill_(math.log(max(width, MIN_WIDTH[self.grid.interpolation]) / self.grid.width))
        return moved

    def recording(self) -> Recording:
        return Recording("positions", [self.positions().detach()], tuple(self.window[a] for a in self.axes))

    def picture(self) -> JsonObject:
        cells = torch.stack(self.cells()).detach().double()  # (axes, A, B, taps)
        starts = torch.stack([axis.start(self.taps, cells) for axis in self.grid.axes])[:, None, None].expand_as(cells)
        centre = torch.tensor([(n - 1) / 2 for n in self.window], dtype=cells.dtype, device=cells.device)
        offset = cells - starts
        distance = offset.square().sum(0).sqrt()
        drift = [
            {"axis": axis, "mean": rounded(o.mean()), "std": rounded(o.std(correction=0)), "max_abs": rounded(o.abs().max())}
            for axis, o in enumerate(offset)
        ]
        now, start = (v.flatten(1, 2) for v in (cells, starts))  # (axes, sets, taps)
        sets, taps = now.shape[1:]
        shown = max(1, min(sets, SHOWN_POSITIONS // taps))
        chosen = torch.linspace(0, sets - 1, shown, device=cells.device).round().long()
        now, start = ((v[:, chosen] - centre[:, None, None]).flatten(1).T for v in (now, start))
        return {
            "drift": drift,
            "distance": {
                "mean": rounded(distance.mean()),
                "median": rounded(distance.median()),
                "max": rounded(distance.max()),
            },
            "positions": {
                "sets": sets,
                "taps": taps,
                "shown_sets": integers(chosen),
                "start": rounded(start),
                "now": rounded(now),
            },
        }


def check_reach(owner: str, reach: int) -> None:
    """Raises ``InputError`` where ``reach`` is negative."""
    if reach < 0:
        raise InputError(f"{owner}: reach must be at least 0 samples, found {reach}")
