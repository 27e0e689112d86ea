"""A DCLS layer in ONNX: ``ccrewrite::DclsConv(x, weight, bias, positions)``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from ccrewrite.families.dcls.sampling import DclsSampling
from ccrewrite.families.onnx import OnnxCall, OnnxForm, OnnxOperator
from ccrewrite.ir.geometry import Ints
from ccrewrite.ir.onnx_nodes import DTYPES, Nodes


@dataclass(frozen=True)
class DclsConv(OnnxOperator):
    """A convolution whose taps lie at ``positions`` in its window: (axes, filters or 1, channels or 1, taps), in samples from
    the window's first. Between samples it is linear. ``weight`` is the weight's shape, ``pads`` are the window's: those at the
    low ends, then those at the high ones."""

    weight: Ints
    window: Ints
    strides: Ints
    pads: Ints
    group: int
    dtype: int

    name = "DclsConv"

    def body(self, op: Nodes, x: ir.Value, weight: ir.Value, bias: ir.Value | None, more: Mapping[str, ir.Value]) -> ir.Value:
        axes = range(3, 3 + len(self.window))
        grid: ir.Value | None = None
        for a, size in enumerate(self.window):
            places = op.Max(0.0, op.Min(op.Gather(more["positions"], a, axis=0), float(size - 1)))
            distance = op.Abs(op.Sub(op.Unsqueeze(places, [3]), np.arange(size, dtype=np.float32)))
            along = op.Relu(op.Sub(1.0, distance))
            others = [other for other in axes if other != a + 3]
            along = op.Unsqueeze(along, others) if others else along
            grid = along if grid is None else op.Mul(grid, along)
        taps = op.Reshape(op.real(weight), [*self.weight[:2], 1, -1])
        kernel = op.Reshape(op.MatMul(taps, op.Reshape(grid, [0, 0, 0, -1])), [*self.weight[:2], *self.window])
        kernel = op.Cast(kernel, to=self.dtype)
        return op.Conv(x, kernel, bias, strides=self.strides, pads=self.pads, group=self.group)


class DclsForm(OnnxForm):
    """A ``DclsSampling`` of linear interpolation, with its ``positions``."""

    def __init__(self, layer: DclsSampling) -> None:
        self.window, self.margin = layer.window, layer.margin
        positions = torch.stack([cells.detach().float() for cells in layer.cells()])
        filters = layer.geometry.out_channels
        if positions.shape[1] not in (1, filters):  # one set for each group
            positions = positions.repeat_interleave(filters // positions.shape[1], 1)
        self.tensors = {"positions": positions.contiguous()}

    def operator(self, call: OnnxCall) -> DclsConv:
        pads = [(low + m, high + m) for (low, high), m in zip(call.pads, self.margin, strict=True)]
        flat = *(low for low, _ in pads), *(high for _, high in pads)
        g = call.geometry
        return DclsConv(call.weight, self.window, g.stride, flat, g.groups, DTYPES[call.dtype].value)
