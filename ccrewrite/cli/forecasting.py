"""``ccrewrite forecast config.toml``: whether fine-tuning would gain, before anything is rewritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import ccrewrite
from ccrewrite.cli.arguments import load, made, named
from ccrewrite.cli.console import say
from ccrewrite.cli.parameters import Json
from ccrewrite.ir.json_types import JsonObject

if TYPE_CHECKING:
    from ccrewrite.forecasting.answer import Forecast
    from ccrewrite.forecasting.choose import Chosen


def forecast(
    config: Annotated[Path, typer.Argument(help="TOML file of `ccrewrite finetune`; docs/finetune.md has the keys")],
    latency: Annotated[
        float | None,
        typer.Option(help="name the sites that are worth most within so many times the original's time, e.g. 1.05"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say whether fine-tuning with learned geometry would pay, where, and what it would cost. Rewrites nothing."""
    found = forecast_command(config)
    chosen = None if latency is None else found.choose(latency=latency)
    if as_json:
        typer.echo(json.dumps(found.to_dict() | _data(chosen), indent=2))
        return
    typer.echo(str(found))
    if chosen is not None:
        say(f"within {latency:g} of the time: {', '.join(chosen) or 'none'}")
        for name, why in chosen.left_out.items():
            say(f"{name}: {why}")


def forecast_command(file: Path) -> Forecast:
    """The forecast for what ``file`` says; its keys are described in docs/finetune.md."""
    from ccrewrite.cli.files import finetune_file

    told, selection = finetune_file(file)
    seed = ccrewrite.FinetuneConfig.from_mapping(told.finetune).seed
    loss = named(told.loss, "the loss is named package.module:function")
    data = made(told.data, "data")
    model, inputs = load(told.model, told.input)
    return ccrewrite.forecast(model, inputs, data, loss, seed=seed, **selection)


def _data(chosen: Chosen | None) -> JsonObject:
    return {} if chosen is None else {"chosen": list(chosen), "left_out": dict(chosen.left_out)}
