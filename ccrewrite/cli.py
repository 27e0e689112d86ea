"""The command line: ``ccrewrite plan | rewrite | demo``. Thin: it parses, calls the API and prints."""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import tomllib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_model
from torch import nn

from ccrewrite import api
from ccrewrite.errors import CcrewriteError, InputError
from ccrewrite.sites import Plan

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
out = Console()
err = Console(stderr=True)

Factory = Annotated[str, typer.Argument(help="package.module:factory, a callable that returns the model or (model, inputs)")]
Input = Annotated[
    list[str] | None,
    typer.Option("--input", help="an example input, [NAME=]1x3x224x224[:dtype]; repeat it. Floats are normal, integers zero"),
]
Include = Annotated[list[str] | None, typer.Option(help="glob of site names to consider; repeat it")]
Exclude = Annotated[list[str] | None, typer.Option(help="glob of site names to leave alone; repeat it")]
Kinds = Annotated[str | None, typer.Option(help="comma-separated: dilated,strided,transposed,large")]
RuleOption = Annotated[
    list[str] | None,
    typer.Option("--rule", help="NAME[:option=value,...], in order; replaces the default rules; repeat it"),
]
Config = Annotated[Path | None, typer.Option(help="TOML file with include, exclude, kinds and [[rules]] tables")]
Json = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]


@app.command()
def plan(
    factory: Factory,
    input: Input = None,
    include: Include = None,
    exclude: Exclude = None,
    kinds: Kinds = None,
    rule: RuleOption = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show what would be rewritten, and why the rest would not. Touches nothing."""
    with _reported():
        model, inputs = _load(factory, input)
        planned = api.plan(model, inputs, **_options(include, exclude, kinds, rule, config))
        _show_plan(planned, as_json)


@app.command()
def rewrite(
    factory: Factory,
    out_dir: Annotated[Path, typer.Option("--out", help="directory for weights.safetensors and rewrite.json")],
    input: Input = None,
    include: Include = None,
    exclude: Exclude = None,
    kinds: Kinds = None,
    rule: RuleOption = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Rewrite the model, verify it, and save its weights and the plan. Exits with 1 if the outputs differ."""
    with _reported():
        model, inputs = _load(factory, input)
        result = api.rewrite(model, inputs, **_options(include, exclude, kinds, rule, config))
        _save(result, out_dir)
        if as_json:
            typer.echo(result.to_json())
        else:
            _show_plan(result.plan, as_json=False)
            out.print(str(result.check), markup=False, highlight=False)
            out.print(f"saved {out_dir}/weights.safetensors and {out_dir}/rewrite.json", markup=False, highlight=False)
        if not result.check.ok:
            raise typer.Exit(1)


@app.command()
def demo() -> None:
    """Rewrite the segmentation network that ships with the package, and show before and after."""
    with _reported():
        from ccrewrite.demo.run import run  # scikit-learn, which only the demo needs

        run(out)


def main() -> None:
    """Entry point of the ``ccrewrite`` command."""
    app()


@contextmanager
def _reported() -> Generator[None]:
    """Errors meant for the user end the command with their message alone, and status 2."""
    try:
        yield
    except CcrewriteError as error:
        err.print(f"{type(error).__name__}: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error


def _load(factory: str, specs: list[str] | None) -> tuple[nn.Module, Any]:
    module_name, colon, attribute = factory.partition(":")
    if not colon or not attribute:
        raise InputError(f"the model is named package.module:factory, found {factory!r}")
    sys.path.insert(0, os.getcwd())
    try:
        value: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(f"no module called {error.name!r} (looked up for {factory!r})") from error
    for name in attribute.split("."):
        if not hasattr(value, name):
            raise InputError(f"{module_name} has no {attribute!r}")
        value = getattr(value, name)
    if callable(value) and not isinstance(value, nn.Module):
        torch.manual_seed(0)
        value = value()
    model, inputs = value if isinstance(value, tuple) else (value, None)
    if specs:
        inputs = _inputs(specs)
    if inputs is None:
        raise InputError(f"say what the model is called with: --input 1x3x224x224, or let {attribute} return (model, inputs)")
    return model, inputs


def _inputs(specs: list[str]) -> Any:
    generator = torch.Generator().manual_seed(0)
    positional: list[torch.Tensor] = []
    named: dict[str, torch.Tensor] = {}
    for spec in specs:
        name, equals, shape_text = spec.rpartition("=")
        shape_text, colon, dtype_name = shape_text.partition(":")
        dtype = getattr(torch, dtype_name if colon else "float32", None)
        if not isinstance(dtype, torch.dtype):
            raise InputError(f"--input {spec}: torch has no dtype {dtype_name!r}")
        sizes = shape_text.split("x")
        if not all(s.isdecimal() for s in sizes):
            raise InputError(f"--input {spec}: a shape is written like 1x3x224x224, found {shape_text!r}")
        shape = [int(s) for s in sizes]
        floating = dtype.is_floating_point or dtype.is_complex
        tensor = torch.randn(shape, generator=generator, dtype=dtype) if floating else torch.zeros(shape, dtype=dtype)
        if equals:
            named[name] = tensor
        else:
            positional.append(tensor)
    if named and positional:
        raise InputError("--input: name all of them or none (positional and keyword inputs can't be mixed)")
    return named or tuple(positional)


def _options(
    include: list[str] | None, exclude: list[str] | None, kinds: str | None, rule: list[str] | None, config: Path | None
) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if config is not None:
        try:
            options = tomllib.loads(config.read_text())
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"--config {config}: {error}") from error
        unknown = options.keys() - {"include", "exclude", "kinds", "rules"}
        if unknown:
            raise InputError(
                f"--config {config}: unknown key {', '.join(sorted(unknown))}; expected include, exclude, kinds, rules"
            )
    given = {
        "include": include,
        "exclude": exclude,
        "kinds": kinds.split(",") if kinds else None,
        "rules": [_rule(r) for r in rule] if rule else None,
    }
    return options | {k: v for k, v in given.items() if v is not None}


def _rule(text: str) -> dict[str, Any]:
    name, _, options = text.partition(":")
    table: dict[str, Any] = {"rule": name}
    for option in filter(None, options.split(",")):
        key, equals, value = option.partition("=")
        if not equals:
            raise InputError(f"--rule {text}: options are written option=value, found {option!r}")
        try:
            table[key] = json.loads(value)
        except json.JSONDecodeError:
            table[key] = value
    return table


def _show_plan(planned: Plan, as_json: bool) -> None:
    if as_json:
        typer.echo(planned.to_json())
    elif out.is_terminal:
        table = Table("site", "layer", "kinds", "geometry", "calls", "decision", "")
        for site, row in zip(planned.sites, planned.rows(), strict=True):
            table.add_row(*row.values(), style="green" if site.decision.rewritten else None)
        out.print(table)
        out.print(planned.summary(), highlight=False)
    else:
        typer.echo(str(planned))


def _save(result: api.Result, directory: Path) -> None:
    """Both files under temporary names, then moved into place."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".ccrewrite-") as temporary:
            save_model(result.model, f"{temporary}/weights.safetensors")
            Path(temporary, "rewrite.json").write_text(result.to_json())
            for name in ("weights.safetensors", "rewrite.json"):
                os.replace(Path(temporary, name), directory / name)
    except OSError as error:
        raise InputError(f"--out {directory}: {error}") from error


if __name__ == "__main__":
    main()
