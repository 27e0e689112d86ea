"""CC's ``bands.py`` as ONNX nodes: one axis of a CC layer at an output size that is known when the file runs.

Coordinates are int64 until a fraction within one sample is left. A short axis is resampled by a matrix, a long one sample by
sample: a matrix of all its outputs would be mostly zeros. What a tap contributes at a distance is CC's ``profile.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ccrewrite.export.nodes import Nodes
from ccrewrite.families.cc.profile import MAX_SHIFT, SUPPORT


@dataclass(frozen=True)
class Profile:
    """``ccrewrite.families.cc.profile.Along`` without its tensors."""

    basis: str
    twice_support: int
    extent: int = 0
    spacing: int = 1
    within: int = 0


@dataclass(frozen=True)
class Axis:
    """One axis of a convolution to be resampled, ``ResizedAxis`` of CC's ``resampling.py``. ``long``: sample by sample."""

    taps: int
    stride: int
    dilation: int
    low: int
    high: int
    profile: Profile
    transposed: bool = False
    centred: bool = False
    rescaled: bool = False
    long: bool = False
    mode: str = "zeros"
    dtype: int = ir.DataType.FLOAT.value
    """Of what is resampled."""


@dataclass(frozen=True)
class Tensors:
    """What was learned along one axis: ``shift`` (a number; None: none), the layers of its network, ``gain`` (taps,)."""

    shift: ir.Value | None
    layers: tuple[ir.Value, ...]
    gain: ir.Value


def resampled(
    op: Nodes, x: ir.Value, rank: int, at: int, axis: Axis, native: ir.Value, asked: ir.Value, tensors: Tensors | None
) -> ir.Value:
    """``x``, of ``rank`` axes, with the axis ``at`` resampled: a convolution's to ``asked`` times its taps, a transposed one's
    (its native outputs, uncropped, or what is learned, its taps side by side) to ``asked``."""
    k, s, d = axis.taps, axis.stride, axis.dilation
    spread = axis.transposed and tensors is not None
    size = op.size(x, at)
    samples = op.Div(size, k) if spread else size  # of the layer's input, or of what is read one by one
    around = d * (k - 1) - 2 * axis.low
    stretch = op.Max(native, asked)
    low: ir.Value | int = axis.low if axis.transposed else 0
    taps = np.arange(k)[:, None] if not axis.transposed or spread else np.zeros((1, 1), np.int64)
    if axis.transposed:
        inputs = samples if spread else op.Add(op.Div(op.Sub(size, d * (k - 1) + 1), s), 1)
        centre = op.Sub(op.Sub(native, 1 + around), op.Mul(s, op.Sub(inputs, 1)))
        start = op.Sub(native, asked)
        if axis.centred:
            start = op.Sub(start, op.Mul(centre, asked))
        slope, node = op.Mul(2, native), op.Mul(0, native)
    else:
        centre = op.Sub(op.Add(op.Mul(s, op.Sub(native, 1)), around + 1), samples)
        apart = native if axis.rescaled else stretch
        start = op.Sub(op.Add(op.Mul(around - s, asked), op.Mul(s, native)), op.Mul(d * (k - 1), apart))
        if axis.centred or axis.rescaled:
            start = op.Sub(start, op.Mul(centre, asked))
        if axis.rescaled and not axis.centred:
            start = op.Add(start, op.Mul(centre, native))
        slope, node = op.Mul(2 * s, native), op.Mul(2 * d, apart)
    double = op.Mul(2, asked)
    reach = op.Add(op.Div(op.Mul(axis.profile.twice_support, stretch), double), 1)

    if axis.mode != "zeros":
        last = op.Add(op.Add(op.Mul(slope, op.Sub(asked, 1)), start), op.Mul(node, k - 1))
        before = op.Max(0, op.Neg(op.Sub(op.floor_divide(start, double), reach)))
        after = op.Max(0, op.Sub(op.Add(op.floor_divide(last, double), op.Add(reach, 2)), samples))
        known = op.Where(op.Equal(native, asked), [-axis.low, axis.high], [-(2**31), 2**31])
        x = _extended(op, x, rank - at, at, axis, samples, before, after, known)
        low, samples = before, op.Add(samples, op.Add(before, after))

    # Places of taps: (outputs, taps or 1, 1).
    rows = op.Unsqueeze(op.count(asked), [1, 2])
    places = op.Add(op.Mul(slope, rows), start)
    if not axis.transposed:
        places = op.Add(places, op.Mul(node, taps))
    below = op.floor_divide(places, double)
    fraction = op.Div(op.real(op.Sub(places, op.Mul(below, double))), op.real(double))
    near = op.count(op.Add(reach, 2), op.Neg(reach))
    squeeze = op.Div(op.real(asked), op.real(stretch))
    distance = op.Mul(op.Sub(op.real(near), fraction), squeeze)
    weights = _weights(op, op.Neg(distance) if spread else distance, taps, axis.profile, squeeze, tensors)
    first = op.Sub(below, reach)
    if spread:  # they are the same for every tap, the weights are not
        first = op.Add(first, np.zeros((1, k, 1), np.int64))
    width = op.size(near, 0)
    if not axis.long:
        return _by_matrix(op, x, rank, at, axis, spread, weights, first, width, samples, low, taps)
    lattice = op.Add(op.Add(first, op.count(width)), low)
    if spread:
        ahead = op.Sub(lattice, d * taps)
        index = op.floor_divide(ahead, s)
        fits = op.Equal(op.Mul(index, s), ahead)
    else:
        index, fits = lattice, None
    inside = op.And(op.GreaterOrEqual(index, 0), op.Less(index, samples))
    inside = inside if fits is None else op.And(inside, fits)
    weights = op.Where(inside, weights, 0.0)
    columns = op.Max(0, op.Min(index, op.Sub(samples, 1)))
    if spread:
        columns = op.Add(op.Mul(columns, k), taps)
    shape = op.Concat([-1], op.Unsqueeze(width if not spread else op.Mul(width, k), [0]), axis=0)
    weights, columns = op.Reshape(weights, shape), op.Reshape(columns, shape)
    moved = _last(op, x, rank, at)
    found = op.Mul(op.Gather(moved, columns, axis=rank - 1), op.Cast(weights, to=axis.dtype))
    return _last(op, op.ReduceSum(found, [-1], keepdims=0), rank, at)


