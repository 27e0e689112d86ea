"""A CC layer off its start at its native size, without the window: the kernel is separable, tap by tap.

    out(y) = sum_t w_t sum_j F_1[t_1, j_1 - s_1 y_1] F_2[t_2, j_2 - s_2 y_2] ... x_j          F[t, c] = phi_t(c - d t)

So each axis of the input is brought to the places of its taps by one product with a banded matrix, and a convolution of stride
K with the untouched weight does the rest. A transposed layer puts its weighted samples side by side, stride K, and is brought
to its output after. The window has K + 4 cells along each axis where the weight has K: for a pointwise layer of two axes 25
times the multiplications. But resampling moves more data. ``cheapest`` decides, axis by axis.

All outputs read the input in the same way, so that one small matrix serves a long axis block by block.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import has_static_value

from ccrewrite.families.cc.functions import cc_kernel
from ccrewrite.families.cc.profile import Along, factor
from ccrewrite.families.cc.resample import product
from ccrewrite.ir.geometry import ConvGeometry, Ints
from ccrewrite.ir.operators import CONVOLUTIONS, TRANSPOSED, full_precision

BLOCK = 32
"""Outputs (transposed: inputs) that one matrix gives of a long axis; one of up to twice as many is a single block."""
NOMINAL_SIZE = 64
"""Samples of an axis, for the choice of form, where its size is symbolic."""
PER_SAMPLE = 150
"""What writing a resampled value and reading it costs, in multiplications."""


def resample(x: Tensor, axis: int, factor: Tensor, stride: int, low: int, outputs: int) -> Tensor:
    """``y[k m + t] = sum_c factor[t, c] x[m stride - low + c]`` along ``axis`` (from the end), ``m < outputs``, zeros around
    ``x``; ``factor`` is ``(k, cells)``."""
    taps, cells = factor.shape
    size = x.shape[axis]
    if _whole(outputs):
        length = max((outputs - 1) * stride + cells, low + size)
        matrix = _toeplitz(factor, outputs, stride, length)[:, :, low : low + size]
        return product(matrix.flatten(0, 1), x, axis)
    blocks = -(-outputs // BLOCK)
    read = (BLOCK - 1) * stride + cells
    x = _padded(x, axis, low, ((blocks - 1) * BLOCK) * stride + read - low - size)
    matrix = _toeplitz(factor, BLOCK, stride, read).flatten(0, 1)
    return _blockwise(matrix, x, axis, read, BLOCK * stride).narrow(axis, 0, outputs * taps)


def resample_transposed(x: Tensor, axis: int, factor: Tensor, stride: int, low: int, outputs: int) -> Tensor:
    """``y[m] = sum_i sum_t factor[t, m + low - stride i] x[k i + t]`` along ``axis`` (from the end), ``m < outputs``."""
    taps, cells = factor.shape
    size = x.shape[axis] // taps
    if _whole(size):
        matrix = _toeplitz(factor, size, stride, max((size - 1) * stride + cells, low + outputs))
        return product(matrix[:, :, low : low + outputs].flatten(0, 1).mT, x, axis)
    wanted = BLOCK * stride  # outputs of a block
    first = -((cells - 1 - low) // stride)  # sample that the first output reads first
    inputs = (low + wanted - 1) // stride - first + 1
    blocks = -(-outputs // wanted)
    start = low - stride * first
    matrix = _toeplitz(factor, inputs, stride, max((inputs - 1) * stride + cells, start + wanted))
    x = _padded(x, axis, -first * taps, (first + (blocks - 1) * BLOCK + inputs - size) * taps)
    matrix = matrix[:, :, start : start + wanted].flatten(0, 1).mT
    return _blockwise(matrix, x, axis, inputs * taps, BLOCK * taps).narrow(axis, 0, outputs)


def _whole(count: Any) -> bool:
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


def _padded(x: Tensor, axis: int, low: Any, high: Any) -> Tensor:
    """Zeros before and after; negative numbers crop."""
    return F.pad(x, [0, 0] * (-axis - 1) + [low, high])


def cheapest(geometry: ConvGeometry, margin: Ints, sizes: Sequence[Any]) -> tuple[int, ...]:
    """The axes to resample; along the others the convolution has the window.

    By multiplications, those of a convolution of volumes counted twice, for they take longer, plus ``PER_SAMPLE`` for every
    sample that resampling writes (calibrated by benchmarks/cc_speed.py, on a CPU). An output padding that only the dilation
    allows leaves no choice: the window has no dilation.
    """
    g, axes = geometry, range(geometry.ndim)
    sizes = [n if has_static_value(n) else NOMINAL_SIZE for n in sizes]
    outputs = [max(1, n) for n in g.output_size(sizes)]
    window = [e + 2 * m for e, m in zip(g.extent, margin, strict=True)]
    forced = [a for a in axes if g.transposed and g.output_padding[a] >= g.stride[a]]
    # A transposed layer is the adjoint of a convolution from its outputs to its inputs.
    fine, coarse = (outputs, sizes) if g.transposed else (sizes, outputs)
    channels = g.out_channels if g.transposed else g.in_channels

    def cost(chosen: tuple[int, ...]) -> int:
        kernel = math.prod([g.kernel_size[a] if a in chosen else window[a] for a in axes])
        total = g.in_channels * g.out_channels // g.groups * kernel * math.prod(coarse) * (2 if g.ndim == 3 else 1)
        lattice = list(fine)
        for a in reversed(chosen):
            lattice[a] = coarse[a] * g.kernel_size[a]
            read = fine[a] if coarse[a] <= 2 * BLOCK else BLOCK * g.stride[a] + window[a]
            total += channels * math.prod(lattice) * (read + PER_SAMPLE)
        return total

    # Of equals the last axis, whose product needs no transposing.
    subsets = [c[::-1] for n in range(g.ndim + 1) for c in itertools.combinations(axes[::-1], n)]
    every = [c for c in subsets if all(a in c for a in forced)]
    costs = [cost(chosen) for chosen in every]
    return every[costs.index(min(costs))]


@torch.fx.wrap
def cc_separated(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alongs: tuple[Along, ...],
    margin: Ints,
    call: dict[str, Any],
) -> Tensor:
    """The convolution of ``call`` (torch's arguments), in its cheapest form. A leaf for ``torch.fx.symbolic_trace``."""
    ndim, transposed = len(alongs), "output_padding" in call
    taps = tuple(weight.shape[2:])
    geometry = ConvGeometry.from_call("conv_transpose" if transposed else "conv", weight.shape, call)
    sizes = tuple(input.shape[-ndim:])
    outputs = geometry.output_size(sizes)
    chosen = cheapest(geometry, margin, sizes)
    kernel = cc_kernel(weight, alongs, geometry.dilation, margin, [a for a in range(ndim) if a not in chosen])
    with full_precision(weight.device):
        factors = {a: factor(alongs[a], taps[a], geometry.dilation[a], margin[a], weight.device) for a in chosen}
    lows = [low + m for (low, _), m in zip(geometry.pads, margin, strict=True)]
    highs = [high + m for (_, high), m in zip(geometry.pads, margin, strict=True)]
    stride, extra = list(geometry.stride), list(geometry.output_padding)
    for a in chosen:
        stride[a] = taps[a]
    ones = [1] * ndim
    if transposed:
        padding = [0 if a in chosen else low for a, low in enumerate(lows)]
        extra = [0 if a in chosen else e for a, e in enumerate(extra)]
        last = bias if not chosen else None
        out = TRANSPOSED[ndim - 1](input, kernel, last, stride, padding, extra, geometry.groups, ones)
        for a in chosen:
            out = resample_transposed(out, a - ndim, factors[a].to(out.dtype), geometry.stride[a], lows[a], outputs[a])
        return out if last is bias else out + bias.view(-1, *ones)  # pyright: ignore[reportOptionalMemberAccess]
    for a in reversed(chosen):
        input = resample(input, a - ndim, factors[a].to(input.dtype), geometry.stride[a], lows[a], outputs[a])
    padding = [0 if a in chosen else low for a, low in enumerate(lows)]
    if any(low != high for a, (low, high) in enumerate(zip(lows, highs, strict=True)) if a not in chosen):
        pads = [(0, 0) if a in chosen else (lows[a], highs[a]) for a in range(ndim)]
        input, padding = F.pad(input, [n for pair in reversed(pads) for n in pair]), [0] * ndim
    return CONVOLUTIONS[ndim - 1](input, kernel, bias, stride, padding, ones, geometry.groups)
