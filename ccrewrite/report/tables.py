"""Rows of cells as tables: GitHub Markdown, plain text, LaTeX or HTML; and numbers as cells."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from ccrewrite.ir.json_types import JsonObject

FORMATS = {"markdown": "github", "plain": "simple", "latex": "latex_booktabs", "html": "html"}
Rows = list[dict[str, str]]


def table(rows: Rows, form: str = "plain") -> str:
    """``rows`` as a table: ``form`` is "markdown", "plain", "latex" or "html".

    >>> print(table([{"layer": "conv", "time (ms)": "1.20"}], "markdown"))
    | layer   |   time (ms) |
    |---------|-------------|
    | conv    |        1.20 |
    """
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = tuple(n for n in names if n in WORDS)
    align = ["left" if n in text else "right" for n in names]
    cells = [[row.get(n, "") for n in names] for row in rows]
    return tabulate(cells, headers=names, tablefmt=FORMATS[form], colalign=align, disable_numparse=True)


WORDS = (
    *("model", "mode", "output", "dtype", "shape", "note", "site", "layer", "geometry", "became", "quantity", "verdict"),
    *("kinds", "decision", "", "group", "follows", "axes", "pinned by", "setting"),
)
"""Columns that read from the left."""


def delta(value: float, reference: float) -> str:
    """The relative change: "+1.2 %"; empty where there is nothing to relate to.

    >>> delta(101.2, 100), delta(7, 7), delta(1, 0)
    ('+1.2 %', '0.0 %', '')
    """
    if not reference:
        return ""
    change = 100 * (value - reference) / reference
    return "0.0 %" if value == reference else f"{change:+.1f} %"


def ratio(timing: JsonObject) -> str:
    """A ratio with its interval."""
    return f"{timing['ratio']:.2f} ({timing['ratio_low']:.2f} to {timing['ratio_high']:.2f})"


def error(value: float | None) -> str:
    return "differs" if value is None else "0" if value == 0 else f"{value:.1e}"


def sizes(values: Sequence[int]) -> str:
    return " x ".join(map(str, values))
