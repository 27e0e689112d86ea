"""``ccrewrite plan`` and ``ccrewrite rewrite``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

import ccrewrite
from ccrewrite.cli.arguments import load
from ccrewrite.cli.console import out, say
from ccrewrite.cli.parameters import Factory, Input, Json, Selection, selecting
from ccrewrite.errors import InputError
from ccrewrite.ir.json_types import JsonObject

if TYPE_CHECKING:
    from ccrewrite.ir.sites import Plan


@selecting
def plan(
    factory: Factory,
    input: Input = None,
    *,
    selection: Selection,
    costs: Annotated[
        bool, typer.Option("--costs", help="time every site as it will be once moved and lowered; seconds a site")
    ] = False,
    estimated: Annotated[bool, typer.Option("--estimated", help="with --costs: from the shapes alone, timing nothing")] = False,
    every: Annotated[bool, typer.Option("--all", help="a row for each site that is left alone, too")] = False,
    as_json: Json = False,
) -> None:
    """Show what would be rewritten, and with --all why the rest would not. Touches nothing."""
    model, inputs = load(factory, input)
    if estimated and not costs:
        raise InputError("--estimated says how --costs are told: give both")
    planned = ccrewrite.plan(model, inputs, costs="estimated" if estimated else costs, **selection)
    if as_json:
        typer.echo(planned.to_json())
    else:
        _show(planned, every=every)


@selecting
def rewrite(
    factory: Factory,
    out_dir: Annotated[Path, typer.Option("--out", help="directory for recipe.json and weights.safetensors")],
    input: Input = None,
    *,
    selection: Selection,
    as_json: Json = False,
) -> None:
    """Rewrite the model, verify it, and save its weights and the plan. Exits with 1 if the outputs differ."""
    model, inputs = load(factory, input)
    result = ccrewrite.rewrite(model, inputs, **selection)
    ccrewrite.save(result, out_dir)
    if as_json:
        typer.echo(result.to_json())
    else:
        _show(result.plan)
        say(f"{result.check}\nsaved {out_dir}/recipe.json and {out_dir}/weights.safetensors")
    if not result.check.ok:
        raise typer.Exit(1)


def rules(as_json: Json = False) -> None:
    """List the rules that --rule takes, those of installed families included, with their options."""
    from dataclasses import fields

    from ccrewrite.families.family import families

    known: list[JsonObject] = [
        {
            "rule": rule.name,
            "family": family.name,
            "default": rule in {type(one) for one in family.default_rules},
            "does": " ".join((rule.__doc__ or "").split()).partition(". ")[0],
            "options": {field.name: field.default for field in fields(rule)},
        }
        for family in families()
        for rule in family.rules
    ]
    if as_json:
        typer.echo(json.dumps(known, indent=2))
        return
    for rule in known:
        options = ", ".join(f"{name}={value!r}" for name, value in rule["options"].items())
        say(f"{rule['rule']} ({rule['family']}{', used by default' if rule['default'] else ''})")
        say(f"    {rule['does']}\n    {options}")


def _show(planned: Plan, *, every: bool = False) -> None:
    if not out.is_terminal:
        typer.echo(planned.table(all=every))
        return
    rows = planned.rows() if every else planned.shown()
    table = Table(*(rows[0] if rows else ()))
    for row in rows:
        table.add_row(*row.values(), style="green" if planned[row["site"]].decision.rewritten else None)
    out.print(table)
    say("\n".join((planned.summary(), *planned.notes())))
