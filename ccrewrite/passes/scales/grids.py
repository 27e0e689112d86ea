"""Where the samples of every tensor in a graph lie in the inputs: affine maps, carried from operation to operation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from ccrewrite.families.reroute import Rerouted
from ccrewrite.families.resizable import ResizableSampling
from ccrewrite.ir.calls import as_call
from ccrewrite.ir.geometry import AxisMap, ConvGeometry, per_axis


@dataclass(frozen=True)
class Grid:
    """One dimension of a tensor: sample ``y`` lies at ``origin + step * y`` of an input's dimension, which has ``size``."""

    size: int
    step: Fraction = Fraction(1)
    origin: Fraction = Fraction(0)

    def then(self, step: Fraction | int, origin: Fraction | int) -> Grid:
        """The grid of samples that lie at ``origin + step * y`` of this one."""
        return replace(self, step=self.step * step, origin=self.origin + self.step * origin)

    def centre(self, samples: int) -> Fraction:
        return self.origin + self.step * Fraction(samples - 1, 2)

    @property
    def middle(self) -> Fraction:
        """The centre of the input."""
        return Fraction(self.size - 1, 2)


Merged = tuple[tuple[int, Grid | None], ...]
"""Several dimensions in one, as after a flatten: their sizes and grids."""
Grids = tuple[Grid | Merged | None, ...]
"""One entry for each dimension of a tensor; None where its samples have no place in the input (channels)."""


class Follower:
    """Carries the grids of the inputs through a graph."""

    def __init__(self, model: nn.Module, graph: fx.Graph, inputs: Sequence[fx.Node]) -> None:
        self.model, self.graph, self.inputs = model, graph, inputs
        self.grids: dict[fx.Node, Grids] = {}
        self.calls = self.sampling_calls()

    def run(self) -> Iterator[tuple[fx.Node, tuple[Grid, ...], str | None]]:
        """The outputs of convolutions and pools, with the grids of their spatial axes, and the path of the CC sampling where
        a node ends the call of one."""
        for node in self.graph.nodes:
            if node.op == "placeholder":
                if node in self.inputs:
                    self.grids[node] = tuple(Grid(int(n)) for n in shape_of(node))
            elif node.op == "call_function" and shape_of(node):
                path, last, sampling = self.calls.get(node, (None, None, None))
                if sampling is None:
                    self.grids[node] = self.follow(node)
                    ndim = _window_axes(node)
                elif node is last:  # what the call gives
                    self.grids[node] = self.follow_sampling(cast(str, path), node, sampling)
                    ndim = sampling.ndim
                else:
                    continue
                spatial = self.grids[node][-ndim:] if ndim else ()
                if spatial and all(isinstance(g, Grid) for g in spatial):
                    yield node, cast("tuple[Grid, ...]", spatial), path

    def follow(self, node: fx.Node) -> Grids:
        call = as_call(node.target, node.args, node.kwargs)
        if call is not None:
            geometry = call.geometry([int(n) for n in shape_of(call.weight)])
            return self.windowed(node, call.input, [geometry.axis_map(a) for a in range(geometry.ndim)])
        rule = RULES.get(packet_of(node))
        return rule(self, node) if rule else self.elementwise(node)

    def windowed(self, node: fx.Node, source: fx.Node, maps: Sequence[AxisMap | tuple[Fraction, Fraction]]) -> Grids:
        """The last dimensions through coordinate maps (or (step, origin) pairs); the others have no place."""
        grids = self.of(source)
        pairs = [(m.step, m.origin) if isinstance(m, AxisMap) else m for m in maps]
        last = [_then(g, *pair) for g, pair in zip(grids[-len(pairs) :], pairs, strict=True)]
        return (*(None for _ in range(len(shape_of(node)) - len(last))), *last)

    def elementwise(self, node: fx.Node) -> Grids:
        """Dimensions that keep their size keep their samples, aligned at the last one, as broadcasting has it."""
        shape = shape_of(node)
        grids: list[Grid | Merged | None] = [None] * len(shape)
        for source in node.all_input_nodes:
            for back, (size, grid) in enumerate(zip(reversed(shape_of(source)), reversed(self.of(source)), strict=True), 1):
                if back <= len(shape) and int(shape[-back]) == int(size) and grids[-back] is None:
                    grids[-back] = grid
        return tuple(grids)

    def of(self, node: Any) -> Grids:
        known = self.grids.get(node)
        return (None,) * len(shape_of(node)) if known is None else known

    def sampling_calls(self) -> dict[fx.Node, tuple[str, fx.Node, ResizableSampling]]:
        """The nodes of each call of a CC sampling, which may be products with matrices -> its path, last node and itself."""
        samplings = {n: m for n, m in self.model.named_modules() if isinstance(m, ResizableSampling)}
        calls: dict[str, list[fx.Node]] = {}
        for node in self.graph.nodes:
            path = next((p for p in reversed(_stack(node)) if p.split("@")[0] in samplings), None)
            if path is not None and node.op == "call_function":
                calls.setdefault(path, []).append(node)
        return {n: (p.split("@")[0], nodes[-1], samplings[p.split("@")[0]]) for p, nodes in calls.items() for n in nodes}

    def follow_sampling(self, path: str, last: fx.Node, sampling: ResizableSampling) -> Grids:
        inside = {n for n, (p, end, _) in self.calls.items() if p == path and end is last}
        outside = (s for n in self.graph.nodes if n in inside for s in n.all_input_nodes if s not in inside)
        source = next(s for s in outside if any(self.of(s)[-sampling.ndim :]))
        geometry = _geometry(self.model, path, sampling)
        if not sampling.resized and geometry.padding_mode != "zeros":  # its layer has padded the input
            geometry = replace(geometry, padding=(0,) * geometry.ndim)
        sizes, asked = ([int(n) for n in shape_of(n)[-sampling.ndim :]] for n in (source, last))
        maps = [sampling.axis_map(geometry, a, size, asked[a]) for a, size in enumerate(sizes)]
        return self.windowed(last, source, maps)


