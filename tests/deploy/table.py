"""The lane's outcomes as a table: runtimes down, forms across."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

from ccrewrite.passes.fold.sites import CODES


def table(report: dict[str, Any]) -> str:
    """Markdown: in each cell how many models with that form agree, and the largest error; refusals below."""
    outcomes: list[dict[str, Any]] = report["outcomes"]
    forms = [form for form in dict.fromkeys([*CODES, "size-input"]) if any(form in o["forms"] for o in outcomes)]
    runtimes = list(dict.fromkeys(o["runtime"] for o in outcomes))
    rows = [[r, *(_cell([o for o in outcomes if o["runtime"] == r and f in o["forms"]]) for f in forms)] for r in runtimes]
    versions = ", ".join(f"{name} {v}" for name, v in report["versions"].items() if name != "ccrewrite")
    made = f"`{report['command']}`, {report['date']}, {report['device']}; {versions}."
    refused = [f"- {o['runtime']}, {o['case']}: {o['refused']}{_too(o)}" for o in outcomes if o["refused"]]
    parts = [made, tabulate(rows, headers=["", *forms], tablefmt="github", disable_numparse=True), "\n".join(refused)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _cell(outcomes: list[dict[str, Any]]) -> str:
    taken = [o["error"] for o in outcomes if o["error"] is not None]
    if not outcomes:
        return ""
    if not taken:
        return "no"
    count = f"{len(taken)} of {len(outcomes)} models" if len(taken) < len(outcomes) else f"{len(taken)} models"
    return f"{count.replace('1 models', '1 model')}, {max(taken):.0e}".replace("0e+00", "0")


def _too(outcome: dict[str, Any]) -> str:
    return "; the original too" if outcome["refused_original"] else ""


BEGIN, END = "<!-- made by make deploy -->\n", "<!-- end -->\n"


def put_between(page: str, text: str) -> str:
    """``page`` with ``text`` between the marks ``BEGIN`` and ``END``.

    >>> put_between(f"before {BEGIN}old {END}after", "new ") == f"before {BEGIN}new {END}after"
    True
    """
    head, _, rest = page.partition(BEGIN)
    return head + BEGIN + text + END + rest.partition(END)[2]
