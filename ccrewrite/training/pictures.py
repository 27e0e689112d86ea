"""Pictures of what a ``Recorder`` recorded; needs matplotlib (extra ``report``).

How a site is drawn depends on what was recorded of it (``Recording.kind``). Positions (DCLS layers): the ways of taps through
the window, from the hollow circles, where they started, to the dots. Layers whose taps move along one axis are drawn over the
steps, those with three along the last two. Profiles (CC layers): for each axis, the continuous kernels of the taps, dashed at
the start, solid now. Values (others): over the steps.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from ccrewrite.errors import InputError
from ccrewrite.families.learnable import FINENESS
from ccrewrite.ir.geometry import Ints
from ccrewrite.ir.written import replacing
from ccrewrite.training.axes import Axes, Drawn
from ccrewrite.training.observe import Recorder

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

PANELS = 12
"""At most; of more sites, those that moved most."""
SHOWN = 300
"""Taps or values of one layer; of more, those of evenly spaced channels, or evenly spaced values."""
COLUMNS, SIZE = 4, 3.0
"""Panels in a row, and a panel's width and height in inches."""

Panel = tuple[str, int | None]
"""A site, and of profiles the axis."""


def draw(recorder: Recorder, path: str | os.PathLike[str] | None = None, *, sites: Sequence[str] | None = None) -> Figure:
    """One panel for each site (of profiles for each axis), at the last step recorded; saved to ``path``.

    ``sites``: which, by name; None: at most ``PANELS`` panels, of those that moved most. Raises ``InputError`` for an unknown
    site and where matplotlib is missing.
    """
    figure, places = _figure(recorder, sites)
    _draw(recorder, figure, places, len(recorder.steps) - 1)
    if path is not None:
        with replacing(path) as file:
            cast(Drawn, figure).savefig(file, dpi=120)
    return figure


def animate(recorder: Recorder, path: str | os.PathLike[str], *, sites: Sequence[str] | None = None, fps: int = 10) -> None:
    """The same as a moving picture, one frame for each step recorded: a ``.gif``, or what else Pillow can animate."""
    figure, places = _figure(recorder, sites)
    from matplotlib.animation import FuncAnimation, PillowWriter

    _draw(recorder, figure, places, len(recorder.steps) - 1)
    figure.draw_without_rendering()
    cast(Drawn, figure).set_layout_engine("none")  # as it is now, for all frames

    def frame(record: int) -> list[Artist]:
        _draw(recorder, figure, places, record)
        return []

    moving = FuncAnimation(figure, frame, len(recorder.steps), list)  # pyright: ignore[reportArgumentType]
    with replacing(path) as file:
        moving.save(os.fspath(file), PillowWriter(fps=fps))


def _figure(recorder: Recorder, sites: Sequence[str] | None) -> tuple[Figure, dict[Panel, Axes]]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("pictures need matplotlib; install it with: pip install 'ccrewrite[report]'") from error
    panels = _panels(recorder, sites)
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure((SIZE * columns, SIZE * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    grid: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in grid[len(panels) :]:
        unused.remove()
    return figure, dict(zip(panels, grid, strict=False))


def _panels(recorder: Recorder, sites: Sequence[str] | None) -> list[Panel]:
    moved = {m.site: m.largest for m in recorder.movements()}
    for site in sites or ():
        if site not in moved:
            raise InputError(f"no site {site!r} was recorded; there are {', '.join(moved)}")
    order = list(sites) if sites is not None else sorted(moved, key=lambda site: -moved[site])
    panels: list[Panel] = []
    for site in order:
        first = recorder.recordings[site][0]
        panels += [(site, axis) for axis in range(len(first.tensors))] if first.kind == "profiles" else [(site, None)]
    chosen = panels if sites is not None else panels[:PANELS]
    return chosen if sites is not None else sorted(chosen, key=lambda panel: list(moved).index(panel[0]))


def _draw(recorder: Recorder, figure: Figure, places: dict[Panel, Axes], record: int) -> None:
    steps = recorder.steps
    for (site, axis), axes in places.items():
        found = recorder.recordings[site][: record + 1]
        axes.clear()
        if axis is not None:
            _profiles(axes, found[0].tensors[axis], found[-1].tensors[axis])
        elif found[0].kind == "positions":
            _positions(axes, torch.stack([_some(r.tensors[0]) for r in found]), found[0].window, steps)
        else:
            _over_steps(axes, torch.stack([_spaced(r.tensors) for r in found]), steps)
        axes.set_title(site if axis is None else f"{site}, axis {axis}", fontsize=9)
        axes.tick_params(labelsize=7)
    cast(Drawn, figure).suptitle(f"step {steps[record]}", fontsize=10)


def _positions(axes: Axes, ways: Tensor, window: Ints, steps: Sequence[int]) -> None:
    """``ways``: (records, axes, taps)."""
    if ways.shape[1] == 1:
        _over_steps(axes, ways[:, 0], steps)
        axes.set_ylim(-window[0] / 2, window[0] / 2)
        return
    y, x = ways[:, -2], ways[:, -1]
    axes.plot(x, y, color="tab:blue", linewidth=0.8)
    axes.plot(x[0], y[0], "o", markerfacecolor="none", color="0.6", markersize=5)
    axes.plot(x[-1], y[-1], "o", color="tab:red", markersize=2.5)
    axes.set_xlim(-window[-1] / 2, window[-1] / 2)
    axes.set_ylim(window[-2] / 2, -window[-2] / 2)  # rows go down
    axes.set_aspect("equal")
    axes.grid(linewidth=0.3)


def _over_steps(axes: Axes, values: Tensor, steps: Sequence[int]) -> None:
    """``values``: (records, values)."""
    axes.plot(steps[: len(values)], values, color="tab:blue", linewidth=0.8)
    axes.plot([0] * values.shape[1], values[0], "o", markerfacecolor="none", color="0.6", markersize=4)
    axes.set_xlim(-0.02 * steps[-1], 1.02 * max(steps[-1], 1))


def _some(positions: Tensor) -> Tensor:
    """(axes, A, B, *taps) -> (axes, taps of some channels)."""
    sets = positions.flatten(3).flatten(1, 2)
    shown = max(1, min(sets.shape[1], SHOWN // sets.shape[2]))
    chosen = torch.linspace(0, sets.shape[1] - 1, shown).round().long()
    return sets[:, chosen].flatten(1)


def _spaced(tensors: Sequence[Tensor]) -> Tensor:
    """Some of all values."""
    values = torch.cat([t.flatten() for t in tensors])
    return values[torch.linspace(0, len(values) - 1, min(len(values), SHOWN)).round().long()]


def _profiles(axes: Axes, first: Tensor, now: Tensor) -> None:
    half = (first.shape[1] - 1) / (2 * FINENESS)
    places = np.linspace(-half, half, first.shape[1])
    for tap, (start, value) in enumerate(zip(first, now, strict=True)):
        axes.plot(places, start, color="0.6", linewidth=0.8, linestyle="--", zorder=1)
        axes.plot(places, value, color=f"C{tap % 10}", linewidth=1, zorder=2)
    axes.axhline(0, color="0.8", linewidth=0.5, zorder=0)
    axes.set_ylim(-0.6, 1.6)