def _geometry(model: nn.Module, path: str, sampling: ResizableSampling) -> ConvGeometry:
    """Of the convolution that a sampling stands for: its layer's, or that of the call which is routed to it."""
    if path.endswith("sampling"):
        layer = model.get_submodule(path.removesuffix("sampling").removesuffix("."))
        return ConvGeometry.from_module(cast(Any, layer))
    host_path, _, key = path.rpartition("ccrewrite.")
    host = cast(Rerouted, model.get_submodule(host_path.removesuffix(".")))
    route = next(r for r in host.ccrewrite_routes if r.sampling == f"ccrewrite.{key}")
    zeros = (0,) * sampling.ndim
    return ConvGeometry(
        1, 1, route.kernel_size, route.stride, route.padding, route.dilation, 1, zeros, "zeros", route.transposed
    )


# Operations that do more than map sample to sample.


def _then(grid: Grid | Merged | None, step: Fraction | int, origin: Fraction | int) -> Grid | None:
    return grid.then(step, origin) if isinstance(grid, Grid) else None


def _pool(follower: Follower, node: fx.Node) -> Grids:
    ndim = _window_axes(node)
    names = ["kernel_size", "stride", "padding", *(["dilation"] if "max" in packet_of(node) else [])]
    given = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
    kernel = per_axis(given["kernel_size"], ndim, "kernel_size")
    stride = per_axis(given.get("stride") or kernel, ndim, "stride")
    padding = per_axis(given.get("padding", 0), ndim, "padding")
    dilation = per_axis(given.get("dilation", 1), ndim, "dilation")
    maps = [(Fraction(s), Fraction(d * (k - 1), 2) - p) for k, s, p, d in zip(kernel, stride, padding, dilation, strict=True)]
    return follower.windowed(node, cast(fx.Node, node.args[0]), maps)


def _stretch(follower: Follower, node: fx.Node) -> Grids:
    """Adaptive pools, interpolation, pixel shuffles: the same interval with another number of samples, or (``align_corners``)
    the same first and last sample, or (a scale factor, as torch has it) the same first sample's edge."""
    source, given = cast(fx.Node, node.args[0]), _named_arguments(node)
    ndim = _window_axes(node) or len(shape_of(node)) - 2
    factors = given.get("scale_factors") or [None] * ndim
    sizes = list(zip(shape_of(source), shape_of(node), strict=True))[-ndim:]
    maps: list[tuple[Fraction, Fraction]] = []
    for (before, after), factor in zip(sizes, factors, strict=True):
        if given.get("align_corners") and after > 1:
            maps.append((Fraction(int(before) - 1, int(after) - 1), Fraction(0)))
        else:
            step = Fraction(int(before), int(after)) if factor is None else 1 / Fraction(factor)
            maps.append((step, (step - 1) / 2))
    return follower.windowed(node, source, maps)


def _pad(follower: Follower, node: fx.Node) -> Grids:
    grids, pads = list(follower.of(node.args[0])), cast("Sequence[Any]", node.args[1])
    for back, low in enumerate(pads[::2], 1):
        grids[-back] = _then(grids[-back], 1, -int(low))
    return tuple(grids)


def _slice(follower: Follower, node: fx.Node) -> Grids:
    given = _named_arguments(node)
    grids, axis = list(follower.of(node.args[0])), given.get("dim", 0)
    start, size = given.get("start") or 0, int(shape_of(node.args[0])[axis])
    start = min(max(start + size if start < 0 else start, 0), size)
    grids[axis] = _then(grids[axis], given.get("step", 1), start)
    return tuple(grids)


