"""``ccrewrite finetune config.toml``: rewrite a model, fine-tune it, save it; and ``ccrewrite demo``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

import ccrewrite
from ccrewrite.cli.arguments import load, made, named
from ccrewrite.cli.console import out
from ccrewrite.cli.parameters import Json

if TYPE_CHECKING:
    from torch import nn

    from ccrewrite.training import Recorder
    from ccrewrite.training.loop import History


def finetune(
    config: Annotated[Path, typer.Argument(help="TOML file; docs/finetune.md has the keys")],
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint, if there is one")] = False,
    as_json: Json = False,
) -> None:
    """Rewrite a model, fine-tune it and save it. Also under `torchrun -m ccrewrite finetune ...`."""
    history = finetune_command(config, resume=resume, console=Console(quiet=True) if as_json else out)
    if as_json and history is not None:
        typer.echo(json.dumps(asdict(history), indent=2))


def demo(as_json: Json = False) -> None:
    """Rewrite the segmentation network that ships with the package, and show before and after."""
    from ccrewrite.demo.run import run  # scikit-learn, which only the demo needs

    scores = run(Console(quiet=True) if as_json else out)
    if as_json:
        typer.echo(json.dumps({name: score._asdict() for name, score in scores.items()}, indent=2))


def finetune_command(file: Path, *, resume: bool, console: Console) -> History | None:
    """What was done, in the main process. The keys of ``file`` are described in docs/finetune.md."""
    from ccrewrite.cli.files import finetune_file
    from ccrewrite.training import Recorder

    told, selection = finetune_file(file)
    config = ccrewrite.FinetuneConfig.from_mapping(told.finetune)
    loss = named(told.loss, "the loss is named package.module:function")
    data = made(told.data, "data")
    validation = None if told.validation is None else made(told.validation, "validation")
    model, inputs = load(told.model, told.input)
    result = ccrewrite.rewrite(model, inputs, **selection)
    recorder = None if told.record_every is None else Recorder(result.model, every=told.record_every)
    folder = Path(told.out)
    history = ccrewrite.finetune(
        result.model,
        data,
        loss,
        validation=validation,
        original=model if config.distillation or config.feature_distillation else None,
        config=config,
        schedules=[] if recorder is None else [recorder],
        out=folder,
        resume=resume,
    )
    from accelerate import PartialState  # pyright: ignore[reportMissingTypeStubs]

    main = PartialState().is_main_process
    if main or any(hasattr(p, "full_tensor") for p in result.model.parameters()):  # shares are gathered from all processes
        ccrewrite.save(result, folder / "rewritten")
    if main:
        _report(result.model, history, recorder, folder, console)
    return history if main else None


def _report(model: nn.Module, history: History, recorder: Recorder | None, folder: Path, console: Console) -> None:
    said = [str(history)]
    said.append(f"saved {folder}/rewritten; log and checkpoint in {folder}")
    if recorder is not None:
        from ccrewrite.training.pictures import animate, draw

        draw(recorder, folder / "geometry.png")
        animate(recorder, folder / "geometry.gif")
        said += [str(recorder), f"drawn {folder}/geometry.png and {folder}/geometry.gif"]
    console.print("\n".join(said), markup=False, highlight=False, soft_wrap=True)
