"""Where the outputs of one axis look (CC's ``resampling.py``, which has the formulas), as ONNX nodes.

Coordinates are int64 until a fraction within one sample is left, so that long signals lose no phase.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from ccrewrite.families.cc.onnx.axis import Axis
from ccrewrite.ir.onnx_nodes import Nodes


@dataclass(frozen=True)
class Resampling:
    """One axis of a tensor, resampled. Output ``y``, tap ``t`` lies at ``(first + per_output y + per_tap t) / (2 asked)`` on a
    lattice, in samples. All are numbers, int64.

    A convolution's lattice is its input. A transposed one's is its native output, uncropped; there all taps of an output look
    at the same place (``per_tap`` is None).
    """

    native: ir.Value
    """Outputs that the convolution has by itself."""
    asked: ir.Value
    first: ir.Value
    per_output: ir.Value
    per_tap: ir.Value | None
    stretch: ir.Value
    """By how much the kernel is wider than natively, times ``asked``: a smaller output is filtered before it takes samples."""
    reach: ir.Value
    """How many samples around its place an output reads on either side, at most."""
    size: ir.Value
    """Samples of what is resampled; where ``interleaved``, of a value for each tap."""
    low: ir.Value | int
    """Sample 0 is at ``-low`` on the lattice."""
    interleaved: bool
    """What is resampled has its taps side by side: tap ``t`` of sample ``i`` is at ``stride i + dilation t - low``."""

    @classmethod
    def of(cls, op: Nodes, axis: Axis, values: ir.Value, native: ir.Value, asked: ir.Value, *, interleaved: bool) -> Resampling:
        """Of an axis with so many ``values``."""
        size = op.Div(values, axis.taps) if interleaved else values
        stretch = op.Max(native, asked)
        if axis.transposed:
            inputs = size if interleaved else op.Add(op.Div(op.Sub(values, axis.span + 1), axis.stride), 1)
            first, per_tap = _first_of_transposed(op, axis, inputs, native, asked), None
            per_output, low = op.Mul(2, native), axis.low
        else:
            apart = native if axis.rescaled else stretch
            per_output, per_tap = op.Mul(2 * axis.stride, native), op.Mul(2 * axis.dilation, apart)
            first, low = _first(op, axis, size, native, asked, apart), 0
        reach = op.Add(op.Div(op.Mul(axis.profile.twice_support, stretch), op.Mul(2, asked)), 1)
        return cls(native, asked, first, per_output, per_tap, stretch, reach, size, low, interleaved)

    def ends(self, op: Nodes, axis: Axis) -> tuple[ir.Value, ir.Value]:
        """How many samples are read before the first one and after the last one."""
        double = op.Mul(2, self.asked)
        last = op.Add(op.Mul(self.per_output, op.Sub(self.asked, 1)), self.first)
        if self.per_tap is not None:
            last = op.Add(last, op.Mul(self.per_tap, axis.taps - 1))
        before = op.Max(0, op.Neg(op.Sub(op.floor_divide(self.first, double), self.reach)))
        after = op.Max(0, op.Sub(op.Add(op.floor_divide(last, double), op.Add(self.reach, 2)), self.size))
        return before, after

    def continued(self, op: Nodes, before: ir.Value, after: ir.Value) -> Resampling:
        """The same outputs of an input that has ``before`` and ``after`` samples more at its ends."""
        return replace(self, low=before, size=op.Add(self.size, op.Add(before, after)))


def _first(op: Nodes, axis: Axis, size: ir.Value, native: ir.Value, asked: ir.Value, apart: ir.Value) -> ir.Value:
    """``first`` of a convolution. ``apart``: distance of two taps of dilation 1, times ``asked``."""
    around = axis.span - 2 * axis.low
    first = op.Add(op.Mul(around - axis.stride, asked), op.Mul(axis.stride, native))
    first = op.Sub(first, op.Mul(axis.span, apart))
    if not axis.centred and not axis.rescaled:
        return first
    off_centre = op.Sub(op.Add(op.Mul(axis.stride, op.Sub(native, 1)), around + 1), size)
    first = op.Sub(first, op.Mul(off_centre, asked))
    return first if axis.centred else op.Add(first, op.Mul(off_centre, native))


def _first_of_transposed(op: Nodes, axis: Axis, inputs: ir.Value, native: ir.Value, asked: ir.Value) -> ir.Value:
    """``first`` of a transposed convolution of ``inputs`` samples."""
    first = op.Sub(native, asked)
    if not axis.centred:
        return first
    around = axis.span - 2 * axis.low
    off_centre = op.Sub(op.Sub(native, 1 + around), op.Mul(axis.stride, op.Sub(inputs, 1)))
    return op.Sub(first, op.Mul(off_centre, asked))
