"""An ONNX file -> a model of torch that can be rewritten and trained: ``torch_model``, by onnx2torch.

onnx2torch makes torch's own layers of a file's nodes, under their names, as a ``torch.fx.GraphModule``; but it takes weights
from initializers alone, and some of its layers read numbers off tensors, which no exporter can follow. So the file is read as
``rewrite_onnx`` reads it (any producer, operator set 7 or later), its constants are lifted, and known numbers are put in.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from ccrewrite.errors import ExportError, InputError
from ccrewrite.export.files import require_packages

SHAPES = ("Shape", "ConstantOfShape", "Range")
"""Operators that compute with sizes. A file that has some is read for the sizes of the example inputs."""
READ = ("OnnxResize", "OnnxPadDynamic")
"""onnx2torch's layers that read numbers off the tensors that they are given beside their data."""


def torch_model(path: str | os.PathLike[str], example_inputs: Mapping[str, Tensor], *, tolerance: float = 1e-3) -> nn.Module:
    """The model of an ONNX file, in evaluation mode: ``rewrite`` it, train it, ``export_onnx`` it.

    ``example_inputs``: by the names of the file's inputs. The model takes them in the file's order, without names. Where the
    file computes with sizes, it takes those of the example alone, the batch included.

    The model's outputs for ``example_inputs`` are compared with onnxruntime's: ``tolerance`` is the largest difference, over an
    output's largest magnitude. Dropout is not in most files, and batch norms are often merged into convolutions: what is
    trained is what is in the file.

    Raises ``InputError`` where onnx2torch or another package is missing (``pip install onnx2torch``) or the file can't be read,
    ``ExportError`` where onnx2torch can't convert it, or the model computes something else.
    """
    require_packages()
    try:
        convert: Any = importlib.import_module("onnx2torch").convert
    except ImportError as error:
        raise InputError(f"torch_model needs onnx2torch: pip install onnx2torch ({error})") from error
    import onnx_ir as ir
    import onnxruntime  # pyright: ignore[reportMissingTypeStubs]
    from onnx_ir.passes.common import LiftConstantsToInitializersPass
    from onnxscript import optimizer

    from ccrewrite.export.source import read

    source = read(path).model
    names = [str(value.name) for value in source.graph.inputs if value.name not in source.graph.initializers]
    if set(names) != set(example_inputs):
        raise InputError(f"{path} has the inputs {', '.join(names)}; example_inputs has {', '.join(example_inputs)}")
    if any(node.op_type in SHAPES for node in source.graph.all_nodes()):
        for value in source.graph.inputs:
            if value.name in example_inputs:
                value.shape = ir.Shape(tuple(example_inputs[str(value.name)].shape))
        source = optimizer.optimize(source)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it can't do exactly shows in the comparison
        try:
            model: fx.GraphModule = convert(ir.to_proto(source)).eval()
        except Exception as error:  # of many kinds
            raise ExportError(f"onnx2torch can't convert {path}: {type(error).__name__}: {error}") from error
        _put_numbers_in_(model)
        with torch.no_grad():
            found: Any = model(*(example_inputs[name] for name in names))
    session: Any = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    expected: list[Any] = session.run(None, {name: tensor.numpy() for name, tensor in example_inputs.items()})
    outputs: list[Tensor] = [found] if isinstance(found, Tensor) else list(found)
    for number, (mine, theirs) in enumerate(zip(outputs, expected, strict=True)):
        error = _difference(mine, theirs)
        if not error <= tolerance:
            raise ExportError(
                f"output {number} of onnx2torch's model of {path} is off by {error:.1e} of its largest magnitude; where the "
                "example inputs are such that the output is next to nothing, take others, or allow more (tolerance)"
            )
    return model


def _difference(mine: Tensor, theirs: NDArray[Any]) -> float:
    if tuple(mine.shape) != theirs.shape:
        return float("inf")
    return float(np.abs(mine.numpy() - theirs).max(initial=0)) / max(float(np.abs(theirs).max(initial=0)), 1e-30)


class Numbers:
    """A constant as code that expects a tensor reads it. No tensor, so that no tracer takes it for data."""

    def __init__(self, values: NDArray[Any]) -> None:
        self.values = values

    def detach(self) -> Numbers:
        return self

    def cpu(self) -> Numbers:
        return self

    def numpy(self) -> NDArray[Any]:
        return self.values

    def tolist(self) -> list[Any]:
        return self.values.tolist()

    def nelement(self) -> int:
        return self.values.size

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values.tolist())


class WithNumbers(nn.Module):
    """``layer``, called with ``numbers`` after its data."""

    def __init__(self, layer: nn.Module, numbers: tuple[Numbers | None, ...]) -> None:
        super().__init__()
        self.layer, self.numbers = layer, numbers

    def forward(self, data: Tensor) -> Tensor:
        return self.layer(data, *self.numbers)


class Slice(nn.Module):
    """ONNX's. (onnx2torch's own indexes by a list, which torch will take for something else one day.)"""

    def __init__(
        self, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] | None = None, steps: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        along = range(len(starts)) if axes is None else axes
        self.pieces = list(zip(starts, ends, along, [1] * len(starts) if steps is None else steps, strict=True))

    def forward(self, data: Tensor) -> Tensor:
        for start, end, axis, step in self.pieces:
            if step < 0:
                data, start, end, step = data.flip(axis), -start - 1, -end - 1, -step
            data = data[(slice(None),) * (axis % data.dim()) + (slice(start, end, step),)]
        return data


def _put_numbers_in_(model: fx.GraphModule) -> None:
    """Give the layers that read numbers those that are constants."""
    for node in list(model.graph.nodes):
        constants: list[Any] = list(node.args[1:])
        if node.op != "call_module" or any(c is not None and getattr(c, "op", "") != "get_attr" for c in constants):
            continue
        layer = model.get_submodule(str(node.target))
        values = [None if c is None else _value(model, str(c.target)) for c in constants]
        if type(layer).__name__ == "OnnxSlice":
            known: nn.Module = Slice(*cast(Any, [None if v is None else v.tolist() for v in values]))
        elif type(layer).__name__ in READ:
            known = WithNumbers(layer, tuple(None if v is None else Numbers(v) for v in values))
        else:
            continue
        owner, _, name = str(node.target).rpartition(".")
        model.get_submodule(owner).add_module(name, known)
        node.args = node.args[:1]
    model.graph.eliminate_dead_code()
    model.recompile()


def _value(model: nn.Module, path: str) -> NDArray[Any]:
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name).detach().numpy()
