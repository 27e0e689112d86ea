"""The convolutions of an ONNX graph as sites of a plan."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
import torch

from ccrewrite.export.attributes import check_attributes
from ccrewrite.export.metadata import MODULE, module_of, root_of
from ccrewrite.families.onnx import OnnxCall
from ccrewrite.ir.geometry import ConvGeometry, Ints
from ccrewrite.ir.onnx_nodes import DTYPES
from ccrewrite.ir.sites import UNDECIDED, Decision, Site

PLAIN = ("", "ai.onnx")
QUANTIZED = ("ConvInteger", "QLinearConv")
TORCH_DTYPES = {theirs: ours for ours, theirs in DTYPES.items()}


@dataclass(frozen=True)
class Convolution:
    """A node, its site, and its pads: those at the low ends, then those at the high ones."""

    node: ir.Node
    site: Site
    pads: Ints

    @property
    def call(self) -> OnnxCall:
        """What an operator that stands for it has to compute."""
        g = self.site.geometry
        first, second = (g.in_channels, g.out_channels) if g.transposed else (g.out_channels, g.in_channels)
        pads = tuple(zip(self.pads[: g.ndim], self.pads[g.ndim :], strict=True))
        return OnnxCall(g, pads, (first, second // g.groups, *g.kernel_size), self.site.dtype)


def convolutions(model: ir.Model) -> list[Convolution]:
    """Every convolution of ``model``, in order, those of control flow last. What can't be rewritten has its decision already.

    Raises ``InputError`` where an attribute can't be what it is.
    """
    top, weights = set(model.graph), {name.rpartition(".")[0] for name in model.graph.initializers}
    found: list[Convolution] = []
    taken: dict[str, int] = {}
    nodes = list(model.graph.all_nodes())
    for i, node in enumerate(sorted(nodes, key=lambda node: node not in top)):
        check_attributes(node)
        if node.domain in PLAIN and node.op_type in ("Conv", "ConvTranspose", *QUANTIZED):
            name = _name(node, weights) or f"{node.op_type}_{i}"
            taken[name] = taken.get(name, 0) + 1
            name = name if taken[name] == 1 else f"{name}#{taken[name]}"
            found.append(_convolution(node, name, inside=node not in top))
    return found


def _name(node: ir.Node, weights: set[str]) -> str:
    known = node.metadata_props.get(MODULE) or module_of(node, weights)
    return known or (node.name or "").strip("/").replace("/", ".")


def _convolution(node: ir.Node, name: str, *, inside: bool) -> Convolution:
    """``inside``: in a branch or loop of another node."""
    data, weight = node.inputs[0], node.inputs[3 if node.op_type == "QLinearConv" else 1]
    assert data is not None
    assert weight is not None
    get = node.attributes.get_ints
    shape = ints(weight.shape)
    kernel = tuple(get("kernel_shape", shape[2:])) or (1,)  # one axis, where nothing says how many
    ndim = len(kernel)
    transposed = node.op_type == "ConvTranspose"
    strides, dilations = tuple(get("strides", [1] * ndim)), tuple(get("dilations", [1] * ndim))
    pads = tuple(get("pads", [0] * 2 * ndim))
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    groups = node.attributes.get_int("group", 1)
    extra = tuple(get("output_padding", [0] * ndim))
    first, second = (*shape[:2], 0, 0)[:2]
    second *= groups
    channels = (first, second) if transposed else (second, first)
    geometry = ConvGeometry(*channels, kernel, strides, pads[:ndim], dilations, groups, extra, transposed=transposed)
    decision = UNDECIDED
    if inside:
        decision = Decision(False, "control-flow", "inside a control-flow node; only the main graph is rewritten")
    elif node.op_type in QUANTIZED:
        decision = Decision(False, "quantized", node.op_type)
    elif not shape or ndim not in (1, 2, 3):
        decision = Decision(False, "no-rule", "the file doesn't say the shape of its weight")
    elif auto != "NOTSET" or "output_shape" in node.attributes:
        decision = Decision(False, "no-rule", "its crops can't be told from its auto_pad or output_shape")
    elif weight.dtype is not None and weight.dtype not in TORCH_DTYPES:
        decision = Decision(False, "no-rule", f"its weight is {weight.dtype.name}; float32 and float16 are taken")
    root = root_of(weight)
    weight_name = root.name if ir.convenience.get_const_tensor(root) is not None else None
    shapes = tuple((ints(v.shape),) if v.shape is not None else () for v in (data, node.outputs[0]))
    dtype = TORCH_DTYPES.get(weight.dtype or ir.DataType.FLOAT, torch.float32)
    aliases = (node.name,) if node.name and node.name != name else ()
    site = Site(
        name, aliases, True, node.op_type, geometry, 1, shapes[0], shapes[1], name, weight_name, dtype,
        torch.device("cpu"), decision,
    )  # fmt: skip
    return Convolution(node, site, pads)


def ints(shape: ir.Shape | None) -> Ints:
    """Sizes; 0 for open ones."""
    return tuple(n if isinstance(n, int) else 0 for n in shape or ())
