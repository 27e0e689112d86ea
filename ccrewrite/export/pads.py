"""Pads that a file leaves to the runtime (``auto_pad``, ``output_shape``), as numbers, or as nodes that compute them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ccrewrite.export.attributes import check_attributes
from ccrewrite.ir.geometry import Ints
from ccrewrite.ir.onnx_nodes import Nodes

LEFT_OPEN = ("auto_pad", "output_shape")
AUTO = "ccrewrite.auto_pad"
"""Metadata key of a ``Pad``: what the convolution behind it said."""


def explicit_pads_(model: ir.Model) -> None:
    """Put pads in place of ``auto_pad`` and ``output_shape`` of ``model``'s convolutions, where that is possible. Raises
    ``InputError`` where an attribute can't be what it is."""
    for node in list(model.graph):
        if node.op_type in ("Conv", "ConvTranspose") and node.domain == "" and any(n in node.attributes for n in LEFT_OPEN):
            check_attributes(node)
            _explicit_(node)


def _explicit_(node: ir.Node) -> None:
    data, weight = node.inputs[:2]
    assert data is not None
    assert weight is not None
    get, auto = node.attributes.get_ints, node.attributes.get_string("auto_pad", "NOTSET")
    kernel = get("kernel_shape", () if weight.shape is None else tuple(weight.shape[2:]))
    if not kernel or not all(isinstance(k, int) for k in kernel):
        return
    ones = [1] * len(kernel)
    strides, dilations = np.array(get("strides", ones)), np.array(get("dilations", ones))
    extent = dilations * (np.array(kernel) - 1) + 1
    sizes = () if data.shape is None else tuple(data.shape[2:])
    known = np.array(sizes) if sizes and all(isinstance(n, int) for n in sizes) else None
    wanted = node.attributes.get_ints("output_shape", ())
    upper = auto == "SAME_UPPER"
    if node.op_type == "ConvTranspose":
        extra = np.array(get("output_padding", [0] * len(kernel)))
        if wanted:
            total = None if known is None else strides * (known - 1) + extra + extent - np.array(wanted[-len(kernel) :])
            more = extra if total is None else extra + np.maximum(-total, 0)
            if total is not None and min(total) < 0 and all(more < strides):  # what isn't reached is added at the high ends
                node.attributes["output_padding"] = ir.AttrInt64s("output_padding", [int(n) for n in more])
                total = np.maximum(total, 0)
        else:
            total = extent + extra - strides if auto.startswith("SAME") else None
        if total is not None and min(total) >= 0:
            _set_(node, *_shared(total, upper=upper))
        elif auto == "VALID" and not wanted:
            _set_(node, 0 * extent, 0 * extent)
    elif auto == "VALID":
        _set_(node, 0 * extent, 0 * extent)
    elif auto.startswith("SAME"):
        if max(strides) == 1:
            _set_(node, *_shared(extent - 1, upper=upper))
        elif known is not None:
            _set_(node, *_shared(np.maximum((-(-known // strides) - 1) * strides + extent - known, 0), upper=upper))
        else:
            _pad_before_(node, data, extent, strides, upper=upper)


def _shared(total: np.ndarray, *, upper: bool) -> tuple[np.ndarray, np.ndarray]:
    """``total`` samples, those at the low ends and those at the high ones; ``upper``: where one is left, it is a high one."""
    half = total // 2
    return (half, total - half) if upper else (total - half, half)


def _set_(node: ir.Node, low: np.ndarray, high: np.ndarray) -> None:
    pads: Ints = tuple(int(n) for n in (*low, *high))
    for name in LEFT_OPEN:
        node.attributes.pop(name, None)
    node.attributes["pads"] = ir.AttrInt64s("pads", pads)


def _pad_before_(node: ir.Node, data: ir.Value, extent: np.ndarray, strides: np.ndarray, *, upper: bool) -> None:
    """Pads that depend on the size of ``data``, which is not known, as a ``Pad`` before the convolution."""
    op, ndim = Nodes(), len(extent)
    size = op.Slice(op.Shape(data), [2], [ndim + 2])
    outputs = op.Div(op.Add(size, strides - 1), strides)
    total = op.Max(0, op.Sub(op.Add(op.Mul(op.Sub(outputs, 1), strides), extent), size))
    half = op.Div(total, 2)
    low, high = (half, op.Sub(total, half)) if upper else (op.Sub(total, half), half)
    padded = op.Pad(data, op.Concat([0, 0], low, [0, 0], high, axis=0))
    padded.type = data.type
    assert node.graph is not None
    node.graph.insert_before(node, list(op.nodes))
    op.nodes[-1].metadata_props[AUTO] = node.attributes.get_string("auto_pad", "")
    node.replace_input_with(0, padded)
    _set_(node, 0 * extent, 0 * extent)


def restore_pads_(model: ir.Model) -> None:
    """Let convolutions that have such a ``Pad`` before them pad by themselves again."""
    for pad in [node for node in model.graph if AUTO in node.metadata_props]:
        for node, _ in pad.outputs[0].uses():
            if node.op_type == "Conv":
                node.replace_input_with(0, pad.inputs[0])
                node.attributes["auto_pad"] = ir.AttrString("auto_pad", pad.metadata_props[AUTO])
                del node.attributes["pads"]
    RemoveUnusedNodesPass()(model)
