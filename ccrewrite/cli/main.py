"""The command line: ``ccrewrite plan | rewrite | finetune | compare | report | fold | export | rewrite-onnx | demo``."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ccrewrite import api, saving
from ccrewrite.cli.arguments import integers, load, options
from ccrewrite.errors import CcrewriteError
from ccrewrite.ir.sites import Plan

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
Saved = Annotated[Path | None, typer.Option("--from", help="directory that `ccrewrite rewrite --out` wrote")]
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
        model, inputs = load(factory, input)
        planned = api.plan(model, inputs, **options(include, exclude, kinds, rule, config))
        _show_plan(planned, as_json)


@app.command()
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
    with _reported():
        model, inputs = load(factory, input)
        result = api.rewrite(model, inputs, **options(include, exclude, kinds, rule, config))
        saving.save(result, out_dir)
        if as_json:
            typer.echo(result.to_json())
        else:
            _show_plan(result.plan, as_json=False)
            out.print(str(result.check), markup=False, highlight=False)
            out.print(f"saved {out_dir}/recipe.json and {out_dir}/weights.safetensors", markup=False, highlight=False)
        if not result.check.ok:
            raise typer.Exit(1)


@app.command()
def finetune(
    config: Annotated[Path, typer.Argument(help="TOML file; docs/finetune.md has the keys")],
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint, if there is one")] = False,
    as_json: Json = False,
) -> None:
    """Rewrite a model, fine-tune it and save it. Also under `torchrun -m ccrewrite.cli finetune ...`."""
    with _reported():
        from ccrewrite.cli.training import finetune_command

        history = finetune_command(config, resume=resume, console=Console(quiet=True) if as_json else out)
        if as_json and history is not None:
            typer.echo(json.dumps(asdict(history), indent=2))


@app.command()
def compare(
    factory: Factory,
    out_dir: Annotated[Path, typer.Option("--out", help="directory for report.json, report.md and report.html")],
    input: Input = None,
    include: Include = None,
    exclude: Exclude = None,
    kinds: Kinds = None,
    rule: RuleOption = None,
    config: Config = None,
    variants: Annotated[
        str, typer.Option(help="comma-separated names of models to compare: rewritten,folded,...")
    ] = "rewritten",
    html: Annotated[bool, typer.Option(help="write the page as well")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="seconds instead of minutes, wider intervals")] = False,
    compiled: Annotated[
        bool | None, typer.Option(help="time torch.compile of every model, too; default: unless --quick")
    ] = None,
    batches: Annotated[str, typer.Option(help="comma-separated batch sizes to time as well")] = "",
    as_json: Json = False,
) -> None:
    """Rewrite the model and report parameters, cost, error and geometry, before against after."""
    with _reported():
        from ccrewrite.cli.report import compare_command  # jinja2, which only the page needs
        from ccrewrite.report.environment import without_folders

        model, inputs = load(factory, input)
        result = api.rewrite(model, inputs, **options(include, exclude, kinds, rule, config))
        command = without_folders(shlex.join(["ccrewrite", *sys.argv[1:]]))
        found = compare_command(
            model,
            result.model,
            inputs,
            command=command,
            out=out_dir,
            variants=tuple(variants.split(",")),
            html=html,
            console=None if as_json else out,
            quick=quick,
            compiled=compiled,
            batches=integers("--batches", batches),
        )
        if as_json:
            typer.echo(found.to_json())


@app.command()
def report(
    before: Annotated[Path, typer.Argument(help="report.json, or its directory")],
    after: Annotated[Path, typer.Argument(help="the one to compare with it")],
    as_json: Json = False,
) -> None:
    """Compare two reports. Exits with 1 if a quantity is worse."""
    with _reported():
        from ccrewrite.cli.report import report_command

        found = report_command(before, after, console=None if as_json else out)
        if as_json:
            typer.echo(found.to_json())
        if found.worse:
            raise typer.Exit(1)


@app.command()
def fold(
    factory: Factory,
    target: Annotated[Path, typer.Option("--out", help="a .pt2 file, for torch.export.load")],
    input: Input = None,
    saved: Saved = None,
    tol: Annotated[float, typer.Option(help="let positions snap by up to this many samples; lossy")] = 0.0,
    batch_norm: Annotated[bool, typer.Option("--batch-norm", help="fold batch norms into convolutions too")] = False,
    as_json: Json = False,
) -> None:
    """Fold the rewritten model into plain layers, verify and save it. Exits with 1 if the outputs differ."""
    with _reported():
        from ccrewrite.cli.export import fold_command

        model, inputs = load(factory, input)
        rewritten = saving.load(model, saved) if saved else model
        text, ok = fold_command(rewritten, inputs, target, tol=tol, batch_norm=batch_norm, as_json=as_json)
        typer.echo(text)
        if not ok:
            raise typer.Exit(1)


@app.command()
def export(
    factory: Factory,
    target: Annotated[Path, typer.Option("--out", help="an .onnx file")],
    input: Input = None,
    saved: Saved = None,
    dynamic: Annotated[str | None, typer.Option(help="axes that may vary: 'x:0=batch,2=height', or '0=batch'")] = None,
    sizes: Annotated[str, typer.Option(help="internal sizes: fixed, ratio (of the input) or input (of the file)")] = "fixed",
    functions: Annotated[bool, typer.Option("--functions", help="keep layers as functions in the file")] = False,
    opset: Annotated[int, typer.Option(help="ONNX operator set")] = 20,
    as_json: Json = False,
) -> None:
    """Fold the rewritten model, export it to ONNX and verify the file in onnxruntime. Exits with 2 if that fails."""
    with _reported():
        from ccrewrite.cli.export import export_command

        model, inputs = load(factory, input)
        rewritten = saving.load(model, saved) if saved else model
        how = {"sizes": sizes, "functions": functions, "opset": opset}
        typer.echo(export_command(rewritten, inputs, target, dynamic=dynamic, as_json=as_json, **how))


@app.command()
def rewrite_onnx(
    source: Annotated[Path, typer.Argument(help="an .onnx file")],
    target: Annotated[Path, typer.Option("--out", help="the .onnx file to write")],
    input: Annotated[list[str] | None, typer.Option("--input", help="NAME=1x3x224x224[:dtype]; repeat it")] = None,
    include: Include = None,
    exclude: Exclude = None,
    kinds: Kinds = None,
    rule: RuleOption = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Rewrite the convolutions of an ONNX file, verify and save it. Exits with 2 if the outputs differ."""
    with _reported():
        from ccrewrite.cli.export import rewrite_onnx_command

        selection = options(include, exclude, kinds, rule, config)
        typer.echo(rewrite_onnx_command(source, target, inputs=input, as_json=as_json, **selection))


@app.command()
def demo(as_json: Json = False) -> None:
    """Rewrite the segmentation network that ships with the package, and show before and after."""
    with _reported():
        from ccrewrite.demo.run import run  # scikit-learn, which only the demo needs

        scores = run(Console(quiet=True) if as_json else out)
        if as_json:
            typer.echo(json.dumps({name: score._asdict() for name, score in scores.items()}, indent=2))


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


if __name__ == "__main__":
    main()
