"""The ways out of torch: a model, rewritten or not, becomes a file of each kind."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import ccrewrite
from ccrewrite.export.defaults import require_sizes
from ccrewrite.families.sites import rewritten_sites

BATCH = ({0: Dim("batch", max=8)},)
"""For ``torch.export``. ExecuTorch plans its memory for a largest batch."""


def onnx(model: nn.Module, x: Tensor, path: Path) -> None:
    ccrewrite.export_onnx(model, path, x, dynamic={0: "batch"})


def sizes(model: nn.Module, x: Tensor, path: Path) -> tuple[Any, ...]:
    file = ccrewrite.export_onnx(model, path, x, dynamic={0: "batch"}, sizes="input")
    require_sizes(path, path)  # not every runtime lets anybody choose an input that has a default
    return file.size_inputs


def pt2(model: nn.Module, x: Tensor, path: Path) -> None:
    torch.export.save(program(model, x), path)


def aoti(model: nn.Module, x: Tensor, path: Path) -> None:
    if rewritten_sites(model):
        ccrewrite.aot(model, path, x, dynamic_shapes=BATCH)
    else:
        torch._inductor.aoti_compile_and_package(program(model, x), package_path=str(path))


def portable(model: nn.Module, x: Tensor, path: Path) -> None:
    _executorch(model, x, path, [])


def xnnpack(model: nn.Module, x: Tensor, path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    _executorch(model, x, path, [XnnpackPartitioner()])


def _executorch(model: nn.Module, x: Tensor, path: Path, partitioners: list[object]) -> None:
    from executorch.exir import to_edge_transform_and_lower

    lowered = to_edge_transform_and_lower(program(model, x), partitioner=partitioners).to_executorch()
    path.write_bytes(lowered.buffer)


@torch.no_grad()
def program(model: nn.Module, x: Tensor) -> ExportedProgram:
    """The folded model as a program of ``torch.export``, for any batch."""
    folded = ccrewrite.fold(model, x).model if rewritten_sites(model) else model
    return torch.export.export(folded.eval(), (x,), dynamic_shapes=BATCH, strict=False)


DOORS: dict[str, tuple[str, Callable[[nn.Module, Tensor, Path], tuple[Any, ...] | None]]] = {
    "onnx": ("onnx", onnx),
    "sizes": ("onnx", sizes),
    "pt2": ("pt2", pt2),
    "aoti": ("pt2", aoti),
    "portable": ("pte", portable),
    "xnnpack": ("pte", xnnpack),
}
"""Kind -> (extension, how it is made)."""


def write(kind: str, model: nn.Module, x: Tensor, directory: Path) -> tuple[Path, tuple[Any, ...]]:
    """The file of that kind in ``directory``, and its inputs that choose sizes (``SizeInput``)."""
    extension, door = DOORS[kind]
    path = directory / f"{kind}.{extension}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of other people's exporters about themselves
        return path, door(model, x, path) or ()
