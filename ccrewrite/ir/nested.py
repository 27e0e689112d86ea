"""Exported graphs with bodies inside: regions of autocast or another gradient mode, ``torch.cond``, ``torch.while_loop``.

Each body is a graph module that one node calls. Its placeholders are the last of that node's operands.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import cast

from torch import fx
from torch.utils._pytree import tree_leaves

from ccrewrite.ir.calls import uncast
from ccrewrite.ir.torch_private import submodules_of

REGIONS = ("wrap_with_autocast", "wrap_with_set_grad_enabled")
"""Operators whose body runs once, as if it stood where it is called."""


class Bodies:
    """Every node of a graph and of the bodies inside, in the order of the run.

    >>> import torch
    >>> class Region(torch.nn.Module):
    ...     def forward(self, x):
    ...         with torch.enable_grad():
    ...             return x.sin()
    >>> with torch.no_grad():
    ...     exported = torch.export.export(Region(), (torch.ones(2),))
    >>> [str(node.target) for node in Bodies(exported.graph_module).nodes if "sin" in str(node.target)]
    ['aten.sin.default']
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.operands: dict[fx.Node, fx.Node] = {}
        """Placeholder of a body -> the node outside whose value it gets."""
        self.callers: dict[fx.Graph, fx.Node] = {}
        """Graph of a body -> the node that calls it."""
        self.nodes = list(self._walk(module))

    def _walk(self, module: fx.GraphModule) -> Iterator[fx.Node]:
        for node in module.graph.nodes:
            for body in _bodies(module, node):
                self.callers[body.graph] = node
                inside = [n for n in body.graph.nodes if n.op == "placeholder"]
                operands = [n for n in tree_leaves((node.args, node.kwargs)) if n is not None]
                for placeholder, operand in zip(reversed(inside), reversed(operands), strict=False):
                    if isinstance(operand, fx.Node):
                        self.operands[placeholder] = operand
                yield from self._walk(body)
            yield node

    def origin(self, node: fx.Node) -> fx.Node:
        """What ``node`` is before any cast, and before it went into bodies or came out of regions."""
        while (before := self._before(uncast(node))) is not node:
            node = before
        return node

    def _before(self, node: fx.Node) -> fx.Node:
        if node in self.operands:
            return self.operands[node]
        if node.target is operator.getitem:
            caller, index = node.args
            for graph, called_by in self.callers.items():
                if called_by is caller and _name(called_by) in REGIONS:
                    return cast("tuple[fx.Node, ...]", graph.output_node().args[0])[cast(int, index)]
        return node

    def stack(self, node: fx.Node) -> Mapping[str, tuple[str, object]]:
        """The modules whose forward makes ``node``, outermost first; within a traced body those around its call."""
        found = node.meta.get("nn_module_stack")
        while not found and node.graph in self.callers:
            node = self.callers[node.graph]
            found = node.meta.get("nn_module_stack")
        return found or {}

    def control_flow(self, node: fx.Node) -> str:
        """The operator that decides whether, or how often, ``node`` runs, such as "cond"; empty where none does."""
        while (caller := self.callers.get(node.graph)) is not None:
            name = _name(caller)
            if name not in REGIONS:
                return name
            node = caller
        return ""


def _name(caller: fx.Node) -> str:
    return str(getattr(caller.target, "__name__", caller.target))


def _bodies(module: fx.GraphModule, node: fx.Node) -> list[fx.GraphModule]:
    """The graph modules that ``node`` calls."""
    if node.op != "call_function":
        return []
    attributes = [n.target for n in node.all_input_nodes if n.op == "get_attr"]
    found = (submodules_of(module).get(str(name)) for name in attributes)
    return [body for body in found if isinstance(body, fx.GraphModule)]
