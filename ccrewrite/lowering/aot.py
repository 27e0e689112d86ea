"""``aot``: a compiled package that runs without Python's model code, and without ccrewrite."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._inductor import aoti_compile_and_package, aoti_load_package
from torch.utils._pytree import tree_leaves

from ccrewrite.errors import ExportError, InputError
from ccrewrite.folded.cuts import Fusing
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.preserve import preserved
from ccrewrite.passes.fold.fold import fold

TOLERANCE = 1e-4
"""Largest difference from the eager model, relative to each output's largest magnitude."""


def aot(
    model: nn.Module,
    path: str | Path,
    example_inputs: Any,
    *,
    dynamic_shapes: Any = None,
    inductor_configs: Mapping[str, Any] | None = None,
) -> Path:
    """Fold a rewritten model, compile it ahead of time with AOTInductor and write the package (``.pt2``) to ``path``.

    ``torch._inductor.aoti_load_package(path)`` runs it, in Python or C++, for the device that it was compiled on.
    ``dynamic_shapes`` is torch.export's, ``inductor_configs`` goes to Inductor. The package is loaded and compared with the
    model before it takes its name; returns that.

    Raises ``InputError`` for a path that doesn't end in ``.pt2`` and for models with nothing rewritten, and ``ExportError``
    where torch can't export or compile the model, or the package computes something else.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise InputError(f"an AOTInductor package is called something.pt2, found {str(path)!r}")
    inputs = Inputs.of(example_inputs)
    folded = fold(model, example_inputs).model.eval()
    with torch.no_grad(), preserved(folded):
        expected = tree_leaves(folded(*inputs.args, **inputs.kwargs))
        for module in folded.modules():
            if isinstance(module, Fusing):
                module.fuses = True
        try:
            program = torch.export.export(folded, inputs.args, dict(inputs.kwargs), dynamic_shapes=dynamic_shapes, strict=False)
        except Exception as error:
            raise ExportError(f"torch.export refuses this {type(model).__name__}: {error}") from error
        with tempfile.TemporaryDirectory(dir=path.parent if path.parent.is_dir() else None) as folder:
            unchecked = Path(folder) / path.name
            try:
                aoti_compile_and_package(program, package_path=str(unchecked), inductor_configs=dict(inductor_configs or {}))
                found = tree_leaves(aoti_load_package(str(unchecked))(*inputs.args, **inputs.kwargs))
            except Exception as error:
                raise ExportError(f"AOTInductor can't compile or run this {type(model).__name__}: {error}") from error
            _check(expected, found)
            unchecked.replace(path)
    return path


def _check(expected: list[Any], found: list[Any]) -> None:
    if len(expected) != len(found):
        raise ExportError(f"the package returns {len(found)} outputs, the model {len(expected)}")
    for index, (e, f) in enumerate(zip(expected, found, strict=True)):
        if not isinstance(e, torch.Tensor):
            continue
        if e.shape != f.shape:
            raise ExportError(f"output {index} of the package has shape {tuple(f.shape)}, the model's {tuple(e.shape)}")
        error = float((f.double() - e.double()).abs().max() / e.double().abs().max().clamp_min(1e-12)) if e.numel() else 0.0
        if not error <= TOLERANCE:
            raise ExportError(f"output {index} of the package differs by {error:.1e} of its largest magnitude; nothing written")
