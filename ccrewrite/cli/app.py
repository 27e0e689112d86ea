"""Rewrite the convolutions of PyTorch models into learnable ones that start out exactly the same."""

from __future__ import annotations

import typer

from ccrewrite.cli import export, forecasting, report, rewriting, training

# Plain help: rich would take the brackets of "[[rules]]" or "[NAME=]SHAPE" for markup.
app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__
)
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
    training.demo,
):
    app.command()(command)