def _permute(follower: Follower, node: fx.Node) -> Grids:
    grids = follower.of(node.args[0])
    if packet_of(node) == "permute":
        return tuple(grids[d] for d in cast("Sequence[int]", node.args[1]))
    one, other = cast("tuple[int, int]", node.args[1:3])
    swapped = list(grids)
    swapped[one], swapped[other] = grids[other], grids[one]
    return tuple(swapped)


def _reshape(follower: Follower, node: fx.Node) -> Grids:
    """Dimensions that stay whole, are merged, or are what a merged one was made of."""
    parts: list[tuple[int, Grid | None]] = []
    for size, grid in zip(shape_of(node.args[0]), follower.of(node.args[0]), strict=True):
        parts += grid if isinstance(grid, tuple) else [(int(size), grid)]
    grids: list[Grid | Merged | None] = []
    spans = _spans([size for size, _ in parts])
    for start, size in _spans(shape_of(node)):
        inside = tuple(p for p, (at, n) in zip(parts, spans, strict=True) if n > 1 and start <= at and at * n <= start * size)
        whole = math.prod(n for n, _ in inside) == size and inside
        grids.append((inside[0][1] if len(inside) == 1 else inside) if whole else None)
    return tuple(grids)


def _spans(shape: Sequence[Any]) -> list[tuple[int, int]]:
    """For each dimension the number of elements of those before it, and its size."""
    spans: list[tuple[int, int]] = []
    before = 1
    for n in shape:
        spans.append((before, int(n)))
        before *= int(n)
    return spans


def _cat(follower: Follower, node: fx.Node) -> Grids:
    sources = cast("Sequence[fx.Node]", node.args[0])
    axis = cast(int, node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % len(shape_of(node))
    candidates = [follower.of(s) for s in sources]
    return tuple(
        candidates[0][d] if d == axis else next((g[d] for g in candidates if g[d]), None) for d in range(len(shape_of(node)))
    )


def _all_but_last(follower: Follower, node: fx.Node) -> Grids:
    grids = follower.of(node.args[0])
    return (*grids[:-1], None) if len(grids) == len(shape_of(node)) else (None,) * len(shape_of(node))


RULES: dict[str, Callable[[Follower, fx.Node], Grids]] = {
    **{f"{kind}_pool{n}d": _pool for kind in ("max", "avg") for n in (1, 2, 3)},
    **{f"adaptive_{kind}_pool{n}d": _stretch for kind in ("max", "avg") for n in (1, 2, 3)},
    **{f"upsample_{kind}": _stretch for kind in ("linear1d", "bilinear2d", "bicubic2d", "trilinear3d")},
    **{f"upsample_nearest{exact}{n}d": _stretch for exact in ("", "_exact") for n in (1, 2, 3)},
    **{f"_upsample_nearest_exact{n}d": _stretch for n in (1, 2, 3)},
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle"), _stretch),
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    **{f"{kind}_pad{n}d": _pad for kind in ("reflection", "replication") for n in (1, 2, 3)},
    "slice": _slice,
    **dict.fromkeys(("permute", "transpose"), _permute),
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view"), _reshape),
    "cat": _cat,
    **dict.fromkeys(("linear", "matmul", "mm", "bmm", "addmm", "scaled_dot_product_attention", "einsum"), _all_but_last),
}
"""Operator -> how it carries grids; all others are taken as elementwise."""


def _window_axes(node: fx.Node) -> int:
    """Spatial axes of a convolution or pool; 0 for any other operation."""
    call = as_call(node.target, node.args, node.kwargs)
    if call is not None:
        return len(shape_of(call.weight)) - 2
    name = packet_of(node)
    return int(name[-2]) if "_pool" in name and name.endswith("d") and name[-2].isdigit() else 0


def packet_of(node: fx.Node) -> str:
    """``aten.max_pool2d.default`` -> ``max_pool2d``."""
    target = node.target
    return target._schema.name.split("::")[-1] if isinstance(target, torch._ops.OpOverload) else str(target)


def _named_arguments(node: fx.Node) -> dict[str, Any]:
    schema = cast(Any, node.target)._schema
    return {a.name: v for a, v in zip(schema.arguments, node.args, strict=False)} | dict(node.kwargs)


def shape_of(node: Any) -> Sequence[Any]:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.shape if isinstance(value, Tensor) else ()


def _stack(node: fx.Node) -> list[str]:
    return [path for path, _ in node.meta.get("nn_module_stack", {}).values()]


def module_of(node: fx.Node) -> str:
    stack = _stack(node)
    return stack[-1].split("@")[0] if stack else ""
