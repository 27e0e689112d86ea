"""A forecast as a picture: expected gain over added time, a point for each site; needs matplotlib (extra ``report``)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, cast

from ccrewrite.errors import InputError
from ccrewrite.ir.json_types import JsonObject
from ccrewrite.training.axes import Axes, Drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"gains": "#0f766e", "unclear": "#9a9a9a", "no-gain": "#b45309", "unconnected": "#9a9a9a"}
NAMED = 12
"""Sites with their names beside them, at most: those of the largest gains."""


def draw(forecast: JsonObject) -> Figure:
    """The picture of what ``Forecast.for_report`` gave. Raises ``InputError`` where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("the picture needs matplotlib; install it with: pip install 'ccrewrite[report]'") from error
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = cast(Axes, figure.add_subplot())
    plain = forecast["seconds"][0]
    points = [s for s in forecast["sites"] if s["gain"] is not None and s["added_seconds"] is not None]
    named = sorted(points, key=lambda s: -s["gain"]["mean"])[:NAMED]
    for site in points:
        gain, x = site["gain"], 100 * site["added_seconds"] / plain
        colour = COLOURS.get(site["code"], "#9a9a9a")
        error = [[gain["mean"] - gain["low"]], [gain["high"] - gain["mean"]]]
        axes.errorbar(x, gain["mean"], yerr=error, fmt="o", color=colour, capsize=3, markersize=6)
        if site in named:
            axes.annotate(site["name"], (x, gain["mean"]), xytext=(7, 5), textcoords="offset points", fontsize=8)
    axes.axhline(0, color="#444", linewidth=0.8)
    axes.margins(x=0.15)
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    axes.set_xlabel("added inference time, % of the original's")
    axes.set_ylabel("expected fall of the loss")
    axes.set_title(f"{forecast['verdict']}: what each site's geometry would gain and cost", fontsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if not points:
        axes.text(0.5, 0.5, "nothing was trained", transform=axes.transAxes, ha="center")
    return figure


def svg(forecast: JsonObject) -> str:
    """The picture as an SVG element, for a page."""
    figure, written = draw(forecast), io.StringIO()
    from matplotlib import rc_context  # pyright: ignore[reportUnknownVariableType]

    with rc_context({"svg.hashsalt": "forecast", "svg.fonttype": "none"}):  # the same text for the same forecast
        cast(Drawn, figure).savefig(written, format="svg", metadata={"Date": None})
    text = written.getvalue()
    return text[text.index("<svg") :]
