"""The grids of a model's inputs, followed through its exported graph to every convolution and pool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

from torch import fx, nn

from ccrewrite.families.adopt import HOSTED
from ccrewrite.families.sites import RewrittenSite, rewritten_sites
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.torch_private import ConvNd
from ccrewrite.passes.scales.carry import carried
from ccrewrite.passes.scales.grids import Grid, Grids, windowed
from ccrewrite.passes.scales.nodes import modules_of, shape_of, window_axes, without_call


@dataclass(frozen=True)
class SamplingCall:
    """One call of a site's sampling. Its ``nodes`` are whatever the sampling makes of a convolution: products with matrices,
    say."""

    site: RewrittenSite
    nodes: tuple[fx.Node, ...]

    @property
    def result(self) -> fx.Node:
        return self.nodes[-1]

    def arguments(self) -> Iterator[fx.Node]:
        inside = set(self.nodes)
        return (source for node in self.nodes for source in node.all_input_nodes if source not in inside)

    def geometry(self) -> ConvGeometry:
        """Of the convolution that the sampling stands for."""
        if self.site.key is not None:
            return self.site.sampling.geometry
        geometry = ConvGeometry.from_module(cast(ConvNd, self.site.module))
        if geometry.padding_mode != "zeros" and not self.site.sampling.resized:  # the layer has padded the input
            return replace(geometry, padding=(0,) * geometry.ndim)
        return geometry


class Follower:
    """Carries the grids of ``inputs`` through ``graph``, a model's. The call of a sampling counts as one operation."""

    def __init__(self, model: nn.Module, graph: fx.Graph, inputs: Sequence[fx.Node]) -> None:
        self.graph, self.inputs = graph, inputs
        self.grids: dict[fx.Node, Grids] = {}
        self.calls = {node: call for call in _sampling_calls(model, graph) for node in call.nodes}

    def run(self) -> Iterator[tuple[fx.Node, tuple[Grid, ...], RewrittenSite | None]]:
        """The outputs of convolutions and pools, with the grids of their spatial axes; and the site, where it is one's."""
        for node in self.graph.nodes:
            if node.op == "placeholder" and node in self.inputs:
                self.grids[node] = tuple(Grid(int(n)) for n in shape_of(node))
            if node.op != "call_function" or not shape_of(node):
                continue
            call = self.calls.get(node)
            if call is None:
                self.grids[node] = carried(node, self.of)
                ndim = window_axes(node)
            elif node is call.result:
                self.grids[node] = self.of_call(call)
                ndim = call.site.sampling.ndim
            else:
                continue
            spatial = self.grids[node][-ndim:] if ndim else ()
            if spatial and all(isinstance(g, Grid) for g in spatial):
                yield node, cast("tuple[Grid, ...]", spatial), None if call is None else call.site

    def of(self, node: object) -> Grids:
        known = self.grids.get(node) if isinstance(node, fx.Node) else None
        return (None,) * len(shape_of(node)) if known is None else known

    def of_call(self, call: SamplingCall) -> Grids:
        sampling, geometry = call.site.sampling, call.geometry()
        source = next(node for node in call.arguments() if any(self.of(node)[-sampling.ndim :]))
        sizes, asked = ([int(n) for n in shape_of(node)[-sampling.ndim :]] for node in (source, call.result))
        maps = [sampling.axis_map(geometry, a, size, asked[a]) for a, size in enumerate(sizes)]
        return windowed(self.of(source), len(shape_of(call.result)), [(m.step, m.origin) for m in maps])


def _sampling_calls(model: nn.Module, graph: fx.Graph) -> Iterator[SamplingCall]:
    sites = {_path(site): site for site in rewritten_sites(model).values()}
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        path = next((p for p in reversed(modules_of(node)) if without_call(p) in sites), None)
        if path is not None and node.op == "call_function":
            calls.setdefault(path, []).append(node)
    return (SamplingCall(sites[without_call(path)], tuple(nodes)) for path, nodes in calls.items())


def _path(site: RewrittenSite) -> str:
    """Of a site's sampling."""
    own = "sampling" if site.key is None else f"{HOSTED}.{site.key}"
    return f"{site.path}.{own}".removeprefix(".")
