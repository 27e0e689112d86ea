"""Resampling one axis at its native size: all outputs read alike, so one small matrix serves a long axis block by block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import has_static_value

from ccrewrite.families.cc.bands import product

BLOCK = 32
"""Outputs (``from_taps``: inputs) that one matrix gives of a long axis; one of up to twice as many is a single block."""


def at_taps(x: Tensor, axis: int, factor: Tensor, stride: int, low: int, outputs: int) -> Tensor:
    """``x`` at the places of all taps: ``y[k m + t] = sum_c factor[t, c] x[m stride - low + c]`` along ``axis`` (from the end),
    ``m < outputs``, zeros around ``x``; ``factor`` is ``(k, cells)``."""
    taps, cells = factor.shape
    size = x.shape[axis]
    if _single(outputs):
        length = max((outputs - 1) * stride + cells, low + size)
        matrix = _toeplitz(factor, outputs, stride, length)[:, :, low : low + size]
        return product(matrix.flatten(0, 1), x, axis)
    blocks = -(-outputs // BLOCK)
    read = (BLOCK - 1) * stride + cells
    x = _padded(x, axis, low, ((blocks - 1) * BLOCK) * stride + read - low - size)
    matrix = _toeplitz(factor, BLOCK, stride, read).flatten(0, 1)
    return _blockwise(matrix, x, axis, read, BLOCK * stride).narrow(axis, 0, outputs * taps)


def from_taps(x: Tensor, axis: int, factor: Tensor, stride: int, low: int, outputs: int) -> Tensor:
    """The adjoint, of samples whose taps lie side by side: ``y[m] = sum_i sum_t factor[t, m + low - stride i] x[k i + t]``
    along ``axis`` (from the end), ``m < outputs``."""
    taps, cells = factor.shape
    size = x.shape[axis] // taps
    if _single(size):
        matrix = _toeplitz(factor, size, stride, max((size - 1) * stride + cells, low + outputs))
        return product(matrix[:, :, low : low + outputs].flatten(0, 1).mT, x, axis)
    wanted = BLOCK * stride  # outputs of a block
    # The sample that the first output reads first; where none reaches it (few cells, a long stride), the one before it.
    first = min(-((cells - 1 - low) // stride), low // stride)
    inputs = (low + wanted - 1) // stride - first + 1
    blocks = -(-outputs // wanted)
    start = low - stride * first
    matrix = _toeplitz(factor, inputs, stride, max((inputs - 1) * stride + cells, start + wanted))
    x = _padded(x, axis, -first * taps, (first + (blocks - 1) * BLOCK + inputs - size) * taps)
    matrix = matrix[:, :, start : start + wanted].flatten(0, 1).mT
    return _blockwise(matrix, x, axis, inputs * taps, BLOCK * taps).narrow(axis, 0, outputs)


def _single(count: int) -> bool:
    return has_static_value(count) and count <= 2 * BLOCK


def _toeplitz(factor: Tensor, rows: int, stride: int, length: int) -> Tensor:
    """``(rows, k, length)``: ``factor`` ``(k, cells)``, in each row ``stride`` further on."""
    taps, cells = factor.shape
    period = length + stride  # read with a period shorter by the stride, each row begins so much later
    wide = F.pad(factor, (0, period - cells))[:, None].expand(taps, rows, period).reshape(taps, rows * period)
    return wide[:, : rows * length].view(taps, rows, length).transpose(0, 1)


def _blockwise(matrix: Tensor, x: Tensor, axis: int, read: int, step: int) -> Tensor:
    """``matrix`` applied to windows of ``read`` samples of ``axis``, ``step`` apart; results joined."""
    windows = x.unfold(axis, read, step).movedim(-1, axis)  # before it, the axis of the blocks
    found = product(matrix, windows.contiguous(), axis)
    return found.flatten(axis - 1, axis)


def _padded(x: Tensor, axis: int, low: int, high: int) -> Tensor:
    """Zeros before and after; negative numbers crop."""
    return F.pad(x, [0, 0] * (-axis - 1) + [low, high])
