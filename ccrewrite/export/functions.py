"""Convolutions of ccrewrite's as operators of their own in an ONNX graph, domain ``ccrewrite``: what they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ccrewrite.export.graph import put_instead_
from ccrewrite.export.nodes import Nodes
from ccrewrite.export.resampling import Axis, Tensors, resampled

DOMAIN = "ccrewrite"
FUNCTIONS_SINCE = 8
"""Version of ONNX's file format."""


@dataclass(frozen=True)
class CCConv:
    """``ccrewrite::CCConv(x, weight, bias, native, asked, *learned)``: a CC layer with the output size ``asked`` (an int64 for
    each axis), where its convolution would give ``native``. ``learned``: for each axis the shift's vector (where there is a
    shift), the gain and the layers of its network."""

    axes: tuple[Axis, ...]
    group: int
    layers: int = 0
    """Tensors of each axis' network."""
    shifted: bool = False

    name = "CCConv"

    def inputs(self) -> list[str]:
        """Their names."""
        shift = ["shift"] if self.shifted else []
        learned = [[f"gain{a}", *(f"layer{a}_{i}" for i in range(self.layers))] for a in range(len(self.axes))]
        names = ["x", "weight", "bias", "native", "asked"]
        return names + (shift + [n for axis in learned for n in axis] if self.layers else [])

    def body(self, op: Nodes, inputs: Sequence[ir.Value | None]) -> ir.Value:
        """The nodes, in ``op``, and the value that they end in."""
        x, weight, bias, native, asked, *learned = inputs
        assert x is not None
        assert native is not None
        assert asked is not None
        ndim, transposed = len(self.axes), self.axes[0].transposed
        tensors: list[Tensors | None] = [None] * ndim
        if self.layers:
            shift = learned.pop(0) if self.shifted else None
            for a in range(ndim):
                gain, *layers = (v for v in learned[a * (self.layers + 1) : (a + 1) * (self.layers + 1)] if v is not None)
                tensors[a] = Tensors(op.Gather(shift, a, axis=0) if shift is not None else None, tuple(layers), gain)
        taps = [axis.taps for axis in self.axes]
        if transposed:
            plain = not self.layers
            x = op.ConvTranspose(
                x,
                weight,
                strides=[axis.stride for axis in self.axes] if plain else taps,
                dilations=[axis.dilation for axis in self.axes] if plain else [1] * ndim,
                group=self.group,
            )
        for a, axis in enumerate(self.axes):
            sizes = op.Gather(native, a, axis=0), op.Gather(asked, a, axis=0)
            x = resampled(op, x, ndim + 2, a + 2, axis, *sizes, tensors[a])
        if not transposed:
            return op.Conv(x, weight, bias, strides=taps, group=self.group)
        return x if bias is None else op.Add(x, op.Unsqueeze(bias, list(range(1, ndim + 1))))


@dataclass(frozen=True)
class DclsConv:
    """``ccrewrite::DclsConv(x, weight, bias, positions)``: a convolution whose taps lie at ``positions`` in its window, of
    shape (spatial axes, filters or 1, channels or 1, taps), in samples from the window's first; between samples it is linear.
    ``pads``: of the window, first those at the low ends."""

    weight: tuple[int, ...]
    """Its shape."""
    window: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    group: int
    dtype: int = ir.DataType.FLOAT.value

    name = "DclsConv"

    def inputs(self) -> list[str]:
        """Their names."""
        return ["x", "weight", "bias", "positions"]

    def body(self, op: Nodes, inputs: Sequence[ir.Value | None]) -> ir.Value:
        """The nodes, in ``op``, and the value that they end in."""
        x, weight, bias, positions = inputs
        assert weight is not None
        axes = range(3, 3 + len(self.window))
        grid: ir.Value | None = None
        for a, size in enumerate(self.window):
            places = op.Max(0.0, op.Min(op.Gather(positions, a, axis=0), float(size - 1)))
            distance = op.Abs(op.Sub(op.Unsqueeze(places, [3]), np.arange(size, dtype=np.float32)))
            along = op.Relu(op.Sub(1.0, distance))
            others = [other for other in axes if other != a + 3]
            along = op.Unsqueeze(along, others) if others else along
            grid = along if grid is None else op.Mul(grid, along)
        taps = op.Reshape(op.real(weight), [*self.weight[:2], 1, -1])
        kernel = op.Reshape(op.MatMul(taps, op.Reshape(grid, [0, 0, 0, -1])), [*self.weight[:2], *self.window])
        kernel = op.Cast(kernel, to=self.dtype)
        return op.Conv(x, kernel, bias, strides=self.strides, pads=self.pads, group=self.group)


Operator = CCConv | DclsConv


def expand_(model: ir.Model, operators: Mapping[str, Operator], *, functions: bool) -> None:
    """Every node of the domain, whose ``key`` says which of ``operators`` it is, as the nodes that it is made of; or, with
    ``functions``, as a call of a model-local function."""
    known: dict[Operator, str] = {}
    for node in list(model.graph.all_nodes()):
        if node.domain == DOMAIN:
            operator = operators[node.attributes.get_string("key", "")]
            if functions:
                call_(model, node, operator, known)
            else:
                op = Nodes()
                out = operator.body(op, list(node.inputs))
                put_instead_(node, list(op.nodes), out)
    if not functions:
        model.opset_imports.pop(DOMAIN, None)


def call_(model: ir.Model, node: ir.Node, operator: Operator, known: dict[Operator, str]) -> None:
    """Make ``node`` a call of the function that ``operator`` is; ``known``: those that ``model`` has, by name."""
    if operator not in known:
        count = sum(type(o) is type(operator) for o in known)
        known[operator] = f"{operator.name}_{count + 1}" if count else operator.name
        function = _function(operator, known[operator], model.opset_imports[""])
        model.functions[function.identifier()] = function
    node.op_type = known[operator]
    node.attributes.pop("key", None)
    model.opset_imports[DOMAIN] = 1
    model.ir_version = max(model.ir_version, FUNCTIONS_SINCE)


def _function(operator: Operator, name: str, opset: int) -> ir.Function:
    inputs = [ir.Value(name=n) for n in operator.inputs()]
    op = Nodes()
    out = operator.body(op, inputs)
    graph = ir.Graph(inputs, [out], nodes=list(op.nodes), opset_imports={"": opset})
    return ir.Function(DOMAIN, name, graph=graph, attributes=[])
