"""An exported graph in which all that doesn't depend on the input is computed."""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torch.utils._pytree import tree_any, tree_map_only


def constants_computed(module: fx.GraphModule) -> fx.GraphModule:
    """``module``, of one input, with all that doesn't depend on that input computed and kept as buffers.

    >>> import torch
    >>> class Scaled(nn.Module):
    ...     def forward(self, x: Tensor) -> Tensor:
    ...         return x * torch.arange(3).sum()
    >>> exported = torch.export.export(Scaled(), (torch.ones(2),)).module()
    >>> [node.name for node in constants_computed(exported).graph.nodes]
    ['x', 'constant_0', 'mul_tensor', 'output']
    """
    root, graph = nn.Module(), fx.Graph()
    values: dict[fx.Node, Any] = {}
    nodes: dict[fx.Node, fx.Node] = {}

    def known(argument: Any) -> Any:
        return tree_map_only(fx.Node, lambda n: values[n], argument)

    def placed(node: fx.Node) -> fx.Node:
        if node not in nodes:
            name = f"constant_{len(list(root.buffers()))}"
            root.register_buffer(name, values[node].detach().clone())
            nodes[node] = graph.get_attr(name)
        return nodes[node]

    for node in module.graph.nodes:
        if node.op == "get_attr":
            values[node] = _attribute(module, str(node.target))
        elif node.op == "call_function":
            arguments: object = (node.args, dict(node.kwargs))
            if not tree_any(lambda a: isinstance(a, fx.Node) and a not in values, arguments):
                args, kwargs = known(arguments)
                values[node] = node.target(*args, **kwargs)
            else:
                args, kwargs = tree_map_only(fx.Node, placed, arguments)
                nodes[node] = graph.call_function(node.target, args, kwargs)
        elif node.op == "placeholder":
            nodes[node] = graph.placeholder(str(node.target))
        elif node.op == "output":
            (result,) = node.all_input_nodes
            graph.output(placed(result))
    graph.eliminate_dead_code()
    return fx.GraphModule(root, graph)


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value
