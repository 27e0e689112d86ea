"""A DCLS layer in ONNX: ``ccrewrite::DclsConv(x, weight, bias, positions)``."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from ccrewrite.families.dcls.sampling import DclsSampling
from ccrewrite.families.onnx import OnnxCall, OnnxForm, OnnxOperator
from ccrewrite.ir.geometry import Ints
from ccrewrite.ir.onnx_nodes import DTYPES, Nodes

APART, MOST_TAPS = 3, 16
"""Taps are read one by one where they are few, in a window of more cells than so many times the taps for each axis (measured in
onnxruntime: an interpolation reads twice as many slices with each axis)."""


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
    apart: bool = False
    """Its taps are read one by one: they are few, in a large window, and all channels share them."""

    name = "DclsConv"

    def body(self, op: Nodes, x: ir.Value, weight: ir.Value, bias: ir.Value | None, more: Mapping[str, ir.Value]) -> ir.Value:
        return (self._read if self.apart else self._dense)(op, x, weight, bias, more)

    def _read(self, op: Nodes, x: ir.Value, weight: ir.Value, bias: ir.Value | None, more: Mapping[str, ir.Value]) -> ir.Value:
        """Slices where the taps are, interpolated, as channels of a convolution with one tap."""
        ndim, taps = len(self.window), math.prod(self.weight[2:])
        low, high = self.pads[:ndim], self.pads[ndim:]
        space = op.Slice(op.Shape(x), [2], [ndim + 2])
        outputs = op.Div(op.Add(space, np.array(low) + high - self.window + self.strides), np.array(self.strides))
        reach = op.Add(op.Mul(op.Sub(outputs, 1), np.array(self.strides)), 1)
        padded = op.Pad(x, [0, 0, *low, 0, 0, *(n + 1 for n in high)])
        last = np.array(self.window, np.float32)[:, None] - 1
        places = op.Max(np.zeros(1, np.float32), op.Min(op.Reshape(op.real(more["positions"]), [ndim, taps]), last))
        below = op.Floor(places)
        starts, above = op.Cast(below, to=ir.DataType.INT64.value), op.Sub(places, below)
        share = [op.Cast(part, to=self.dtype) for part in (op.Sub(1.0, above), above)]
        read: list[ir.Value] = []
        for tap in range(taps):
            terms: list[ir.Value] = []
            for corner in itertools.product((0, 1), repeat=ndim):
                first = op.Add(op.Gather(starts, tap, axis=1), np.array(corner))
                part = op.Slice(padded, first, op.Add(first, reach), list(range(2, ndim + 2)), list(self.strides))
                factors = [op.Gather(op.Gather(share[c], tap, axis=1), a, axis=0) for a, c in enumerate(corner)]
                terms.append(op.Mul(part, functools.reduce(op.Mul, factors)))
            read.append(op.Unsqueeze(functools.reduce(op.Add, terms), [2]))
        data = op.Reshape(op.Concat(*read, axis=2), op.Concat([0, -1], outputs, axis=0))
        mixing = op.Reshape(weight, [self.weight[0], self.weight[1] * taps, *[1] * ndim])
        return op.Conv(data, mixing, bias, group=self.group)

    def _dense(self, op: Nodes, x: ir.Value, weight: ir.Value, bias: ir.Value | None, more: Mapping[str, ir.Value]) -> ir.Value:
        """A kernel of the whole window."""
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
        taps = math.prod(call.weight[2:])
        shared = self.tensors["positions"].shape[1:3] == (1, 1)
        apart = shared and taps <= MOST_TAPS and math.prod(self.window) > APART ** len(self.window) * taps
        return DclsConv(call.weight, self.window, g.stride, flat, g.groups, DTYPES[call.dtype].value, apart)
