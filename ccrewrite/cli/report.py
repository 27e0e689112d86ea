"""What ``ccrewrite compare`` and ``ccrewrite report`` do, once the command line has parsed its arguments."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from torch import nn

from ccrewrite.report.changes import Regression, regression
from ccrewrite.report.comparison import REWRITTEN, Comparison
from ccrewrite.report.measure import compare
from ccrewrite.report.show import show_comparison, show_regression


def compare_command(
    original: nn.Module,
    rewritten: nn.Module,
    example_inputs: Any,
    *,
    command: str,
    out: str | os.PathLike[str] | None = None,
    variants: Sequence[str] = (REWRITTEN,),
    html: bool = True,
    console: Console | None = None,
    **options: Any,
) -> Comparison:
    """Compare, save into ``out`` if given, and show the tables on ``console`` if given.

    ``variants`` are "rewritten" and names in ``ccrewrite.report.variants.VARIANTS``; ``options`` are further ones of
    ``compare``, and so is what it raises.
    """
    found = compare(original, rewritten, example_inputs, variants=variants, command=command, **options)
    paths = [] if out is None else found.save(out, html=html)
    if console is not None:
        show_comparison(found, console)
        for path in paths:
            console.print(f"saved {path}", markup=False, highlight=False, soft_wrap=True)
    return found


def report_command(
    before: str | os.PathLike[str], after: str | os.PathLike[str], *, console: Console | None = None
) -> Regression:
    """The regression view of two saved reports (report.json or its folder); ``found.worse`` says whether to exit with 1."""
    found = regression(Comparison.load(before), Comparison.load(after))
    if console is not None:
        show_regression(found, console)
    return found
