"""``ccrewrite lower`` and ``ccrewrite aot``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import ccrewrite
from ccrewrite.cli.console import say
from ccrewrite.cli.export import rewritten_model
from ccrewrite.cli.parameters import Factory, Input, Json, Saved


class Mode(StrEnum):
    """``mode`` of ``ccrewrite.lower``."""

    inference = "inference"
    training = "training"


CompileMode = Annotated[str | None, typer.Option(metavar="MODE", help="torch.compile's: max-autotune, reduce-overhead, ...")]


def lower(
    factory: Factory,
    input: Input = None,
    saved: Saved = None,
    mode: Annotated[Mode, typer.Option(help="what the model is compiled for")] = Mode.inference,
    measured: Annotated[bool, typer.Option(help="time the forms of each site on this device; else an estimate decides")] = True,
    compile_mode: CompileMode = None,
    as_json: Json = False,
) -> None:
    """Compile the rewritten model, show in which form each site runs, and verify it. Exits with 1 if the outputs differ.

    The times stay on disk, where `ccrewrite.lower` finds them in the program that runs the model.
    """
    model, inputs = rewritten_model(factory, input, saved)
    lowered = ccrewrite.lower(model, inputs, mode=mode.value, measured=measured, compile_mode=compile_mode)
    if as_json:
        typer.echo(lowered.to_json())
    else:
        say(str(lowered))
    if not lowered.check.ok:
        raise typer.Exit(1)


def aot(
    factory: Factory,
    target: Annotated[Path, typer.Option("--out", help="a .pt2 package, for torch._inductor.aoti_load_package")],
    input: Input = None,
    saved: Saved = None,
    compile_mode: CompileMode = None,
    as_json: Json = False,
) -> None:
    """Fold the rewritten model, compile it ahead of time and verify the package. Exits with 2 if that fails."""
    model, inputs = rewritten_model(factory, input, saved)
    package = ccrewrite.aot(model, target, inputs, compile_mode=compile_mode)
    if as_json:
        typer.echo(package.to_json())
    else:
        say(f"{package}\nsaved {target}")
