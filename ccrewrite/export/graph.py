"""Passes over an ONNX graph (onnx_ir): forms that every runtime takes, and metadata that says where a node comes from."""

from __future__ import annotations

import ast
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

TORCH_KEYS = ("pkg.torch.", "pkg.onnxscript.", "namespace")
"""Beginnings of the metadata keys that torch leaves: stack traces with local paths, mostly."""

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
            pads = _constant(node.inputs[1])
            if pads is None or min(pads) < 0:
                continue
            _unwrap_(node, pads)
            count += 1
    return count


def _unwrap_(node: ir.Node, pads: list[int]) -> None:
    value: Any = node.inputs[0]
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


def crop_transposed_(model: ir.Model) -> int:
    """``ConvTranspose`` whose output is cropped by a ``Slice``, as one node: its pads are crops, and may differ from side to
    side. Returns how many there were."""
    count = 0
    for crop in list(model.graph.all_nodes()):
        if crop.op_type != "Slice" or len(crop.inputs) < 4:
            continue
        conv = crop.inputs[0].producer() if crop.inputs[0] is not None else None
        starts, stops, axes, *steps = (_constant(value) for value in crop.inputs[1:])
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


def _constant(value: ir.Value | None) -> list[int] | None:
    """Whole numbers."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is None or tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    return [int(n) for n in tensor.numpy().ravel()]


def annotate_(model: ir.Model, origins: Mapping[str, str]) -> None:
    """Nodes get the path of the module that they come from (``ccrewrite.module``), convolutions also what was folded there
    (``ccrewrite.from``; ``origins`` by module path); whatever torch noted, with its paths on this machine, goes."""
    weights = {name.rpartition(".")[0] for name in model.graph.initializers}
    for node in model.graph.all_nodes():
        module = module_of(node, weights)
        if module is not None and module.removesuffix("graph").removesuffix(".") in origins:  # a ``ResizedConv``'s
            module = module.removesuffix("graph").removesuffix(".")
        _strip(node.metadata_props)
        if module is not None:
            node.metadata_props["ccrewrite.module"] = module
            if (node.op_type in ("Conv", "ConvTranspose") or node.domain == "ccrewrite") and module in origins:
                node.metadata_props["ccrewrite.from"] = origins[module]
                node.name = f"{module or 'model'}/{node.op_type}"
    _distinct(model.graph.all_nodes())
    values = itertools.chain(
        model.graph.inputs, model.graph.initializers.values(), *(n.outputs for n in model.graph.all_nodes())
    )
    for owner in (model, model.graph, *values, *model.functions.values()):
        _strip(owner.metadata_props)
    model.doc_string = model.graph.doc_string = None


def module_of(node: ir.Node, weights: set[str]) -> str | None:
    """The path of the module whose forward made the node: that of its weight, for a batch norm merged into a convolution
    gives its own."""
    if node.op_type in ("Conv", "ConvTranspose"):
        weight = node.inputs[1]
        owner, _, name = ((weight.name if weight else None) or "").rpartition(".")
        if name == "weight" and owner in weights:
            return owner
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if scopes is None:
        return None
    *modules, _ = ast.literal_eval(scopes)
    module = modules[-1].partition(".ccrewrite.")[0].removeprefix("ccrewrite.") if modules else ""
    return module.removesuffix("sampling").removesuffix(".")  # a layer's own, of an open size


def _strip(properties: Any) -> None:
    for key in [k for k in properties if k.startswith(TORCH_KEYS)]:
        del properties[key]


def _distinct(nodes: Iterable[ir.Node]) -> None:
    seen: Counter[str] = Counter()
    for node in nodes:
        name = node.name or node.op_type
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
