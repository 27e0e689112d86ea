"""``ccrewrite fold``, ``ccrewrite export`` and ``ccrewrite rewrite-onnx``."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import ccrewrite
from ccrewrite.cli.arguments import inputs_of, load
from ccrewrite.cli.console import warn
from ccrewrite.cli.parameters import Factory, Input, Json, Saved, Selection, Tolerance, selecting
from ccrewrite.errors import InputError

if TYPE_CHECKING:
    from torch import nn


Memory = Annotated[int | None, typer.Option(help="bytes that a site of an open size may take when the file runs; 2 GiB")]
Runtime = Annotated[
    str | None, typer.Option("--target", help="the runtime it goes to: onnxruntime-cpu, tensorrt, ... (docs/deploy.md)")
]


def fold(
    factory: Factory,
    target: Annotated[Path, typer.Option("--out", help="a .pt2 file, for torch.export.load")],
    input: Input = None,
    saved: Saved = None,
    tol: Annotated[float, typer.Option(help="let positions snap by up to this many samples; lossy")] = 0.0,
    batch_norm: Annotated[bool, typer.Option("--batch-norm", help="fold batch norms into convolutions too")] = False,
    runtime: Runtime = None,
    as_json: Json = False,
) -> None:
    """Fold the rewritten model into plain layers, verify and save it. Exits with 1 if the outputs differ."""
    model, inputs = rewritten_model(factory, input, saved)
    text, ok = fold_command(model, inputs, target, as_json=as_json, tol=tol, batch_norm=batch_norm, runtime=runtime)
    typer.echo(text)
    if not ok:
        raise typer.Exit(1)


def export(
    factory: Factory,
    target: Annotated[Path, typer.Option("--out", help="an .onnx file")],
    input: Input = None,
    saved: Saved = None,
    dynamic: Annotated[str | None, typer.Option(help="axes that may vary: 'x:0=batch,2=height', or '0=batch'")] = None,
    sizes: Annotated[str, typer.Option(help="internal sizes: fixed, ratio (of the input) or input (of the file)")] = "fixed",
    functions: Annotated[bool, typer.Option("--functions", help="keep layers as functions in the file")] = False,
    opset: Annotated[int, typer.Option(help="ONNX operator set")] = 20,
    tolerance: Tolerance = None,
    runtime: Runtime = None,
    latency: Annotated[bool, typer.Option("--latency", help="time the file next to the original's")] = False,
    memory: Memory = None,
    as_json: Json = False,
) -> None:
    """Fold the rewritten model, export it to ONNX and verify the file in onnxruntime. Exits with 2 if that fails."""
    model, inputs = rewritten_model(factory, input, saved)
    how = {
        "sizes": sizes,
        "functions": functions,
        "opset": opset,
        "tolerance": tolerance,
        "target": runtime,
        "latency": latency,
        **allowed(memory),
    }
    typer.echo(export_command(model, inputs, target, dynamic=dynamic, as_json=as_json, **how))


@selecting
def rewrite_onnx(
    source: Annotated[Path, typer.Argument(help="an .onnx file")],
    target: Annotated[Path, typer.Option("--out", help="the .onnx file to write")],
    input: Annotated[list[str] | None, typer.Option("--input", help="NAME=1x3x224x224[:dtype]; repeat it")] = None,
    *,
    selection: Selection,
    tolerance: Tolerance = None,
    latency: Annotated[bool, typer.Option(help="time both files in onnxruntime")] = True,
    memory: Memory = None,
    as_json: Json = False,
) -> None:
    """Rewrite the convolutions of an ONNX file, verify and save it. Exits with 2 if the outputs differ."""
    how: dict[str, Any] = {"tolerance": tolerance, "latency": latency, **allowed(memory)}
    typer.echo(rewrite_onnx_command(source, target, inputs=input, as_json=as_json, **how, **selection))


def allowed(memory: int | None) -> dict[str, Any]:
    """What is left out has the function's own default, which is not imported for --help."""
    return {} if memory is None else {"memory": memory}


