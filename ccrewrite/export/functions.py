"""Operators of families in an ONNX graph, domain ``ccrewrite``: as the nodes that they are made of, or as functions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from ccrewrite.export.graph import free_name, put_instead_
from ccrewrite.export.kept import Calls
from ccrewrite.export.metadata import MODULE
from ccrewrite.families.onnx import DOMAIN, OnnxOperator
from ccrewrite.ir.onnx_nodes import Nodes

ALWAYS = ("x", "weight", "bias")
FUNCTIONS_SINCE = 8
"""Version of ONNX's file format."""


class Functions:
    """The functions of ``model``, one for each operator that is called."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.known: dict[tuple[OnnxOperator, tuple[str, ...]], str] = {}

    def call_(self, node: ir.Node, operator: OnnxOperator, tensors: Sequence[str]) -> None:
        """Make ``node`` a call of the function that is ``operator``. ``tensors``: what it takes after x, weight and bias."""
        names = (*ALWAYS, *tensors)
        given = tuple(n for n, v in zip(names, node.inputs, strict=False) if v is not None)
        key = operator, given
        if key not in self.known:
            self.known[key] = self._free(operator.name)
            self._define(self.known[key], operator, names, given)
        node.op_type = self.known[key]
        node.attributes.pop("key", None)
        self.model.opset_imports[DOMAIN] = 1
        self.model.ir_version = max(self.model.ir_version, FUNCTIONS_SINCE)

    def _free(self, name: str) -> str:
        taken = {f.name for f in self.model.functions.values()}
        others = (f"{name}_{i}" for i in itertools.count(2))
        return next(n for n in itertools.chain([name], others) if n not in taken)

    def _define(self, name: str, operator: OnnxOperator, names: Sequence[str], given: Sequence[str]) -> None:
        op, inputs = Nodes(), [ir.Value(name=n) for n in names]
        out = body(op, operator, [v if v.name in given else None for v in inputs], names[len(ALWAYS) :])
        graph = ir.Graph(inputs, [out], nodes=list(op.nodes), opset_imports={"": self.model.opset_imports[""]})
        function = ir.Function(DOMAIN, name, graph=graph, attributes=[])
        self.model.functions[function.identifier()] = function


def body(op: Nodes, operator: OnnxOperator, inputs: Sequence[ir.Value | None], tensors: Sequence[str]) -> ir.Value:
    """What ``operator`` makes of a node's ``inputs``: x, weight, bias, and then those called ``tensors``."""
    x, weight, bias, *more = inputs
    assert x is not None
    assert weight is not None
    named = {name: value for name, value in zip(tensors, more, strict=True) if value is not None}
    return operator.body(op, x, weight, bias, named)


def expand_(model: ir.Model, calls: Calls, *, functions: bool) -> None:
    """Every node of the domain, whose ``key`` says which of ``calls`` it is, as the nodes that it is made of; or, with
    ``functions``, as a call of a function of the model."""
    known = Functions(model)
    for node in list(model.graph.all_nodes()):
        if node.domain != DOMAIN:
            continue
        call = calls[node.attributes.get_string("key", "")]
        node.metadata_props[MODULE] = call.site
        if functions:
            known.call_(node, call.operator, call.tensors)
        else:
            op = Nodes()
            out = body(op, call.operator, list(node.inputs), call.tensors)
            put_instead_(node, list(op.nodes), out)
    if not functions:
        model.opset_imports.pop(DOMAIN, None)


def name_tensors_(model: ir.Model, tensors: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Call the initializers ``tensors`` (their names so far -> site and name) ``<site>.<name>``: new name -> site."""
    found: dict[str, str] = {}
    for before, (site, name) in tensors.items():
        value = model.graph.initializers.get(before)
        if value is not None:
            value.name = free_name(model, f"{site}.{name}")
            found[value.name] = site
    return found
