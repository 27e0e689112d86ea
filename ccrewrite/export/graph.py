"""Passes over an ONNX graph (onnx_ir): forms that every runtime takes."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import onnx_ir as ir

from ccrewrite.passes.targets import ANY

END = 2**31 - 1
"""A ``Slice`` that stops there or beyond goes to the end."""


def histogram(model: ir.Model) -> dict[str, int]:
    """Operator -> number of nodes, subgraphs and functions included."""
    nodes = itertools.chain(model.graph.all_nodes(), *(f.all_nodes() for f in model.functions.values()))
    return dict(sorted(Counter(n.op_type for n in nodes).items()))


def unwrap_pads_(model: ir.Model) -> int:
    """``Pad(mode="wrap")``, which is of opset 19 and which few runtimes know, as ``Slice`` and ``Concat``. Returns how many
    there were."""
    count = 0
    for node in list(model.graph.all_nodes()):
        if node.op_type == "Pad" and node.attributes.get_string("mode") == "wrap":
            pads = constant_of(node.inputs[1])
            if pads is None or min(pads) < 0:
                continue
            _unwrap_(node, pads)
            count += 1
    return count


def _unwrap_(node: ir.Node, pads: list[int]) -> None:
    value = node.inputs[0]
    assert value is not None  # the data, which every Pad has
    new: list[ir.Node] = []

    def constant(numbers: list[int]) -> ir.Value:
        tensor = ir.tensor(np.array(numbers, dtype=np.int64))
        new.append(ir.node("Constant", [], attributes={"value": tensor}))
        return new[-1].outputs[0]

    def piece(source: ir.Value, start: int, stop: int, axis: int) -> ir.Value:
        new.append(ir.node("Slice", [source, constant([start]), constant([stop]), constant([axis])]))
        return new[-1].outputs[0]

    rank, most = len(pads) // 2, 2**62
    for axis, (low, high) in enumerate(zip(pads[:rank], pads[rank:], strict=True)):
        if not low and not high:
            continue
        parts = [piece(value, -low, most, axis)] if low else []
        parts += [value, *([piece(value, 0, high, axis)] if high else [])]
        new.append(ir.node("Concat", parts, attributes={"axis": axis}))
        value = new[-1].outputs[0]
    put_instead_(node, new, value)


def crop_transposed_(model: ir.Model, uneven: tuple[int, ...] = ANY) -> int:
    """``ConvTranspose`` whose output is cropped by a ``Slice``, as one node: its pads are crops, and may differ from side to
    side, which is done for the numbers of axes ``uneven`` alone. Returns how many there were."""
    count = 0
    for crop in list(model.graph.all_nodes()):
        if crop.op_type != "Slice" or len(crop.inputs) < 4:
            continue
        conv = crop.inputs[0].producer() if crop.inputs[0] is not None else None
        starts, stops, axes, *steps = (constant_of(value) for value in crop.inputs[1:])
        if conv is None or conv.op_type != "ConvTranspose" or starts is None or stops is None or axes is None:
            continue
        if any(step is None or set(step) != {1} for step in steps) or min(starts) < 0 or min(axes) < 2:
            continue
        if any(0 <= stop < END for stop in stops) or len(conv.outputs[0].uses()) > 1 or conv.outputs[0].is_graph_output():
            continue
        weight = conv.inputs[1]
        assert weight is not None
        assert weight.shape is not None
        ndim = len(weight.shape) - 2
        if ndim not in uneven:
            continue
        pads = list(conv.attributes.get_ints("pads", [0] * 2 * ndim))
        for start, stop, axis in zip(starts, stops, axes, strict=True):
            pads[axis - 2] += start
            pads[axis - 2 + ndim] += -stop if stop < 0 else 0
        conv.attributes["pads"] = ir.AttrInt64s("pads", pads)
        conv.outputs[0].shape = crop.outputs[0].shape
        put_instead_(crop, [], conv.outputs[0])
        count += 1
    return count


def unify_types_(model: ir.Model) -> None:
    """Weights of convolutions in the type of what they are applied to: where a batch norm is merged into one of bfloat16, the
    optimizer computes them in float32 and leaves them so."""
    for node in model.graph.all_nodes():
        if node.op_type in ("Conv", "ConvTranspose") and (dtype := node.outputs[0].dtype) is not None:
            for value in node.inputs[1:]:
                if value is not None and value.const_value is not None and value.const_value.dtype != dtype:
                    weight = value.const_value.numpy().astype(dtype.numpy())
                    value.const_value = ir.tensor(weight, dtype, name=value.name)
                    value.type = ir.TensorType(dtype)


def put_instead_(node: ir.Node, new: list[ir.Node], value: ir.Value) -> None:
    """``new``, whose result is ``value``, in place of ``node``."""
    out, graph = node.outputs[0], node.graph
    assert graph is not None
    for one in new:
        one.metadata_props.update(node.metadata_props)
    if new:
        graph.insert_before(node, new)
    value.shape, value.type = value.shape or out.shape, out.type
    if out.is_graph_output():
        name, out.name = out.name, f"{out.name}_before"
        value.name = name
    out.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def constant_of(value: ir.Value | None) -> list[int] | None:
    """Its whole numbers; None where it isn't a constant, or has others."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is None or tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    return [int(n) for n in tensor.numpy().ravel()]


def free_name(model: ir.Model, name: str) -> str:
    """``name``, with a number behind it where ``model`` has a value of that name."""
    taken = {v.name for v in model.graph.inputs} | set(model.graph.initializers)
    taken |= {v.name for n in model.graph.all_nodes() for v in n.outputs}
    found, count = name, 1
    while found in taken:
        count += 1
        found = f"{name}_{count}"
    return found
