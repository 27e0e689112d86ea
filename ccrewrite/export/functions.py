"""Convolutions of ccrewrite's as operators of their own in an ONNX graph, domain ``ccrewrite``: what they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ccrewrite.export.nodes import Nodes
from ccrewrite.export.resampling import Axis, Tensors, resampled

DOMAIN = "ccrewrite"


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


def expand_(model: ir.Model, operators: Mapping[str, CCConv], *, functions: bool) -> None:
    """Every node of the domain, whose ``key`` says which of ``operators`` it is, as the nodes that it is made of; or, with
    ``functions``, as a call of a model-local function."""
    from ccrewrite.export.graph import put_instead_

    known: dict[CCConv, str] = {}
    for node in list(model.graph.all_nodes()):
        if node.domain != DOMAIN:
            continue
        operator = operators[node.attributes.get_string("key", "")]
        if not functions:
            op = Nodes()
            out = operator.body(op, list(node.inputs))
            put_instead_(node, list(op.nodes), out)
            continue
        if operator not in known:
            known[operator] = operator.name if not known else f"{operator.name}_{len(known) + 1}"
            function = _function(operator, known[operator], model.opset_imports[""])
            model.functions[function.identifier()] = function
        node.op_type = known[operator]
        del node.attributes["key"]
    model.opset_imports.pop(DOMAIN, None)
    if known:
        model.opset_imports[DOMAIN] = 1


def _function(operator: CCConv, name: str, opset: int) -> ir.Function:
    inputs = [ir.Value(name=n) for n in operator.inputs()]
    op = Nodes()
    out = operator.body(op, inputs)
    graph = ir.Graph(inputs, [out], nodes=list(op.nodes), opset_imports={"": opset})
    return ir.Function(DOMAIN, name, graph=graph, attributes=[])
