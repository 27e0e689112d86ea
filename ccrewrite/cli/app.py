"""Rewrite the convolutions of PyTorch models into learnable ones that start out exactly the same."""

from __future__ import annotations

from typing import Annotated

import typer

import ccrewrite
from ccrewrite.cli import compiling, export, forecasting, health, report, rewriting, training
from ccrewrite.cli.console import log_to_stderr, reported

# Plain help: rich would take the brackets of "[[rules]]" or "[NAME=]SHAPE" for markup.
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=__doc__,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"ccrewrite {ccrewrite.__version__}")
        raise typer.Exit


@app.callback()
def main(
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="say on stderr what is done (-v), and in detail (-vv)")
    ] = 0,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    log_to_stderr(verbose)


main.__doc__ = __doc__

for command in (
    rewriting.plan,
    rewriting.rewrite,
    forecasting.forecast,
    training.finetune,
    report.compare,
    report.report,
    export.fold,
    export.export,
    export.rewrite_onnx,
    compiling.lower,
    compiling.aot,
    rewriting.rules,
    health.doctor,
    health.env,
    training.demo,
):
    app.command()(reported()(command))
