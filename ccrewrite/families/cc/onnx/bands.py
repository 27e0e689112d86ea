"""The sums of one axis: what each output reads (``Band``), applied by a matrix or sample by sample, as ONNX nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ccrewrite.families.cc.onnx.axis import Axis
from ccrewrite.families.cc.onnx.kernel import Learned, weights
from ccrewrite.families.cc.onnx.resampling import Resampling
from ccrewrite.ir.onnx_nodes import Nodes


@dataclass(frozen=True)
class Data:
    """A tensor of ``rank`` axes, and which of them, ``at``, is resampled."""

    value: ir.Value
    rank: int
    at: int

    def last(self, op: Nodes, value: ir.Value) -> ir.Value:
        """``value``, of as many axes, with that axis and the last one exchanged."""
        if self.at == self.rank - 1:
            return value
        order = list(range(self.rank))
        order[self.at], order[-1] = self.rank - 1, self.at
        return op.Transpose(value, perm=order)


@dataclass(frozen=True)
class Band:
    """What the outputs read of the lattice: ``width`` samples (a number) from ``start`` on, (outputs, taps or 1, 1), with
    ``weights`` (outputs, taps or 1, width). ``taps``: the indices of the taps that have rows of their own."""

    taps: np.ndarray
    start: ir.Value
    width: ir.Value
    weights: ir.Value

    @classmethod
    def of(cls, op: Nodes, axis: Axis, r: Resampling, learned: Learned | None) -> Band:
        one_row = axis.transposed and not r.interleaved
        taps = np.zeros((1, 1), np.int64) if one_row else np.arange(axis.taps)[:, None]
        double = op.Mul(2, r.asked)
        places = op.Add(op.Mul(r.per_output, op.Unsqueeze(op.count(r.asked), [1, 2])), r.first)
        if r.per_tap is not None:
            places = op.Add(places, op.Mul(r.per_tap, taps))
        below = op.floor_divide(places, double)
        fraction = op.Div(op.real(op.Sub(places, op.Mul(below, double))), op.real(double))
        near = op.count(op.Add(r.reach, 2), op.Neg(r.reach))
        squeeze = op.Div(op.real(r.asked), op.real(r.stretch))
        distance = op.Mul(op.Sub(op.real(near), fraction), squeeze)
        # A transposed layer's outputs are at -distance from their places on the lattice.
        values = weights(op, op.Neg(distance) if r.interleaved else distance, taps, axis.profile, squeeze, learned)
        start = op.Sub(below, r.reach)
        if r.interleaved:  # places are the same for every tap, weights are not
            start = op.Add(start, np.zeros((1, axis.taps, 1), np.int64))
        return cls(taps, start, op.size(near, 0), values)


def by_matrix(op: Nodes, x: Data, axis: Axis, r: Resampling, band: Band) -> ir.Value:
    """One product with a matrix of all outputs: for short axes."""
    places: ir.Value = op.count(r.size)
    if r.interleaved:
        places = op.Add(op.Mul(axis.stride, places), axis.dilation * band.taps)
    index = op.Sub(op.Sub(places, r.low), band.start)
    inside = op.And(op.GreaterOrEqual(index, 0), op.Less(index, band.width))
    index = op.Max(0, op.Min(index, op.Sub(band.width, 1)))
    matrix = op.Where(inside, op.GatherElements(band.weights, index, axis=2), 0.0)
    columns = r.size
    if r.interleaved:
        matrix, columns = op.Transpose(matrix, perm=[0, 2, 1]), op.Mul(columns, axis.taps)
    # (outputs * taps, samples), or (outputs, samples * taps)
    matrix = op.Cast(op.Reshape(matrix, op.Concat([-1], op.Unsqueeze(columns, [0]), axis=0)), to=axis.dtype)
    if x.at == x.rank - 2:
        return op.MatMul(matrix, x.value)
    return x.last(op, op.MatMul(x.last(op, x.value), op.Transpose(matrix, perm=[1, 0])))


def by_samples(op: Nodes, x: Data, axis: Axis, r: Resampling, band: Band) -> ir.Value:
    """Each output's own samples, gathered and summed: for long axes, where that matrix would be mostly zeros."""
    lattice = op.Add(op.Add(band.start, op.count(band.width)), r.low)
    if r.interleaved:
        ahead = op.Sub(lattice, axis.dilation * band.taps)
        index = op.floor_divide(ahead, axis.stride)
        fits = op.Equal(op.Mul(index, axis.stride), ahead)
    else:
        index, fits = lattice, None
    inside = op.And(op.GreaterOrEqual(index, 0), op.Less(index, r.size))
    inside = inside if fits is None else op.And(inside, fits)
    values = op.Where(inside, band.weights, 0.0)
    columns = op.Max(0, op.Min(index, op.Sub(r.size, 1)))
    if r.interleaved:
        columns = op.Add(op.Mul(columns, axis.taps), band.taps)
    read = op.Mul(band.width, axis.taps) if r.interleaved else band.width
    shape = op.Concat([-1], op.Unsqueeze(read, [0]), axis=0)
    values, columns = op.Reshape(values, shape), op.Reshape(columns, shape)
    found = op.Gather(x.last(op, x.value), columns, axis=x.rank - 1)
    found = op.Mul(found, op.Cast(values, to=axis.dtype))
    return x.last(op, op.ReduceSum(found, [-1], keepdims=0))
