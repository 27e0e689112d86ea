"""What the commands ``ccrewrite fold | export | rewrite-onnx`` do, without their parsing: each returns what to print."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ccrewrite.cli.arguments import inputs_of
from ccrewrite.errors import InputError
from ccrewrite.export.files import replacing, writable
from ccrewrite.export.onnx import export_onnx
from ccrewrite.export.rewrite import rewrite_onnx
from ccrewrite.ir.capture import Inputs
from ccrewrite.passes.fold import fold


def fold_command(
    model: nn.Module, example_inputs: Any, target: Path, *, tol: float = 0.0, batch_norm: bool = False, as_json: bool = False
) -> tuple[str, bool]:
    """Fold and save as a program of ``torch.export`` (.pt2): (what to print, whether verification passed). Nothing is written
    where it didn't. Raises ``InputError`` where ``target`` can't be written."""
    target = writable(target)
    result = fold(model, example_inputs, tol=tol, batch_norm=batch_norm)
    text = result.to_json() if as_json else str(result)
    if not result.check.ok:
        return text, False
    inputs = Inputs.of(example_inputs)
    program = torch.export.export(result.model.eval(), inputs.args, inputs.kwargs, strict=False)
    with replacing(target) as temporary:
        torch.export.save(program, temporary)
    return text if as_json else f"{text}\nsaved {target}", True


def export_command(
    model: nn.Module, example_inputs: Any, target: Path, *, dynamic: str | None = None, as_json: bool = False, **options: Any
) -> str:
    """Export to ONNX; what to print. ``dynamic`` is written ``x:0=batch,2=height;mask:0=batch``, or ``0=batch`` for the first
    input; ``options`` are those of ``export_onnx``. Raises what that raises."""
    report = export_onnx(model, target, example_inputs, dynamic=axes(dynamic), **options)
    return report.to_json() if as_json else str(report)


def rewrite_onnx_command(
    source: Path, target: Path, *, inputs: list[str] | None = None, as_json: bool = False, **options: Any
) -> str:
    """Rewrite a file; what to print. ``inputs`` are written NAME=SHAPE; ``options`` are those of ``rewrite_onnx``, which says
    what is raised."""
    example = inputs_of(inputs) if inputs else None
    if example is not None and not isinstance(example, dict):
        raise InputError("--input: an ONNX file's inputs have names, NAME=1x3x224x224")
    result = rewrite_onnx(source, target, example_inputs=cast("dict[str, Any] | None", example), **options)
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
        found.update(cast("dict[Any, Any]", {name.strip(): named} if colon else named))
    return found
