"""The sums of one axis: what each output reads (``Band``), applied by banded matrices (``applied``), as ONNX nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ccrewrite.families.cc.onnx.axis import Axis
from ccrewrite.families.cc.onnx.kernel import Learned, weights
from ccrewrite.families.cc.onnx.resampling import Resampling
from ccrewrite.ir.onnx_nodes import Nodes

BLOCK = 32
"""Samples that the outputs of one matrix lie apart; at most, outputs that share a matrix."""
MANY = 64
"""Taps: the rows of an output that has more are shared among several matrices."""
FEW = 8
"""Of an output that has ``BLOCK`` to ``MANY`` taps too, if at least so many can share one: fewer read samples too often."""


def block_of(axis: Axis) -> tuple[int, int]:
    """How many outputs, and how many taps of each, share a matrix. A matrix has a row for each, and a column for every sample
    that one of them reads: where they lie far apart, it would be nearly all zeros."""
    if axis.transposed:
        return BLOCK, 1
    together = max(n for n in range(1, BLOCK + 1) if axis.taps % n == 0)
    few = axis.taps <= BLOCK or (axis.taps <= MANY and together < FEW)
    return (BLOCK // axis.stride, axis.taps) if few and axis.stride < BLOCK else (1, together)


@dataclass(frozen=True)
class Data:
    """A tensor of ``rank`` axes, and which of them, ``at``, is resampled."""

    value: ir.Value
    rank: int
    at: int

    def second_last(self, op: Nodes, value: ir.Value) -> ir.Value:
        """``value``, of as many axes, with that axis and the last one but one exchanged."""
        if self.at == self.rank - 2:
            return value
        order = list(range(self.rank))
        order[self.at], order[-2] = self.rank - 2, self.at
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


def applied(op: Nodes, x: Data, axis: Axis, r: Resampling, band: Band) -> ir.Value:
    """``x`` with its axis resampled, block by block: a small matrix for a few outputs (``block_of``) and the samples that they
    read. One of all outputs and all samples would be mostly zeros, and gigabytes of them where the axis is long."""
    columns, matrices = (_interleaved if r.interleaved else _side_by_side)(op, axis, r, band)
    values = x.second_last(op, x.value)
    at, shape = x.rank - 2, op.Shape(values)
    found = op.MatMul(op.Cast(matrices, to=axis.dtype), op.Gather(values, columns, axis=at))
    whole = op.Reshape(found, op.Concat(op.Slice(shape, [0], [at]), [-1], op.Slice(shape, [at + 1], [x.rank]), axis=0))
    rows = r.asked if r.interleaved else op.Mul(r.asked, op.size(band.start, 1))
    return x.second_last(op, op.Slice(whole, [0], op.Unsqueeze(rows, [0]), [at]))


def _side_by_side(op: Nodes, axis: Axis, r: Resampling, band: Band) -> tuple[ir.Value, ir.Value]:
    """For each block the samples that it reads, (blocks, samples), and its matrix, (blocks, outputs * taps, samples)."""
    count, taps = block_of(axis)
    outputs = _blocks(op, r, count)
    start = op.Reshape(op.Add(op.Gather(band.start, outputs, axis=0), r.low), [-1, count * taps, 1])
    weights = _rows(op, op.Gather(band.weights, outputs, axis=0), band.width, [-1, count * taps])
    first, last = (op.Gather(start, place, axis=1) for place in (0, -1))
    read = op.Add(op.ReduceMax(op.Sub(last, first), keepdims=0), band.width)
    samples = op.Add(first, op.count(read))
    inside = op.And(op.GreaterOrEqual(samples, 0), op.Less(samples, r.size))
    matrices = _spread(op, weights, op.Sub(op.Unsqueeze(samples, [1]), start), op.Unsqueeze(inside, [1]), band.width, 2)
    return op.Max(0, op.Min(samples, op.Sub(r.size, 1))), matrices


def _interleaved(op: Nodes, axis: Axis, r: Resampling, band: Band) -> tuple[ir.Value, ir.Value]:
    """The same of samples that have a value for each tap: (blocks, samples * taps), (blocks, outputs, samples * taps)."""
    outputs, taps, apart = _blocks(op, r, BLOCK), axis.taps, axis.dilation * band.taps
    start = op.Add(op.Gather(band.start, outputs, axis=0), r.low)  # (blocks, outputs, taps, 1)
    weights = _rows(op, op.Gather(band.weights, outputs, axis=0), band.width, [0, 0, taps])
    lowest, highest = (op.Gather(op.Gather(start, place, axis=1), 0, axis=1) for place in (0, -1))
    first = op.floor_divide(op.Sub(lowest, axis.span), axis.stride)
    last = op.floor_divide(op.Add(highest, band.width), axis.stride)
    samples = op.Add(first, op.count(op.Add(op.ReduceMax(op.Sub(last, first), keepdims=0), 1)))
    inside = op.And(op.GreaterOrEqual(samples, 0), op.Less(samples, r.size))
    places = op.Add(op.Mul(axis.stride, op.Unsqueeze(samples, [1, 2])), apart)
    matrices = _spread(op, weights, op.Sub(places, start), op.Unsqueeze(inside, [1, 2]), band.width, 3)
    samples = op.Max(0, op.Min(samples, op.Sub(r.size, 1)))
    columns = op.Add(op.Mul(op.Unsqueeze(samples, [2]), taps), np.arange(taps))
    flat = op.Concat(op.Slice(op.Shape(matrices), [0], [2]), [-1], axis=0)
    return op.Reshape(columns, [0, -1]), op.Reshape(op.Transpose(matrices, perm=[0, 1, 3, 2]), flat)


def _blocks(op: Nodes, r: Resampling, each: int) -> ir.Value:
    """The outputs, (blocks, ``each``): beyond the last one it is there again."""
    count = op.Div(op.Add(r.asked, each - 1), each)
    every = op.Min(op.count(op.Mul(count, each)), op.Sub(r.asked, 1))
    return op.Reshape(every, [-1, each])


def _rows(op: Nodes, weights: ir.Value, width: ir.Value, others: list[int]) -> ir.Value:
    """``weights`` as (blocks, rows, width)."""
    return op.Reshape(weights, op.Concat(others, op.Unsqueeze(width, [0]), axis=0))


def _spread(op: Nodes, weights: ir.Value, index: ir.Value, inside: ir.Value, width: ir.Value, axis: int) -> ir.Value:
    """``weights`` at ``index`` of their last axis; 0 beyond its ends, and not ``inside``."""
    inside = op.And(inside, op.And(op.GreaterOrEqual(index, 0), op.Less(index, width)))
    index = op.Max(0, op.Min(index, op.Sub(width, 1)))
    return op.Where(inside, op.GatherElements(weights, index, axis=axis), 0.0)