def rewritten_model(factory: str, input: list[str] | None, saved: Path | None) -> tuple[nn.Module, object]:
    """The rewritten model that ``factory`` makes, or the one that was ``saved``, and its inputs. Warns of one as it was."""
    from ccrewrite.families.sites import rewritten_sites

    model, inputs = load(factory, input)
    if saved is not None:
        return ccrewrite.load(model, saved), inputs
    if not rewritten_sites(model):
        name = type(model).__name__
        warn(f"nothing in the {name} of {factory} is rewritten; --from DIR loads what `ccrewrite rewrite --out DIR` saved")
    return model, inputs


def fold_command(
    model: nn.Module,
    example_inputs: object,
    target: Path,
    *,
    tol: float = 0.0,
    batch_norm: bool = False,
    runtime: str | None = None,
    as_json: bool = False,
) -> tuple[str, bool]:
    """Fold and save as a program of ``torch.export`` (.pt2): (what to print, whether verification passed). Nothing is written
    where it didn't. Raises ``InputError`` where ``target`` can't be written."""
    import torch

    from ccrewrite.ir.capture import Inputs
    from ccrewrite.ir.written import replacing, writable

    target = writable(target)
    result = ccrewrite.fold(model, example_inputs, tol=tol, batch_norm=batch_norm, target=runtime)
    text = result.to_json() if as_json else str(result)
    if not result.check.ok:
        return text, False
    inputs = Inputs.of(example_inputs)
    program = torch.export.export(result.model.eval(), inputs.args, inputs.kwargs, strict=False)
    saved = io.BytesIO()  # written here, for torch's writer ends the process where the disk is full
    torch.export.save(program, saved)
    with replacing(target) as unfinished:
        unfinished.write_bytes(saved.getbuffer())
    return text if as_json else f"{text}\nsaved {target}", True


def export_command(
    model: nn.Module, example_inputs: object, path: Path, *, dynamic: str | None = None, as_json: bool = False, **options: Any
) -> str:
    """Export to ONNX; what to print. ``dynamic`` is written ``x:0=batch,2=height;mask:0=batch``, or ``0=batch`` for the first
    input; ``options`` are those of ``export_onnx``. Raises what that raises."""
    report = ccrewrite.export_onnx(model, path, example_inputs, dynamic=axes(dynamic), **options)
    return report.to_json() if as_json else str(report)


def rewrite_onnx_command(
    source: Path, target: Path, *, inputs: list[str] | None = None, as_json: bool = False, **options: Any
) -> str:
    """Rewrite a file; what to print. ``inputs`` are written NAME=SHAPE; ``options`` are those of ``rewrite_onnx``, which says
    what is raised."""
    example = inputs_of(inputs) if inputs else None
    if example is not None and not isinstance(example, dict):
        raise InputError("--input: an ONNX file's inputs have names, NAME=1x3x224x224")
    result = ccrewrite.rewrite_onnx(source, target, example_inputs=example, **options)
    return result.to_json() if as_json else str(result)


def axes(text: str | None) -> dict[Any, Any] | None:
    """``dynamic`` of ``export_onnx`` from its spelling on the command line.

    >>> axes("x:0=batch,2=height;mask:0=batch"), axes("0=batch")
    ({'x': {0: 'batch', 2: 'height'}, 'mask': {0: 'batch'}}, {0: 'batch'})
    """
    if not text:
        return None
    found: dict[Any, Any] = {}
    for part in text.split(";"):
        name, colon, spelled = part.rpartition(":")
        named: dict[int, str] = {}
        for pair in spelled.split(","):
            axis, equals, label = pair.partition("=")
            if not equals or not axis.strip().isdecimal():
                raise InputError(f"--dynamic {text}: axes are written AXIS=NAME, found {pair!r}")
            named[int(axis)] = label.strip()
        found |= {name.strip(): named} if colon else named
    return found
