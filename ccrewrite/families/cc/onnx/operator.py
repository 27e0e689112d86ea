"""``ccrewrite::CCConv(x, weight, bias, native, asked, *learned)``: a CC layer with the output size ``asked``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from ccrewrite.families.cc.onnx.axis import Axis
from ccrewrite.families.cc.onnx.bands import Band, Data, applied
from ccrewrite.families.cc.onnx.kernel import Learned
from ccrewrite.families.cc.onnx.padding import continued
from ccrewrite.families.cc.onnx.resampling import Resampling
from ccrewrite.families.onnx import OnnxOperator
from ccrewrite.ir.onnx_nodes import Nodes


@dataclass(frozen=True)
class CCConv(OnnxOperator):
    """A convolution's axes are resampled at the places of its taps, before a convolution of stride K with the untouched weight.
    Those of a transposed one are resampled after it: its native output, or where something was learned (then each tap has
    weights of its own), its taps' products side by side."""

    axes: tuple[Axis, ...]
    group: int

    name = "CCConv"

    def body(self, op: Nodes, x: ir.Value, weight: ir.Value, bias: ir.Value | None, more: Mapping[str, ir.Value]) -> ir.Value:
        ndim, taps = len(self.axes), [axis.taps for axis in self.axes]
        transposed = self.axes[0].transposed
        tensors = {name: value for name, value in more.items() if name not in ("native", "asked")}
        learned = [Learned.of(op, a, axis.profile.shift_index, tensors) for a, axis in enumerate(self.axes)]
        if transposed:
            strides = [axis.stride if own is None else axis.taps for axis, own in zip(self.axes, learned, strict=True)]
            dilations = [axis.dilation if own is None else 1 for axis, own in zip(self.axes, learned, strict=True)]
            x = op.ConvTranspose(x, weight, strides=strides, dilations=dilations, group=self.group)
        for a, axis in enumerate(self.axes):
            native, asked = (op.Gather(more[name], a, axis=0) for name in ("native", "asked"))
            x = resampled(op, Data(x, ndim + 2, a + 2), axis, native, asked, learned[a])
        if not transposed:
            return op.Conv(x, weight, bias, strides=taps, group=self.group)
        return x if bias is None else op.Add(x, op.Unsqueeze(bias, list(range(1, ndim + 1))))


def resampled(op: Nodes, x: Data, axis: Axis, native: ir.Value, asked: ir.Value, learned: Learned | None) -> ir.Value:
    """``x`` with its axis resampled: a convolution's to ``asked`` times its taps, a transposed one's to ``asked``."""
    interleaved = axis.transposed and learned is not None
    resampling = Resampling.of(op, axis, op.size(x.value, x.at), native, asked, interleaved=interleaved)
    if axis.mode != "zeros":
        x, resampling = continued(op, x, axis, resampling)
    band = Band.of(op, axis, resampling, learned)
    return applied(op, x, axis, resampling, band)
