"""Arguments and options that several commands have."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ccrewrite.cli.arguments import options
from ccrewrite.ir.json_types import JsonObject

Factory = Annotated[str, typer.Argument(help="package.module:factory, a callable that returns the model or (model, inputs)")]
Input = Annotated[
    list[str] | None,
    typer.Option("--input", help="an example input, [NAME=]1x3x224x224[:dtype]; repeat it. Floats are normal, integers zero"),
]
Saved = Annotated[Path | None, typer.Option("--from", help="directory that `ccrewrite rewrite --out` wrote")]
Selection = dict[str, Any]
"""What ``selecting`` makes of the options that choose sites and rules."""
Tolerance = Annotated[
    float | None,
    typer.Option(help="largest difference allowed, relative to an output's largest magnitude; else by type and noise"),
]
Json = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]


def _selected(
    include: Annotated[list[str] | None, typer.Option(help="sites to consider: a name, a glob or re:REGEX; repeat it")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="sites to leave alone, written as for --include; repeat it")] = None,
    kinds: Annotated[str | None, typer.Option(help="comma-separated: dilated,strided,transposed,large,plain")] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            "--rule",
            help="NAME[:option=value,...], in order; replaces the default rules; repeat it. `ccrewrite rules` lists them",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file with include, exclude, kinds and rules: [[rules]] tables, or a [rules] table by pattern"),
    ] = None,
) -> JsonObject:
    return options(include, exclude, kinds, rule, config)


def selecting(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with the options that choose sites and rules in place of its parameter ``selection``, which gets what they
    say: keyword arguments of ``ccrewrite.plan``."""
    chosen = inspect.signature(_selected, eval_str=True).parameters
    own = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        command(**given | {"selection": _selected(**{name: given.pop(name) for name in chosen})})

    shown: list[inspect.Parameter] = []
    for name, parameter in own.parameters.items():
        shown += chosen.values() if name == "selection" else [parameter]
    described: Any = run
    described.__signature__ = own.replace(parameters=[p.replace(kind=p.KEYWORD_ONLY) for p in shown])
    described.__annotations__ = {p.name: p.annotation for p in shown}
    return run
