"""A file that pays nothing at its native sizes: the graph as it was in one branch, the rewritten one in the other.

One ``If`` around the whole graph, so that a runtime fuses and lays out the native one as it does the original. Both read the
same weights. For constants a runtime takes only those that are in a branch itself, so the native branch has a ``Reshape`` of
each, which is computed when the file is loaded.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Hashable, Iterable, Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass

from ccrewrite.ir.onnx_nodes import Nodes

SMALL = 64
"""Elements: constants of fewer are copied into the native branch."""
CHOICE = "ccrewrite.native"
"""Name of that ``If``."""
BRANCHES_SINCE = 8
"""Version of ONNX's file format."""


def branched(native: ir.Model, opened: ir.Model, asked: Iterable[str], learned: Collection[str] = ()) -> ir.Model:
    """A model that is ``opened`` where one of its inputs ``asked`` has a number above 0, or one of its initializers ``learned``
    isn't what it is now, and else ``native``, with the same other inputs and outputs. ``asked`` may be left out. Tensors that
    both have are there once. Takes both models apart."""
    asked = set(asked)
    sizes = [_copy(value) for value in opened.graph.inputs if value.name in asked]
    inputs = [_copy(value) for value in native.graph.inputs]
    outputs = [_copy(value) for value in native.graph.outputs]
    given = {str(value.name): value for value in (*inputs, *sizes)}
    constants: dict[Hashable, ir.Value] = {}
    graphs = [_branch(model.graph, given, constants, learned) for model in (opened, native)]
    _keep_constants_(graphs[1], constants.values(), learned)
    for value in sizes:
        value.const_value = ir.tensor(np.zeros([int(str(n)) for n in value.shape or ()], np.int64), name=value.name)
    for value in outputs:
        value.shape = None if value.shape is None else open_shape(value.shape)
    op = Nodes()
    changed = [op.Not(_equal(op, v, v.const_value.numpy())) for v in constants.values() if v.name in learned and v.const_value]
    if sizes:
        every = op.Concat(*sizes, axis=0) if len(sizes) > 1 else sizes[0]
        changed.append(op.Greater(op.ReduceMax(every, keepdims=0), 0))
    branches = [ir.AttrGraph(name, graph) for name, graph in zip(("then_branch", "else_branch"), graphs, strict=True)]
    choice = ir.Node("", "If", [functools.reduce(op.Or, changed)], branches, outputs=outputs, name=CHOICE)
    graph = ir.Graph(
        [*inputs, *sizes],
        outputs,
        nodes=[*op.nodes, choice],
        initializers=[v for v in (*constants.values(), *inputs, *sizes) if v.const_value is not None and v.uses()],
        opset_imports={**native.opset_imports, **opened.opset_imports},
        name=native.graph.name or "graph",
    )
    model = ir.Model(
        graph,
        ir_version=max(native.ir_version, opened.ir_version, BRANCHES_SINCE),
        producer_name=native.producer_name,
        producer_version=native.producer_version,
        functions=[*{**native.functions, **opened.functions}.values()],
        metadata_props={**native.metadata_props},
    )
    return NameFixPass()(model).model


def taken(model: ir.Model, *, changed: bool) -> ir.Model:
    """``model`` without its ``If``, in its place the branch that is taken where something ``changed``, or where nothing has."""
    choice = next((node for node in model.graph if node.name == CHOICE), None)
    if choice is not None:
        branch = choice.attributes["then_branch" if changed else "else_branch"].as_graph()
        outputs, nodes = list(branch.outputs), list(branch)
        branch.outputs.clear()
        branch.remove(nodes)
        model.graph.insert_before(choice, nodes)
        for before, after in zip(choice.outputs, outputs, strict=True):
            before.replace_all_uses_with(after, replace_graph_outputs=True)
        model.graph.remove(choice, safe=True)
    return NameFixPass()(model).model


def _equal(op: Nodes, value: ir.Value, numbers: np.ndarray) -> ir.Value:
    """Whether ``value`` has these ``numbers``."""
    same = op.Cast(op.Equal(value, numbers), to=ir.DataType.INT32.value)
    return op.Cast(op.ReduceMin(same, keepdims=0), to=ir.DataType.BOOL.value)


def open_shape(shape: ir.Shape) -> ir.Shape:
    """Its names; its numbers may be others at another size."""
    return ir.Shape([None if isinstance(n, int) else n for n in shape])


def _copy(value: ir.Value) -> ir.Value:
    return ir.Value(name=value.name, shape=value.shape, type=value.type, const_value=value.const_value)


def _branch(
    graph: ir.Graph, given: Mapping[str, ir.Value], constants: dict[Hashable, ir.Value], learned: Collection[str]
) -> ir.Graph:
    """``graph``'s nodes as a graph that reads what is around it: ``given`` in place of its inputs, ``constants`` in place of
    its initializers; those that are not there yet are added."""
    for value in [*graph.inputs, *graph.initializers.values()]:
        there = given.get(str(value.name))
        if there is None:
            tensor = value.const_value
            assert tensor is not None
            numbers = tensor.dtype, tuple(tensor.shape), hashlib.sha256(tensor.tobytes()).digest()
            key = value.name if value.name in learned else numbers
            if key not in constants:
                constants[key] = _copy(value)
                if any(value.name == other.name for other in constants.values() if other is not constants[key]):
                    constants[key].name = f"{value.name}.native"
            there = constants[key]
        value.replace_all_uses_with(there, replace_graph_outputs=True)
    outputs, nodes = list(graph.outputs), list(graph)
    graph.outputs.clear()
    graph.remove(nodes)
    for i, value in enumerate(outputs):
        if value.producer() is None:  # an input, or a constant
            nodes.append(ir.node("Identity", [value]))
            outputs[i] = nodes[-1].outputs[0]
            outputs[i].type = value.type
    for value in outputs:
        value.shape = None if value.shape is None else open_shape(value.shape)
    return ir.Graph([], outputs, nodes=nodes, name=graph.name or "branch")


def _keep_constants_(graph: ir.Graph, constants: Iterable[ir.Value], learned: Collection[str]) -> None:
    """Let a branch have the constants around it as its own."""
    op = Nodes()
    for value in constants:
        tensor = value.const_value
        uses = [use for use in value.uses() if use.node.graph is graph]
        if tensor is None or value.name in learned or not uses:
            continue
        own = op.value(tensor.numpy()) if tensor.size < SMALL else op.Reshape(value, list(tensor.shape))
        for node, place in uses:
            node.replace_input_with(place, own)
    graph.insert_before(graph[0], list(op.nodes))