def _by_matrix(
    op: Nodes,
    x: ir.Value,
    rank: int,
    at: int,
    axis: Axis,
    spread: bool,
    weights: ir.Value,
    first: ir.Value,
    width: ir.Value,
    samples: ir.Value,
    low: ir.Value | int,
    taps: np.ndarray,
) -> ir.Value:
    """By the weights (outputs, taps, width) of the lattice from ``first`` on."""
    places: ir.Value = op.count(samples)
    if spread:
        places = op.Add(op.Mul(axis.stride, places), axis.dilation * taps)
    index = op.Sub(op.Sub(places, low), first)
    inside = op.And(op.GreaterOrEqual(index, 0), op.Less(index, width))
    index = op.Max(0, op.Min(index, op.Sub(width, 1)))
    matrix = op.Where(inside, op.GatherElements(weights, index, axis=2), 0.0)
    if spread:
        matrix = op.Transpose(matrix, perm=[0, 2, 1])
        columns = op.Mul(samples, axis.taps)
    else:
        columns = samples
    # (outputs * taps, samples), or (outputs, samples * taps)
    matrix = op.Cast(op.Reshape(matrix, op.Concat([-1], op.Unsqueeze(columns, [0]), axis=0)), to=axis.dtype)
    if at == rank - 2:
        return op.MatMul(matrix, x)
    return _last(op, op.MatMul(_last(op, x, rank, at), op.Transpose(matrix, perm=[1, 0])), rank, at)


def _last(op: Nodes, x: ir.Value, rank: int, at: int) -> ir.Value:
    """``x`` with the axis ``at`` and the last one exchanged."""
    if at == rank - 1:
        return x
    order = list(range(rank))
    order[at], order[-1] = rank - 1, at
    return op.Transpose(x, perm=order)


def _extended(
    op: Nodes,
    x: ir.Value,
    rank: int,
    at: int,
    axis: Axis,
    size: ir.Value,
    before: ir.Value,
    after: ir.Value,
    known: ir.Value,
) -> ir.Value:
    """``extend`` of CC's ``padding.py``; zeros further than ``known`` from the ends, for at its native size a layer pads by
    its padding alone. ``rank``: axes of ``x`` from ``at`` on."""
    samples = op.count(op.Add(size, after), op.Neg(before))
    low, high = op.Gather(known, 0, axis=0), op.Add(op.Gather(known, 1, axis=0), size)
    inside = op.And(op.GreaterOrEqual(samples, low), op.Less(samples, high))
    places = samples
    if axis.mode == "circular":
        places = op.Mod(places, size)
    elif axis.mode == "replicate":
        places = op.Max(0, op.Min(places, op.Sub(size, 1)))
    else:
        most = op.Sub(size, 1)
        places = op.Sub(most, op.Abs(op.Sub(op.Mod(places, op.Max(1, op.Mul(2, most))), most)))
    if rank > 1:
        inside = op.Unsqueeze(inside, list(range(1, rank)))
    return op.Mul(op.Gather(x, places, axis=at), op.Cast(inside, to=axis.dtype))


