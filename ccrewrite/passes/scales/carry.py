"""How each operation of a graph carries the grids of its arguments: ``carried``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import cast

from torch import fx

from ccrewrite.ir.calls import node_call
from ccrewrite.ir.geometry import per_axis
from ccrewrite.passes.scales.grids import Grid, Grids, Merged, broadcast, then, windowed
from ccrewrite.passes.scales.nodes import named_arguments, packet_of, shape_of, window_axes

GridsOf = Callable[[object], Grids]
"""The grids of a node that was carried already."""


def carried(node: fx.Node, of: GridsOf) -> Grids:
    """The grids of what ``node`` gives."""
    call = node_call(node)
    if call is not None:
        geometry = call.geometry([int(n) for n in shape_of(call.weight)])
        maps = [geometry.axis_map(a) for a in range(geometry.ndim)]
        return windowed(of(call.input), len(shape_of(node)), [(m.step, m.origin) for m in maps])
    rule = RULES.get(packet_of(node))
    if rule is not None:
        return rule(node, of)
    return broadcast(shape_of(node), [(shape_of(source), of(source)) for source in node.all_input_nodes])


def _pool(node: fx.Node, of: GridsOf) -> Grids:
    ndim = window_axes(node)
    names = ["kernel_size", "stride", "padding", *(["dilation"] if "max" in packet_of(node) else [])]
    given = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
    kernel = per_axis(given["kernel_size"], ndim, "kernel_size")
    stride = per_axis(given.get("stride") or kernel, ndim, "stride")
    padding = per_axis(given.get("padding", 0), ndim, "padding")
    dilation = per_axis(given.get("dilation", 1), ndim, "dilation")
    maps = [(Fraction(s), Fraction(d * (k - 1), 2) - p) for k, s, p, d in zip(kernel, stride, padding, dilation, strict=True)]
    return windowed(of(node.args[0]), len(shape_of(node)), maps)


def _stretch(node: fx.Node, of: GridsOf) -> Grids:
    """Adaptive pools, interpolation, pixel shuffles: the same interval with another number of samples, or (``align_corners``)
    the same first and last sample, or (a scale factor, as torch has it) the same first sample's edge."""
    source, given = cast(fx.Node, node.args[0]), named_arguments(node)
    ndim = window_axes(node) or len(shape_of(node)) - 2
    factors = given.get("scale_factors") or [None] * ndim
    sizes = list(zip(shape_of(source), shape_of(node), strict=True))[-ndim:]
    maps: list[tuple[Fraction, Fraction]] = []
    for (before, after), factor in zip(sizes, factors, strict=True):
        if given.get("align_corners") and after > 1:
            maps.append((Fraction(int(before) - 1, int(after) - 1), Fraction(0)))
        else:
            step = Fraction(int(before), int(after)) if factor is None else 1 / Fraction(factor)
            maps.append((step, (step - 1) / 2))
    return windowed(of(source), len(shape_of(node)), maps)


def _pad(node: fx.Node, of: GridsOf) -> Grids:
    grids, pads = list(of(node.args[0])), cast("Sequence[int]", node.args[1])
    for back, low in enumerate(pads[::2], 1):
        grids[-back] = then(grids[-back], 1, -int(low))
    return tuple(grids)


def _slice(node: fx.Node, of: GridsOf) -> Grids:
    given = named_arguments(node)
    grids, axis = list(of(node.args[0])), cast(int, given.get("dim", 0))
    start, size = given.get("start") or 0, int(shape_of(node.args[0])[axis])
    start = min(max(start + size if start < 0 else start, 0), size)
    grids[axis] = then(grids[axis], given.get("step", 1), start)
    return tuple(grids)


def _permute(node: fx.Node, of: GridsOf) -> Grids:
    grids = of(node.args[0])
    if packet_of(node) == "permute":
        return tuple(grids[d] for d in cast("Sequence[int]", node.args[1]))
    one, other = cast("tuple[int, int]", node.args[1:3])
    swapped = list(grids)
    swapped[one], swapped[other] = grids[other], grids[one]
    return tuple(swapped)


def _reshape(node: fx.Node, of: GridsOf) -> Grids:
    """Dimensions that stay whole, are merged, or are what a merged one was made of."""
    parts: list[tuple[int, Grid | None]] = []
    for size, grid in zip(shape_of(node.args[0]), of(node.args[0]), strict=True):
        parts += grid if isinstance(grid, tuple) else [(int(size), grid)]
    grids: list[Grid | Merged | None] = []
    spans = _spans([size for size, _ in parts])
    for start, size in _spans(shape_of(node)):
        inside = tuple(p for p, (at, n) in zip(parts, spans, strict=True) if n > 1 and start <= at and at * n <= start * size)
        whole = math.prod(n for n, _ in inside) == size and inside
        grids.append((inside[0][1] if len(inside) == 1 else inside) if whole else None)
    return tuple(grids)


def _spans(shape: Sequence[int]) -> list[tuple[int, int]]:
    """For each dimension the number of elements of those before it, and its size."""
    spans: list[tuple[int, int]] = []
    before = 1
    for n in shape:
        spans.append((before, int(n)))
        before *= int(n)
    return spans


def _cat(node: fx.Node, of: GridsOf) -> Grids:
    sources, rank = cast("Sequence[fx.Node]", node.args[0]), len(shape_of(node))
    axis = cast(int, node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % rank
    candidates = [of(source) for source in sources]
    return tuple(candidates[0][d] if d == axis else next((g[d] for g in candidates if g[d]), None) for d in range(rank))


def _all_but_last(node: fx.Node, of: GridsOf) -> Grids:
    grids, rank = of(node.args[0]), len(shape_of(node))
    return (*grids[:-1], None) if len(grids) == rank else (None,) * rank


RULES: dict[str, Callable[[fx.Node, GridsOf], Grids]] = {
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
