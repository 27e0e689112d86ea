"""Functional convolutions of a ``GraphModule``: ``conv(x, w, b, ...) -> sampling(x, w, b, ...)``, and back."""

from __future__ import annotations

from typing import cast

from torch import Tensor, fx
from torch.fx.node import Argument

from ccrewrite.errors import InputError
from ccrewrite.families.adopt import HOSTED, Samplings, hosted_by
from ccrewrite.families.reroute import at_path
from ccrewrite.families.sampling import Sampling
from ccrewrite.families.sites import suffix_of
from ccrewrite.ir.calls import FUNCTIONS, Call, node_call, uncast
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.sites import Site
from ccrewrite.ir.torch_private import submodules_of

STACK = "nn_module_stack"
"""Where torch keeps the modules that a node was traced in."""


def graphs_of(module: fx.GraphModule) -> list[fx.Graph]:
    """The graph that runs, and others that ``module`` keeps beside it (one for training, one for evaluation)."""
    return list({id(g): g for g in (module.graph, *vars(module).values()) if isinstance(g, fx.Graph)}.values())


def nodes_of(module: fx.GraphModule, site: Site, weight: Tensor | None) -> list[fx.Node]:
    """The nodes of ``module``'s graphs that make the calls of ``site``."""
    return [node for graph in graphs_of(module) for node in graph.nodes if _makes(node, module, site, weight)]


def reroute_nodes_(module: fx.GraphModule, key: str, sampling: Sampling, site: Site, weight: Tensor | None) -> None:
    """Make the nodes of ``site`` call ``sampling``, registered as ``ccrewrite.<key>``. In place."""
    nodes = nodes_of(module, site, weight)
    if not nodes:
        raise InputError(
            f"{site.name}: no node of the graph makes the call that the run made; is the graph stale? recompile it"
        )
    if hosted_by(module) is None:
        module.add_module(HOSTED, Samplings().train(module.training))
    cast(Samplings, hosted_by(module)).put(key, sampling, suffix_of(site.name, site.module))
    for node in nodes:
        call = cast(Call[fx.Node], node_call(node))  # now: its input may be a node just replaced
        arguments = (call.input, call.weight, call.bias)
        with node.graph.inserting_before(node):
            new = node.graph.call_module(f"{HOSTED}.{key}", arguments, cast("dict[str, Argument]", call.torch_arguments()))
        _replace(node, new)
        # As if it had been traced there: export tells by this which module a node comes from.
        new.meta[STACK] = {**node.meta.get(STACK, {}), new.target: (new.target, type(sampling))}
    module.recompile()


def restore_nodes_(module: fx.GraphModule, key: str | None = None) -> int:
    """Give the nodes that call a sampling (of one key, or all) their torch function again; returns how many samplings."""
    samplings = hosted_by(module)
    if samplings is None:
        return 0
    keys = list(samplings) if key is None else [key]
    for node in [node for graph in graphs_of(module) for node in graph.nodes]:
        if node.op == "call_module" and node.target in {f"{HOSTED}.{k}" for k in keys}:
            sampling = cast(Sampling, module.get_submodule(node.target))
            function = FUNCTIONS[sampling.transposed, sampling.ndim]
            with node.graph.inserting_before(node):
                new = node.graph.call_function(function, node.args, dict(node.kwargs))
            _replace(node, new)
            new.meta[STACK] = {n: entry for n, entry in node.meta.get(STACK, {}).items() if n != node.target}
    for k in keys:
        del samplings[k]
    if not samplings:
        del submodules_of(module)[HOSTED]
    module.recompile()
    return len(keys)


def _makes(node: fx.Node, module: fx.GraphModule, site: Site, weight: Tensor | None) -> bool:
    """Whether ``node`` makes calls of ``site``."""
    call = node_call(node)
    if call is None:
        return False
    source = uncast(call.weight)
    value = at_path(module, cast(str, source.target)) if source.op == "get_attr" else None
    if value is not weight:
        return False
    # A computed weight's shape is not in the graph: its channels and kernel are taken from the site.
    g = site.geometry
    channels = (g.in_channels, g.out_channels) if g.transposed else (g.out_channels, g.in_channels)
    shape = (channels[0], channels[1] // g.groups, *g.kernel_size) if value is None else value.shape
    return _comparable(call.geometry(shape)) == _comparable(g)


def _comparable(geometry: ConvGeometry) -> tuple[object, ...]:
    g = geometry
    return g.transposed, g.kernel_size, g.stride, g.padding, g.dilation, g.groups, g.output_padding


def _replace(old: fx.Node, new: fx.Node) -> None:
    new.meta.update(old.meta)
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)
