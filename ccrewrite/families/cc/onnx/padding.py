"""An axis continued at its ends as a padding mode says (CC's ``padding.py``), as ONNX nodes."""

from __future__ import annotations

import onnx_ir as ir

from ccrewrite.families.cc.onnx.axis import Axis
from ccrewrite.families.cc.onnx.bands import Data
from ccrewrite.families.cc.onnx.resampling import Resampling
from ccrewrite.ir.onnx_nodes import Nodes

FAR = 2**31
"""More samples than an axis has."""


def continued(op: Nodes, x: Data, axis: Axis, r: Resampling) -> tuple[Data, Resampling]:
    """``x`` continued as far as it is read. At its native size a layer pads by its padding alone: beyond that are zeros."""
    before, after = r.ends(op, axis)
    known = op.Where(op.Equal(r.native, r.asked), [-axis.low, axis.high], [-FAR, FAR])
    places = op.count(op.Add(r.size, after), op.Neg(before))
    low, high = op.Gather(known, 0, axis=0), op.Add(op.Gather(known, 1, axis=0), r.size)
    inside = op.And(op.GreaterOrEqual(places, low), op.Less(places, high))
    if x.at < x.rank - 1:
        inside = op.Unsqueeze(inside, list(range(1, x.rank - x.at)))
    value = op.Gather(x.value, _inside(op, places, r.size, axis.mode), axis=x.at)
    return Data(op.Mul(value, op.Cast(inside, to=axis.dtype)), x.rank, x.at), r.continued(op, before, after)


def _inside(op: Nodes, places: ir.Value, size: ir.Value, mode: str) -> ir.Value:
    """Which of ``size`` samples is at each of ``places``, which may lie before and after them."""
    if mode == "circular":
        return op.Mod(places, size)
    last = op.Sub(size, 1)
    if mode == "replicate":
        return op.Max(0, op.Min(places, last))
    return op.Sub(last, op.Abs(op.Sub(op.Mod(places, op.Max(1, op.Mul(2, last))), last)))
