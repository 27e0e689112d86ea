"""One convolution of an ONNX graph, rewritten in place."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir

from ccrewrite.export.convolutions import Convolution, _ints
from ccrewrite.export.functions import DOMAIN, CCConv, DclsConv, Operator, call_
from ccrewrite.export.graph import _constant, put_instead_
from ccrewrite.export.nodes import Nodes
from ccrewrite.export.resampling import Axis, Profile
from ccrewrite.export.sizes import SizeInput
from ccrewrite.families.cc.bands import LONG
from ccrewrite.families.cc.profile import MAX_SHIFT, SUPPORT
from ccrewrite.families.cc.rule import StridedToCC
from ccrewrite.families.dcls.rule import DilatedToDcls


def to_dcls_(model: ir.Model, conv: Convolution, rule: DilatedToDcls, known: dict[Operator, str]) -> str:
    """A dilated convolution as a call of ``ccrewrite::DclsConv``; the name of its positions. ``known``: functions so far."""
    g, node = conv.site.geometry, conv.node
    sharing = rule.sharing if rule.sharing != "auto" else "full" if g.depthwise else "tap"
    reach = [rule.reach if k > 1 else 0 for k in g.kernel_size]
    rows = g.out_channels if sharing in ("group", "out", "full") else 1
    columns = g.in_channels // g.groups if sharing in ("in", "full") else 1
    grid = np.meshgrid(*(r + d * np.arange(k) for r, d, k in zip(reach, g.dilation, g.kernel_size, strict=True)), indexing="ij")
    start = np.stack([axis.ravel() for axis in grid]).astype(np.float32)
    name = _free(model, f"{conv.site.name}.positions")
    places = np.ascontiguousarray(np.broadcast_to(start[:, None, None], (g.ndim, rows, columns, start.shape[1])))
    positions = ir.Value(name=name, const_value=ir.tensor(places, name=name))
    model.graph.register_initializer(positions)
    weight = (g.out_channels, g.in_channels // g.groups, *g.kernel_size)
    window = tuple(n + 2 * r for n, r in zip(g.extent, reach, strict=True))
    pads = tuple(p + r for p, r in zip(conv.pads, itertools.cycle(reach), strict=False))
    operator = DclsConv(weight, window, g.stride, pads, g.groups, _dtype(conv))
    inputs = [*node.inputs, *[None] * (3 - len(node.inputs)), positions]
    call = ir.Node(DOMAIN, operator.name, inputs, name=node.name)
    call_(model, call, operator, known)
    _put_(conv, [call], call.outputs[0])
    return name


def to_cc_(model: ir.Model, conv: Convolution, rule: StridedToCC) -> SizeInput:
    """A strided or transposed convolution whose output size a new input of ``model`` says."""
    g, node = conv.site.geometry, conv.node
    name = _free(model, f"{conv.site.name}.size")
    size = ir.Value(name=name, shape=ir.Shape([g.ndim]), type=ir.TensorType(ir.DataType.INT64))
    model.graph.inputs.append(size)
    profile = Profile(rule.basis, round(2 * (SUPPORT + MAX_SHIFT)))
    shapes = [s[2:] for s in (*conv.site.input_shapes, *conv.site.output_shapes) if len(s) > 2]
    axes = tuple(
        Axis(
            g.kernel_size[a],
            g.stride[a],
            g.dilation[a],
            conv.pads[a],
            conv.pads[a + g.ndim],
            profile,
            g.transposed,
            long=max((s[a] for s in shapes), default=0) > LONG,
            dtype=_dtype(conv),
        )
        for a in range(g.ndim)
    )
    op = Nodes()
    data = node.inputs[0]
    assert data is not None
    spatial = op.Slice(op.Shape(data), [2], [g.ndim + 2])
    total = np.array(g.extent) - np.array(conv.pads).reshape(2, -1).sum(0)
    strides, extra = np.array(g.stride), np.array(g.output_padding)
    if g.transposed:
        native = op.Add(op.Mul(op.Sub(spatial, 1), strides), total + extra)
    else:
        native = op.Add(op.Div(op.Sub(spatial, total), strides), 1)
    asked = op.Where(op.Greater(size, 0), size, native)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    out = CCConv(axes, g.groups).body(op, [data, node.inputs[1], bias, native, asked])
    _put_(conv, list(op.nodes), out)
    known = conv.site.output_shapes
    return SizeInput(name, (conv.site.name,), tuple((conv.site.name, a) for a in range(g.ndim)), known[0][2:] if known else ())


def forget_sizes_(model: ir.Model) -> None:
    """Shapes that the file says, for those may change."""
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.is_graph_output() and value.shape is not None:
                value.shape = ir.Shape([None] * len(value.shape))
            else:
                value.shape = None


def free_group_norms_(model: ir.Model) -> None:
    """Group norms as exporters write them, ``Reshape``, ``InstanceNormalization`` and ``Reshape`` back: where the last one has
    the sizes as constants, it takes those of the first one's input."""
    for back in list(model.graph):
        norm = back.inputs[0].producer() if back.op_type == "Reshape" and back.inputs[0] is not None else None
        there = norm.inputs[0].producer() if norm and norm.op_type == "InstanceNormalization" and norm.inputs[0] else None
        data = there.inputs[0] if there is not None and there.op_type == "Reshape" else None
        if data is not None and data.shape is not None and _ints(data.shape) == tuple(_constant(back.inputs[1]) or ()):
            shape = ir.node("Shape", [data])
            shape.outputs[0].type = ir.TensorType(ir.DataType.INT64)
            model.graph.insert_before(back, [shape])
            back.replace_input_with(1, shape.outputs[0])


def _put_(conv: Convolution, new: list[ir.Node], value: ir.Value) -> None:
    put_instead_(conv.node, new, value)
    for node in new:
        node.metadata_props["ccrewrite.module"] = conv.site.name
        node.metadata_props["ccrewrite.from"] = f"{conv.site.layer} {conv.site.geometry.describe()}"


def _dtype(conv: Convolution) -> int:
    weight = conv.node.inputs[1]
    return (weight.dtype if weight is not None and weight.dtype is not None else ir.DataType.FLOAT).value


def _free(model: ir.Model, name: str) -> str:
    taken = {v.name for v in model.graph.inputs} | set(model.graph.initializers)
    taken |= {v.name for n in model.graph.all_nodes() for v in n.outputs}
    found, count = name, 1
    while found in taken:
        count += 1
        found = f"{name}_{count}"
    return found
