"""`ccrewrite finetune config.toml`: rewrite a model, fine-tune it, save it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from ccrewrite import api, saving
from ccrewrite.cli.arguments import load, named
from ccrewrite.errors import InputError
from ccrewrite.training import Recorder
from ccrewrite.training.config import FinetuneConfig
from ccrewrite.training.finetune import finetune
from ccrewrite.training.loop import History

NEEDED = ("model", "data", "loss", "out")
KEYS = (*NEEDED, "input", "validation", "record_every", "rewrite", "finetune")
REWRITE = ("include", "exclude", "kinds", "rules")


def finetune_command(file: Path, *, resume: bool, console: Console) -> History | None:
    """What was done, in the main process. The keys of ``file`` are described in docs/finetune.md."""
    told = _read(file)
    config = FinetuneConfig.from_mapping(told.get("finetune", {}))
    loss = named(told["loss"], "the loss is named package.module:function")
    data = _made(told["data"], "data")
    validation = _made(told["validation"], "validation") if "validation" in told else None
    model, inputs = load(told["model"], told.get("input"))
    result = api.rewrite(model, inputs, **told.get("rewrite", {}))
    recorder = Recorder(result.model, every=told["record_every"]) if told.get("record_every") else None
    out = Path(told["out"])
    history = finetune(
        result.model,
        data,
        loss,
        validation=validation,
        original=model if config.distillation or config.feature_distillation else None,
        config=config,
        schedules=[] if recorder is None else [recorder],
        out=out,
        resume=resume,
    )
    from accelerate import PartialState

    main = PartialState().is_main_process
    if main or any(hasattr(p, "full_tensor") for p in result.model.parameters()):  # shares are gathered from all processes
        saving.save(result, out / "rewritten")
    if main:
        _report(result.model, history, recorder, out, console)
    return history if main else None


def _report(model: nn.Module, history: History, recorder: Recorder | None, out: Path, console: Console) -> None:
    said = [f"{len(history.losses)} steps, loss {history.losses[0]:.4g} to {history.losses[-1]:.4g}"]
    if history.best_epoch is not None:
        best = f"best validation loss {min(history.validations):.4g} after epoch {history.best_epoch}"
        said.append(best + (", stopped early" if history.stopped_early else ""))
    said.append(f"saved {out}/rewritten; log and checkpoint in {out}")
    if recorder is not None:
        from ccrewrite.training.pictures import animate, draw

        draw(recorder, out / "geometry.png")
        animate(recorder, out / "geometry.gif")
        said += [str(recorder), f"drawn {out}/geometry.png and {out}/geometry.gif"]
    console.print("\n".join(said), markup=False, highlight=False, soft_wrap=True)


def _read(file: Path) -> dict[str, Any]:
    try:
        told = tomllib.loads(file.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{file}: {error}") from error
    for table, known in ((told, KEYS), (told.get("rewrite", {}), REWRITE)):
        if unknown := sorted(table.keys() - set(known)):
            raise InputError(f"{file}: unknown key {', '.join(unknown)}; expected {', '.join(known)}")
    if missing := [key for key in NEEDED if key not in told]:
        raise InputError(f"{file}: {', '.join(missing)} is missing; needed are {', '.join(NEEDED)}")
    return told


def _made(reference: str, key: str) -> Any:
    value = named(reference, f"{key} is named package.module:loader")
    return value() if callable(value) else value