def _weights(
    op: Nodes, distance: ir.Value, taps: np.ndarray, profile: Profile, squeeze: ir.Value, tensors: Tensors | None
) -> ir.Value:
    """What the samples at ``distance`` (outputs, taps or 1, n) contribute; each row's sum is that of the native kernel."""
    if tensors is None:
        bump = _basis(op, profile.basis, distance)
        return op.Div(bump, op.ReduceSum(bump, [-1]))
    values, bump = _profile(op, distance, taps, profile, tensors)
    bump, values = op.Div(bump, op.ReduceSum(bump, [-1])), op.Mul(values, squeeze)
    # Not (gain - sum) * bump: OpenVINO subtracts sums over the last axis from the wrong elements of a constant.
    gain, sums = op.Unsqueeze(op.real(tensors.gain), [1]), op.ReduceSum(values, [-1])
    return op.Add(values, op.Sub(op.Mul(gain, bump), op.Mul(sums, bump)))


def _basis(op: Nodes, basis: str, distance: ir.Value) -> ir.Value:
    far = op.Abs(distance)
    if basis == "linear":
        return op.Relu(op.Sub(1.0, far))
    square = op.Mul(far, far)
    inner = op.Add(op.Mul(square, op.Sub(op.Mul(1.5, far), 2.5)), 1.0)
    outer = op.Add(op.Mul(far, op.Sub(op.Mul(far, op.Add(op.Mul(-0.5, far), 2.5)), 4.0)), 2.0)
    return op.Where(op.Less(far, 1.0), inner, op.Where(op.Less(far, 2.0), outer, 0.0))


def _profile(op: Nodes, distance: ir.Value, taps: np.ndarray, profile: Profile, tensors: Tensors) -> tuple[ir.Value, ir.Value]:
    """``ccrewrite.families.cc.profile.profile``."""
    z = distance
    if tensors.shift is not None:
        z = op.Sub(z, op.Max(-MAX_SHIFT, op.Min(op.real(tensors.shift), MAX_SHIFT)))
    bump = _basis(op, profile.basis, z)
    along = (profile.spacing * taps).astype(np.float32)
    if profile.extent:
        places = op.Add(z, along - (profile.extent - 1) / 2)
        return op.Mul(_taper(op, places, profile.extent), _network(op, places, tensors.layers)), bump
    near = op.Max(float(-SUPPORT), op.Min(z, float(SUPPORT)))
    window = op.Cos(op.Mul(near, math.pi / (2 * SUPPORT)))
    values = op.Add(bump, op.Mul(op.Mul(window, window), _network(op, z, tensors.layers)))
    if profile.within:
        start = _basis(op, profile.basis, distance)
        inside = _taper(op, op.Add(distance, along - np.float32(profile.spacing * (len(taps) - 1) / 2)), profile.within)
        values, bump = (op.Add(start, op.Mul(inside, op.Sub(v, start))) for v in (values, bump))
    return values, bump


def _taper(op: Nodes, places: ir.Value, extent: int) -> ir.Value:
    beyond = op.Max(0.0, op.Min(op.Sub(op.Abs(places), (extent - 1) / 2), 1.0))
    bell = op.Cos(op.Mul(beyond, math.pi / 2))
    return op.Mul(bell, bell)


def _network(op: Nodes, places: ir.Value, layers: Sequence[ir.Value]) -> ir.Value:
    """At ``places`` (outputs, taps or 1, n), for each tap: (outputs, taps, n)."""
    inner, bias, *middle, last, last_bias = (op.real(layer) for layer in layers)
    inner = op.Reshape(inner, [-1])
    hidden = op.Sin(op.Add(op.Mul(op.Unsqueeze(places, [3]), inner), bias))
    for weight, shift in zip(middle[::2], middle[1::2], strict=True):
        hidden = op.Sin(op.Add(op.MatMul(hidden, op.Transpose(weight, perm=[1, 0])), shift))
    found = op.Squeeze(op.MatMul(hidden, op.Unsqueeze(last, [2])), [3])
    return op.Add(found, op.Unsqueeze(last_bias, [1]))
