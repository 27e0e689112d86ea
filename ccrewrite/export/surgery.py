"""One convolution of an ONNX graph, rewritten in place."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ccrewrite.export.branch import open_shape
from ccrewrite.export.convolutions import Convolution, ints
from ccrewrite.export.functions import ALWAYS, Functions, body
from ccrewrite.export.graph import constant_of, free_name, put_instead_
from ccrewrite.export.metadata import FROM, MODULE
from ccrewrite.export.sizes import SizeInput
from ccrewrite.families.onnx import DOMAIN, OnnxForm
from ccrewrite.ir.onnx_nodes import DTYPES, Nodes


def call_(model: ir.Model, conv: Convolution, form: OnnxForm, functions: Functions) -> tuple[str, ...]:
    """``conv`` as a call of a function in the file, which is ``form``'s operator; the names of what it learns."""
    operator, learned = form.operator(conv.call), _initializers(model, conv, form)
    call = ir.Node(DOMAIN, operator.name, [*_inputs(conv), *learned], name=conv.node.name)
    functions.call_(call, operator, tuple(form.tensors))
    _put_(conv, [call], call.outputs[0])
    return tuple(str(value.name) for value in learned)


def size_(model: ir.Model, conv: Convolution, form: OnnxForm) -> tuple[SizeInput, tuple[str, ...]]:
    """``conv`` as the nodes of ``form``'s operator, with the output size that a new input of ``model`` says; that input, and
    the names of what it learns."""
    g = conv.site.geometry
    name = free_name(model, f"{conv.site.name}.size")
    size = ir.Value(name=name, shape=ir.Shape([g.ndim]), type=ir.TensorType(ir.DataType.INT64))
    model.graph.inputs.append(size)
    learned = _initializers(model, conv, form)
    op = Nodes()
    native = _native_size(op, conv)
    asked = op.Where(op.Greater(size, 0), size, native)
    names = ("native", "asked", *form.tensors)
    out = body(op, form.operator(conv.call), [*_inputs(conv), native, asked, *learned], names)
    _put_(conv, list(op.nodes), out)
    known = conv.site.output_shapes
    axes = tuple((conv.site.name, a) for a in range(g.ndim))
    asks = SizeInput(name, (conv.site.name,), axes, known[0][2:] if known else ())
    return asks, tuple(str(value.name) for value in learned)


def beside_(conv: Convolution) -> tuple[ir.Value, ir.Value]:
    """The same convolution once more, beside ``conv``, and what will be in ``conv``'s place: both on the same input."""
    node = conv.node
    again = ir.Node("", node.op_type, node.inputs, node.attributes.values())
    found = ir.node("Identity", [node.outputs[0]])
    for new in (again, found):
        new.outputs[0].type = node.outputs[0].type or ir.TensorType(DTYPES[conv.site.dtype])
    assert node.graph is not None
    node.graph.insert_after(node, [again, found])
    return again.outputs[0], found.outputs[0]


def forget_sizes_(model: ir.Model) -> None:
    """Shapes that the file says, for those may change."""
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.is_graph_output() and value.shape is not None:
                value.shape = open_shape(value.shape)
            else:
                value.shape = None


def free_group_norms_(model: ir.Model) -> None:
    """Group norms as exporters write them, ``Reshape``, ``InstanceNormalization`` and ``Reshape`` back: where the last one has
    the sizes as constants, it takes those of the first one's input."""
    for back in list(model.graph):
        norm = back.inputs[0].producer() if back.op_type == "Reshape" and back.inputs[0] is not None else None
        there = norm.inputs[0].producer() if norm and norm.op_type == "InstanceNormalization" and norm.inputs[0] else None
        data = there.inputs[0] if there is not None and there.op_type == "Reshape" else None
        if data is not None and data.shape is not None and ints(data.shape) == tuple(constant_of(back.inputs[1]) or ()):
            shape = ir.node("Shape", [data])
            shape.outputs[0].type = ir.TensorType(ir.DataType.INT64)
            model.graph.insert_before(back, [shape])
            back.replace_input_with(1, shape.outputs[0])


def _inputs(conv: Convolution) -> list[ir.Value | None]:
    """x, weight and bias."""
    return [*conv.node.inputs, *[None] * (len(ALWAYS) - len(conv.node.inputs))]


def _initializers(model: ir.Model, conv: Convolution, form: OnnxForm) -> list[ir.Value]:
    """The form's tensors, put into ``model``."""
    found: list[ir.Value] = []
    for tensor_name, tensor in form.tensors.items():
        name = free_name(model, f"{conv.site.name}.{tensor_name}")
        value = ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(tensor.detach().numpy()), name=name))
        model.graph.register_initializer(value)
        found.append(value)
    return found


def _native_size(op: Nodes, conv: Convolution) -> ir.Value:
    """The output size that the convolution makes of its input, for each axis."""
    g, data = conv.site.geometry, conv.node.inputs[0]
    assert data is not None
    spatial = op.Slice(op.Shape(data), [2], [g.ndim + 2])
    total = np.array(g.extent) - np.array(conv.pads).reshape(2, -1).sum(0)
    strides, extra = np.array(g.stride), np.array(g.output_padding)
    if g.transposed:
        return op.Add(op.Mul(op.Sub(spatial, 1), strides), total + extra)
    return op.Add(op.Div(op.Sub(spatial, total), strides), 1)


def _put_(conv: Convolution, new: list[ir.Node], value: ir.Value) -> None:
    put_instead_(conv.node, new, value)
    for node in new:
        node.metadata_props[MODULE] = conv.site.name
        node.metadata_props[FROM] = f"{conv.site.layer} {conv.site.geometry.describe()}"
