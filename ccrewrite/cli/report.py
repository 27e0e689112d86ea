"""``ccrewrite compare`` and ``ccrewrite report``."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import ccrewrite
from ccrewrite.cli.arguments import integers, load
from ccrewrite.cli.console import out
from ccrewrite.cli.parameters import Factory, Input, Json, Selection, selecting

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from ccrewrite.report import Comparison, Regression


@selecting
def compare(
    factory: Factory,
    out_dir: Annotated[Path, typer.Option("--out", help="directory for report.json, report.md and report.html")],
    input: Input = None,
    *,
    selection: Selection,
    variants: Annotated[
        str, typer.Option(help="comma-separated names of models to compare: rewritten,folded,...")
    ] = "rewritten",
    html: Annotated[bool, typer.Option(help="write the page as well")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="seconds instead of minutes, wider intervals")] = False,
    compiled: Annotated[
        bool | None, typer.Option(help="time torch.compile of every model, too; default: unless --quick")
    ] = None,
    batches: Annotated[str, typer.Option(help="comma-separated batch sizes to time as well")] = "",
    as_json: Json = False,
) -> None:
    """Rewrite the model and report parameters, cost, error and geometry, before against after."""
    from ccrewrite.report.environment import without_folders

    model, inputs = load(factory, input)
    result = ccrewrite.rewrite(model, inputs, **selection)
    found = compare_command(
        model,
        result.model,
        inputs,
        command=without_folders(shlex.join(["ccrewrite", *sys.argv[1:]])),
        out=out_dir,
        variants=tuple(variants.split(",")),
        html=html,
        console=None if as_json else out,
        quick=quick,
        compiled=compiled,
        batches=integers("--batches", batches),
    )
    if as_json:
        typer.echo(found.to_json())


def report(
    before: Annotated[Path, typer.Argument(help="report.json, or its directory")],
    after: Annotated[Path, typer.Argument(help="the one to compare with it")],
    as_json: Json = False,
) -> None:
    """Compare two reports. Exits with 1 if a quantity is worse."""
    found = report_command(before, after, console=None if as_json else out)
    if as_json:
        typer.echo(found.to_json())
    if found.worse:
        raise typer.Exit(1)


def compare_command(
    original: nn.Module,
    rewritten: nn.Module,
    example_inputs: object,
    *,
    command: str,
    out: str | os.PathLike[str] | None = None,
    variants: Sequence[str] = ("rewritten",),
    html: bool = True,
    console: Console | None = None,
    **options: Any,
) -> Comparison:
    """Compare, save into ``out`` if given, and show the tables on ``console`` if given.

    ``variants`` are "rewritten" and names in ``ccrewrite.report.variants.VARIANTS``; ``options`` are further ones of
    ``compare``, and so is what it raises.
    """
    from ccrewrite.report.show import show_comparison

    found = ccrewrite.compare(original, rewritten, example_inputs, variants=variants, command=command, **options)
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
    from ccrewrite.report import Comparison, regression
    from ccrewrite.report.show import show_regression

    found = regression(Comparison.load(before), Comparison.load(after))
    if console is not None:
        show_regression(found, console)
    return found
