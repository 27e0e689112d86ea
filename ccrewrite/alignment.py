"""Where the samples of each feature map lie in the input, and where they should: ``misalignment(model, inputs)``.

A strided convolution with k3 s2 p1 puts its outputs on every second input sample from the first on: over an even number of
samples their centre is half a sample before the input's, and each further layer doubles the distance (arXiv 2006.11120).
Exact, as fractions: the coordinate maps of the graph's operations are affine, and compose.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, cast, overload

import torch
from tabulate import tabulate
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from ccrewrite.calls import as_call
from ccrewrite.capture import Inputs, Model, as_module, capture
from ccrewrite.errors import InputError
from ccrewrite.geometry import AxisMap, ConvGeometry, Ints, per_axis
from ccrewrite.nn.cc import CCSampling
from ccrewrite.nn.reroute import Rerouted


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


@dataclass(frozen=True)
class FeatureMap:
    """The output of one convolution or pool, per spatial axis: ``size``; ``step`` from sample to sample, ``centre`` and
    ``expected`` centre, in input samples (pixel 0 is the first one's centre)."""

    module: str
    operation: str
    node: str
    size: Ints
    step: tuple[Fraction, ...]
    centre: tuple[Fraction, ...]
    expected: tuple[Fraction, ...]

    @property
    def offset(self) -> tuple[Fraction, ...]:
        """By how much the centre is off, in input samples."""
        return tuple(c - e for c, e in zip(self.centre, self.expected, strict=True))


class Misalignment(Sequence[FeatureMap]):
    """The feature maps of a model in the order of the run. ``print`` it, or take ``to_json()``."""

    def __init__(self, maps: Sequence[FeatureMap]) -> None:
        self._maps = tuple(maps)

    @overload
    def __getitem__(self, key: int) -> FeatureMap: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[FeatureMap, ...]: ...
    def __getitem__(self, key: int | slice) -> FeatureMap | tuple[FeatureMap, ...]:
        return self._maps[key]

    def __len__(self) -> int:
        return len(self._maps)

    @property
    def worst(self) -> Fraction:
        """The largest distance of a centre from where it should be, along any axis, in input samples."""
        return max((abs(o) for m in self for o in m.offset), default=Fraction(0))

    def rows(self) -> list[dict[str, str]]:
        """The table's cells, by column."""
        return [
            {
                "module": m.module,
                "operation": m.operation,
                "size": "x".join(map(str, m.size)),
                "step": _shown(m.step),
                "centre": _shown(m.centre),
                "should be": _shown(m.expected),
                "off by": _shown(m.offset),
            }
            for m in self
        ]

    def to_json(self) -> str:
        """``{"maps": [{"module", "operation", "node", "size", "step", "centre", "expected", "offset"}]}``, in floats."""
        names = ("step", "centre", "expected", "offset")
        plain = ("module", "operation", "node", "size")
        maps = [{**{n: getattr(m, n) for n in plain}, **{n: [float(v) for v in getattr(m, n)] for n in names}} for m in self]
        return json.dumps({"maps": maps}, indent=2)

    def __str__(self) -> str:
        return tabulate(self.rows(), headers="keys", disable_numparse=True)


def misalignment(model: Model, example_inputs: Any) -> Misalignment:
    """Where the output of each convolution and pool of ``model`` is centred, in input samples, and where it should be.

    Works on plain models and on rewritten ones, at the sizes that they are set to. What a CC site has learnt (its shift) is
    not counted: the table shows the grid, not the kernel on it. Outputs whose samples have no place in an input (after a
    flatten, or of a network of tokens) are left out.

    Raises ``InputError`` where the model can't be exported, for without a graph there is nothing to follow.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 7, stride=2, padding=3), nn.MaxPool2d(3, 2, 1))
    >>> [(m.size, *map(str, m.centre), *map(str, m.expected)) for m in misalignment(model, torch.randn(1, 3, 224, 224))]
    [((112, 112), '111', '111', '223/2', '223/2'), ((56, 56), '110', '110', '223/2', '223/2')]
    """
    module, inputs = as_module(model), Inputs.of(example_inputs)
    program = capture(module, inputs)
    if program.graph is None or program.how != "export":
        why = program.note or "it is a graph without shapes"
        raise InputError(f"misalignment follows the exported graph of a model, and {type(module).__name__} has none: {why}")
    modules = {call.node: call.module for call in program.calls}
    placeholders = program.graph.graph.find_nodes(op="placeholder")
    count = len(tree_leaves((inputs.args, inputs.kwargs)))  # they come last, after parameters, buffers and constants
    return Misalignment(_Follower(module, program.graph.graph, placeholders[-count:], modules).maps())


class _Follower:
    """Carries the grids of the inputs through a graph."""

    def __init__(self, model: nn.Module, graph: fx.Graph, inputs: Sequence[fx.Node], modules: dict[str | None, str]) -> None:
        self.model, self.graph, self.inputs, self.modules = model, graph, inputs, modules
        self.grids: dict[fx.Node, Grids] = {}

    def maps(self) -> list[FeatureMap]:
        maps: list[FeatureMap] = []
        resized = self.resized_calls()
        for node in self.graph.nodes:
            if node.op == "placeholder":
                if node in self.inputs:
                    self.grids[node] = tuple(Grid(int(n)) for n in _shape(node))
            elif node.op == "call_function" and _shape(node):
                ours = resized.get(node)
                if ours is None:
                    self.grids[node] = self.follow(node)
                elif node is ours[1]:  # the last node of the sampling's call: its output
                    self.grids[node] = self.follow_sampling(*ours)
                ndim = ours[2].ndim if ours and node is ours[1] else 0 if ours else _window_axes(node)
                spatial = self.grids.get(node, ())[-ndim:] if ndim else ()
                if spatial and all(isinstance(g, Grid) for g in spatial):
                    maps.append(self.map(node, cast("tuple[Grid, ...]", spatial), ours[0] if ours else None))
        return maps

    def map(self, node: fx.Node, grids: tuple[Grid, ...], sampling: str | None) -> FeatureMap:
        size = tuple(int(n) for n in _shape(node)[-len(grids) :])
        path = self.modules.get(node.name) or _module_of(node) if sampling is None else sampling
        return FeatureMap(
            module=path.removesuffix("sampling").removesuffix("."),
            operation="convolution" if sampling is not None else _packet(node),
            node=node.name,
            size=size,
            step=tuple(g.step for g in grids),
            centre=tuple(g.centre(n) for g, n in zip(grids, size, strict=True)),
            expected=tuple(g.middle for g in grids),
        )

    def follow(self, node: fx.Node) -> Grids:
        call = as_call(node.target, node.args, node.kwargs)
        if call is not None:
            geometry = call.geometry([int(n) for n in _shape(call.weight)])
            return self.windowed(node, call.input, [geometry.axis_map(a) for a in range(geometry.ndim)])
        rule = RULES.get(_packet(node))
        return rule(self, node) if rule else self.elementwise(node)

    def windowed(self, node: fx.Node, source: fx.Node, maps: Sequence[AxisMap | tuple[Fraction, Fraction]]) -> Grids:
        """The last dimensions through coordinate maps (or (step, origin) pairs); those before the channels as they are."""
        grids = self.of(source)
        pairs = [(m.step, m.origin) if isinstance(m, AxisMap) else m for m in maps]
        last = [_then(g, *pair) for g, pair in zip(grids[-len(pairs) :], pairs, strict=True)]
        return (*(None for _ in range(len(_shape(node)) - len(last))), *last)

    def elementwise(self, node: fx.Node) -> Grids:
        """Dimensions that keep their size keep their samples, aligned at the last one, as broadcasting has it."""
        shape = _shape(node)
        grids: list[Grid | Merged | None] = [None] * len(shape)
        for source in node.all_input_nodes:
            for back, (size, grid) in enumerate(zip(reversed(_shape(source)), reversed(self.of(source)), strict=True), 1):
                if back <= len(shape) and int(shape[-back]) == int(size) and grids[-back] is None:
                    grids[-back] = grid
        return tuple(grids)

    def of(self, node: Any) -> Grids:
        known = self.grids.get(node)
        return (None,) * len(_shape(node)) if known is None else known

    def resized_calls(self) -> dict[fx.Node, tuple[str, fx.Node, CCSampling]]:
        """The nodes of each call of a CC sampling that does not run on its native grid -> its path, last node and itself."""
        samplings = {n: m for n, m in self.model.named_modules() if isinstance(m, CCSampling) and m.resized}
        calls: dict[str, list[fx.Node]] = {}
        for node in self.graph.nodes:
            path = next((p for p in reversed(_stack(node)) if p.split("@")[0] in samplings), None)
            if path is not None and node.op == "call_function":
                calls.setdefault(path, []).append(node)
        return {n: (p.split("@")[0], nodes[-1], samplings[p.split("@")[0]]) for p, nodes in calls.items() for n in nodes}

    def follow_sampling(self, path: str, last: fx.Node, sampling: CCSampling) -> Grids:
        inside = {n for n, (p, end, _) in self.resized_calls().items() if p == path and end is last}
        outside = (s for n in self.graph.nodes if n in inside for s in n.all_input_nodes if s not in inside)
        source = next(s for s in outside if any(self.of(s)[-sampling.ndim :]))
        geometry = _geometry(self.model, path, sampling)
        sizes, asked = ([int(n) for n in _shape(n)[-sampling.ndim :]] for n in (source, last))
        native = geometry.output_size(sizes)
        pairs: list[tuple[Fraction, Fraction]] = []
        for axis in range(sampling.ndim):
            resized = geometry.axis_map(axis).resized(native[axis], asked[axis])
            centred = sampling.alignment == "centred"
            pairs.append((resized.step, resized.centred_origin(sizes[axis], asked[axis]) if centred else resized.origin))
        return self.windowed(last, source, pairs)


def _geometry(model: nn.Module, path: str, sampling: CCSampling) -> ConvGeometry:
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


def _pool(follower: _Follower, node: fx.Node) -> Grids:
    ndim = _window_axes(node)
    names = ["kernel_size", "stride", "padding", *(["dilation"] if "max" in _packet(node) else [])]
    given = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
    kernel = per_axis(given["kernel_size"], ndim, "kernel_size")
    stride = per_axis(given.get("stride") or kernel, ndim, "stride")
    padding = per_axis(given.get("padding", 0), ndim, "padding")
    dilation = per_axis(given.get("dilation", 1), ndim, "dilation")
    maps = [(Fraction(s), Fraction(d * (k - 1), 2) - p) for k, s, p, d in zip(kernel, stride, padding, dilation, strict=True)]
    return follower.windowed(node, cast(fx.Node, node.args[0]), maps)


def _stretch(follower: _Follower, node: fx.Node) -> Grids:
    """Adaptive pools, interpolation, pixel shuffles: the same interval with another number of samples, or (``align_corners``)
    the same first and last sample, or (a scale factor, as torch has it) the same first sample's edge."""
    source, given = cast(fx.Node, node.args[0]), _named_arguments(node)
    ndim = _window_axes(node) or len(_shape(node)) - 2
    factors = given.get("scale_factors") or [None] * ndim
    sizes = list(zip(_shape(source), _shape(node), strict=True))[-ndim:]
    maps: list[tuple[Fraction, Fraction]] = []
    for (before, after), factor in zip(sizes, factors, strict=True):
        if given.get("align_corners") and after > 1:
            maps.append((Fraction(int(before) - 1, int(after) - 1), Fraction(0)))
        else:
            step = Fraction(int(before), int(after)) if factor is None else 1 / Fraction(factor)
            maps.append((step, (step - 1) / 2))
    return follower.windowed(node, source, maps)


def _pad(follower: _Follower, node: fx.Node) -> Grids:
    grids, pads = list(follower.of(node.args[0])), cast("Sequence[Any]", node.args[1])
    for back, low in enumerate(pads[::2], 1):
        grids[-back] = _then(grids[-back], 1, -int(low))
    return tuple(grids)


def _slice(follower: _Follower, node: fx.Node) -> Grids:
    given = _named_arguments(node)
    grids, axis = list(follower.of(node.args[0])), given.get("dim", 0)
    start, size = given.get("start") or 0, int(_shape(node.args[0])[axis])
    start = min(max(start + size if start < 0 else start, 0), size)
    grids[axis] = _then(grids[axis], given.get("step", 1), start)
    return tuple(grids)


def _permute(follower: _Follower, node: fx.Node) -> Grids:
    grids = follower.of(node.args[0])
    if _packet(node) == "permute":
        return tuple(grids[d] for d in cast("Sequence[int]", node.args[1]))
    one, other = cast("tuple[int, int]", node.args[1:3])
    swapped = list(grids)
    swapped[one], swapped[other] = grids[other], grids[one]
    return tuple(swapped)


def _reshape(follower: _Follower, node: fx.Node) -> Grids:
    """Dimensions that stay whole, are merged, or are what a merged one was made of."""
    parts: list[tuple[int, Grid | None]] = []
    for size, grid in zip(_shape(node.args[0]), follower.of(node.args[0]), strict=True):
        parts += grid if isinstance(grid, tuple) else [(int(size), grid)]
    grids: list[Grid | Merged | None] = []
    spans = _spans([size for size, _ in parts])
    for start, size in _spans(_shape(node)):
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


def _cat(follower: _Follower, node: fx.Node) -> Grids:
    sources = cast("Sequence[fx.Node]", node.args[0])
    axis = cast(int, node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % len(_shape(node))
    candidates = [follower.of(s) for s in sources]
    return tuple(
        candidates[0][d] if d == axis else next((g[d] for g in candidates if g[d]), None) for d in range(len(_shape(node)))
    )


def _all_but_last(follower: _Follower, node: fx.Node) -> Grids:
    grids = follower.of(node.args[0])
    return (*grids[:-1], None) if len(grids) == len(_shape(node)) else (None,) * len(_shape(node))


RULES: dict[str, Callable[[_Follower, fx.Node], Grids]] = {
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
        return len(_shape(call.weight)) - 2
    name = _packet(node)
    return int(name[-2]) if "_pool" in name and name.endswith("d") and name[-2].isdigit() else 0


def _packet(node: fx.Node) -> str:
    """``aten.max_pool2d.default`` -> ``max_pool2d``."""
    target = node.target
    return target._schema.name.split("::")[-1] if isinstance(target, torch._ops.OpOverload) else str(target)


def _named_arguments(node: fx.Node) -> dict[str, Any]:
    schema = cast(Any, node.target)._schema
    return {a.name: v for a, v in zip(schema.arguments, node.args, strict=False)} | dict(node.kwargs)


def _shape(node: Any) -> Sequence[Any]:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.shape if isinstance(value, Tensor) else ()


def _stack(node: fx.Node) -> list[str]:
    return [path for path, _ in node.meta.get("nn_module_stack", {}).values()]


def _module_of(node: fx.Node) -> str:
    stack = _stack(node)
    return stack[-1].split("@")[0] if stack else ""


def _shown(values: Sequence[Fraction]) -> str:
    return " x ".join(f"{float(v):g}" for v in values)
