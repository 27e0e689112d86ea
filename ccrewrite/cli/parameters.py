"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Factory = Annotated[str, typer.Argument(help="package.module:factory, a callable that returns the model or (model, inputs)")]
Input = Annotated[
    list[str] | None,
    typer.Option("--input", help="an example input, [NAME=]1x3x224x224[:dtype]; repeat it. Floats are normal, integers zero"),
]
Include = Annotated[list[str] | None, typer.Option(help="sites to consider: a name, a glob or re:REGEX; repeat it")]
Exclude = Annotated[list[str] | None, typer.Option(help="sites to leave alone, written as for --include; repeat it")]
Kinds = Annotated[str | None, typer.Option(help="comma-separated: dilated,strided,transposed,large,plain")]
RuleOption = Annotated[
    list[str] | None,
    typer.Option("--rule", help="NAME[:option=value,...], in order; replaces the default rules; repeat it"),
]
Config = Annotated[
    Path | None,
    typer.Option(help="TOML file with include, exclude, kinds and rules: [[rules]] tables, or a [rules] table by pattern"),
]
Saved = Annotated[Path | None, typer.Option("--from", help="directory that `ccrewrite rewrite --out` wrote")]
Json = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]
