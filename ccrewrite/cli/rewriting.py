"""``ccrewrite plan`` and ``ccrewrite rewrite``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

import ccrewrite
from ccrewrite.cli.arguments import load, options
from ccrewrite.cli.console import out, reported, say
from ccrewrite.cli.parameters import Config, Exclude, Factory, Include, Input, Json, Kinds, RuleOption
from ccrewrite.errors import InputError

if TYPE_CHECKING:
    from ccrewrite.ir.sites import Plan


def plan(
    factory: Factory,
    input: Input = None,
    include: Include = None,
    exclude: Exclude = None,
    kinds: Kinds = None,
    rule: RuleOption = None,
    config: Config = None,
    costs: Annotated[
        bool, typer.Option("--costs", help="time every site as it will be once moved and lowered; seconds a site")
    ] = False,
    estimated: Annotated[bool, typer.Option("--estimated", help="with --costs: from the shapes alone, timing nothing")] = False,
    as_json: Json = False,
) -> None:
    """Show what would be rewritten, and why the rest would not. Touches nothing."""
    with reported():
        model, inputs = load(factory, input)
        if estimated and not costs:
            raise InputError("--estimated says how --costs are told: give both")
        wanted = "estimated" if estimated else costs
        planned = ccrewrite.plan(model, inputs, costs=wanted, **options(include, exclude, kinds, rule, config))
        if as_json:
            typer.echo(planned.to_json())
        else:
            _show(planned)


def rewrite(
    factory: Factory,
    out_dir: Annotated[Path, typer.Option("--out", help="directory for recipe.json and weights.safetensors")],
    input: Input = None,
    include: Include = None,
    exclude: Exclude = None,
    kinds: Kinds = None,
    rule: RuleOption = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Rewrite the model, verify it, and save its weights and the plan. Exits with 1 if the outputs differ."""
    with reported():
        model, inputs = load(factory, input)
        result = ccrewrite.rewrite(model, inputs, **options(include, exclude, kinds, rule, config))
        ccrewrite.save(result, out_dir)
        if as_json:
            typer.echo(result.to_json())
        else:
            _show(result.plan)
            say(f"{result.check}\nsaved {out_dir}/recipe.json and {out_dir}/weights.safetensors")
        if not result.check.ok:
            raise typer.Exit(1)


def _show(planned: Plan) -> None:
    if not out.is_terminal:
        typer.echo(str(planned))
        return
    rows = planned.rows()
    table = Table(*(rows[0] if rows else ()))
    for site, row in zip(planned.sites, rows, strict=True):
        table.add_row(*row.values(), style="green" if site.decision.rewritten else None)
    out.print(table)
    say("\n".join((planned.summary(), *planned.notes())))
