"""Layers at another output size, folded: exported at the input size at hand, everything but the input's way computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_any, tree_map_only

from ccrewrite.families.adopt import RewrittenConv
from ccrewrite.families.reroute import Rerouted
from ccrewrite.folded.cuts import ResizedConv
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.geometry import Ints
from ccrewrite.passes.scales.sizes import ChoosesSizes
from ccrewrite.passes.verify import outputs_of

Shapes = dict[str, tuple[int, ...]]
"""Path of a layer that asks for a size -> the shape that it is called with; absent where there is none, or several."""


def settle_sizes_(model: nn.Module, inputs: Inputs) -> None:
    """Where a hook chooses output sizes for the inputs at hand (``ccrewrite.resize_``), let it choose them once, for good."""
    for key, hook in list(model._forward_pre_hooks.items()):
        if isinstance(hook, ChoosesSizes):
            hook(model, inputs.args, inputs.kwargs)  # pyright: ignore[reportCallIssue]
            del model._forward_pre_hooks[key]
            model._forward_pre_hooks_with_kwargs.pop(key, None)


def resized_shapes(model: nn.Module, inputs: Inputs) -> Shapes:
    """What the layers that ask for a size are called with."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, RewrittenConv) and m.sampling.resized}
    seen: dict[str, list[Any]] = {name: [] for name in layers}
    handles = [m.register_forward_pre_hook(_recorder(seen[n]), with_kwargs=True) for n, m in layers.items()]
    if layers:
        try:
            outputs_of(model, inputs)
        finally:
            for handle in handles:
                handle.remove()
    shapes: Shapes = {}
    for name, calls in seen.items():
        layer = layers[name]
        hooks = layer._forward_hooks or layer._forward_pre_hooks
        if calls and calls[0] is not None and len(set(calls)) == 1 and not hooks and not isinstance(layer, Rerouted):
            shapes[name] = calls[0]
    return shapes


def _recorder(calls: list[Any]) -> Any:
    def record(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        plain = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        calls.append(tuple(args[0].shape) if plain else None)

    return record


def resized_layer(layer: RewrittenConv, shape: Sequence[int]) -> ResizedConv | None:
    """What ``layer`` computes for inputs of this shape (any batch), as plain operators; None where torch can't export it."""
    ndim = layer.sampling.ndim
    batched = len(shape) == ndim + 2
    like = next(layer.sampling.parameters())
    example = torch.zeros(2, *shape[1:], dtype=like.dtype, device=like.device) if batched else like.new_zeros(tuple(shape))
    dynamic = ({0: torch.export.Dim.DYNAMIC},) if batched else None
    training = layer.training
    try:
        layer.eval()
        program = torch.export.export(layer, (example,), dynamic_shapes=dynamic, strict=False)
    except Exception:  # whatever export dislikes: the layer stays as it is, and the caller says so
        return None
    finally:
        layer.train(training)
    size: Ints = tuple(shape[-ndim:])
    return ResizedConv(constants_computed(program.module()), size).train(training)


def constants_computed(module: fx.GraphModule) -> fx.GraphModule:
    """``module``, of one input, with all that doesn't depend on that input computed and kept as buffers.

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
            arguments: Any = (node.args, dict(node.kwargs))
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
