"""ONNX files of types that onnxruntime's CPU kernels don't compute in, as files that it runs."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ccrewrite.export.files import load, write

COPIED = (ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@contextmanager
def runnable(path: Path) -> Generator[tuple[Path, bool]]:
    """A file that computes what the one at ``path`` does and that onnxruntime can run, and whether it is a copy: where the
    weights of convolutions are bfloat16 or float64, one with every number of these types, and every ``Cast`` to them, in
    float32. It is there as long as the block lasts."""
    model = load(path)
    convs = (n for n in model.graph.all_nodes() if n.op_type in ("Conv", "ConvTranspose") or n.domain == "ccrewrite")
    if not any(n.inputs[1] is not None and n.inputs[1].dtype in COPIED for n in convs):
        yield path, False
        return
    in_float32_(model)
    with tempfile.TemporaryDirectory(dir=path.parent) as inside:
        copy = Path(inside, "float32.onnx")
        write(model, copy)
        yield copy, True


def in_float32_(model: ir.Model) -> None:
    """Put float32 in place of bfloat16 and float64, in weights, constants, casts and what is said of values."""
    graph = model.graph
    nodes = [*graph.all_nodes(), *(n for f in model.functions.values() for n in f.all_nodes())]
    for value in (*graph.inputs, *graph.initializers.values(), *(v for n in nodes for v in n.outputs)):
        if value.dtype in COPIED:
            value.type = ir.TensorType(ir.DataType.FLOAT)
        if value.const_value is not None and value.const_value.dtype in COPIED:
            value.const_value = _float32(value.const_value)
    for node in nodes:
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in COPIED:
                node.attributes[name] = ir.AttrTensor(name, _float32(attribute.value))
            elif name in ("to", "dtype") and attribute.value in COPIED:
                node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT)


def _float32(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)
