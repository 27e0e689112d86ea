"""Reports and plans in a terminal and in a notebook: rich tables where there is somebody to look, plain text in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ccrewrite.ir.sites import Plan
from ccrewrite.report import contents, tables
from ccrewrite.report.changes import Regression
from ccrewrite.report.comparison import ORIGINAL, Comparison
from ccrewrite.report.document import made

COLOURS = {"worse": "red", "missing": "red", "better": "green", "differs": "red"}


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Parameters, costs and errors of the models, and the sites of each."""
    data = comparison.data
    sections = [
        ("Parameters", contents.parameters(comparison)),
        ("Cost", contents.costs(comparison)),
        ("Outputs against the original's", contents.outputs(comparison)),
    ]
    names = [v["name"] for v in data["variants"] if v["name"] != ORIGINAL]
    sections += [(f"Sites of {name}", contents.sites(comparison, name)) for name in names]
    _show([(title, rows) for title, rows in sections if rows], [comparison.summary(), made(data)], console)


def show_regression(found: Regression, console: Console) -> None:
    """The quantities that changed, and what makes the two reports hard to compare."""
    changed = [row for row in found.rows() if row["verdict"] != "same"]
    same = len(found.changes) - len(changed)
    verdict = f"{len(found.worse)} of {len(found.changes)} quantities are worse, {same} are the same"
    _show([("Changes", changed)] if changed else [], [*found.notes, verdict], console)


def show_plan(plan: Plan, console: Console) -> None:
    _show([("Plan", plan.rows())] if len(plan) else [], [plan.summary()], console)


def _show(sections: Sequence[tuple[str, tables.Rows]], lines: Iterable[str], console: Console) -> None:
    for title, rows in sections:
        if console.is_terminal:
            console.print(_rich(title, rows))
        else:
            console.print(f"{title}\n\n{tables.table(rows)}\n", markup=False, highlight=False, soft_wrap=True)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _rich(title: str, rows: tables.Rows) -> Table:
    found = Table(title=title, title_justify="left")
    for name in rows[0]:
        found.add_column(name, justify="left" if name in tables.WORDS else "right", overflow="fold")
    for row in rows:
        found.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in row.values()))  # not markup: paths have brackets
    return found
