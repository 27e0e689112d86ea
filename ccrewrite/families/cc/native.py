"""A CC layer off its start at its native size: its effective kernel, and cheaper ways to the same outputs.

    out(y) = sum_t w_t sum_j F_1[t_1, j_1 - s_1 y_1] F_2[t_2, j_2 - s_2 y_2] ... x_j          F[t, c] = phi_t(c - d t)

The kernel is separable, tap by tap. So instead of convolving with a window of K + 4 cells, an axis of the input can be brought
to the places of its taps by one product with a banded matrix, and a convolution of stride K with the untouched weight does the
rest. A transposed layer puts its weighted samples side by side, stride K, and is brought to its output after. For a pointwise
layer of two axes the window has 25 times the multiplications; but resampling moves more data. ``cheapest`` decides, axis by
axis.

Leaves for ``torch.fx.symbolic_trace``; to be called by their module's name.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import has_static_value

from ccrewrite.families.cc import toeplitz
from ccrewrite.families.cc.padding import pad
from ccrewrite.families.cc.profile import Along, factor
from ccrewrite.ir.geometry import ConvGeometry, Ints
from ccrewrite.ir.operators import CONVOLUTIONS, TRANSPOSED, full_precision

NOMINAL_SIZE = 64
"""Samples of an axis, for the choice of form, where its size is symbolic."""
PER_SAMPLE = 150
"""What writing a resampled value and reading it costs, in multiplications."""


@torch.fx.wrap
def cc_kernel(
    weight: Tensor, alongs: tuple[Along, ...], dilation: Ints, margin: Ints, axes: Sequence[int] | None = None
) -> Tensor:
    """Effective kernel, ``(*weight.shape[:2], *window)``, one banded matrix product per axis (of ``axes``; None: all).

    Coordinates in at least float32, autocast or not.
    """
    with full_precision(weight.device):
        kernel = weight.to(torch.promote_types(weight.dtype, torch.float32))
        for axis in range(len(alongs)) if axes is None else axes:
            values = factor(alongs[axis], weight.shape[2 + axis], dilation[axis], margin[axis], weight.device)
            kernel = (kernel.movedim(2 + axis, -1) @ values.to(kernel.dtype)).movedim(-1, 2 + axis)
    return kernel.to(weight.dtype)


class NativeAxis(NamedTuple):
    """How one axis is computed: resampled (``factor``: (taps, cells), see ``profile.factor``), or with a window (None).

    ``low`` and ``high`` are the padding of the window, in samples; ``stride`` and ``output_padding`` what is left to do by the
    convolution.
    """

    factor: Tensor | None
    low: int
    high: int
    stride: int
    output_padding: int


@torch.fx.wrap
def cc_native(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alongs: tuple[Along, ...],
    margin: Ints,
    call: dict[str, Any],
) -> Tensor:
    """The convolution of ``call`` (torch's arguments), in its cheapest form."""
    ndim, transposed = len(alongs), "output_padding" in call
    g = ConvGeometry.from_call("conv_transpose" if transposed else "conv", weight.shape, call)
    sizes = tuple(input.shape[-ndim:])
    chosen = cheapest(g, margin, sizes)
    kernel = cc_kernel(weight, alongs, g.dilation, margin, [a for a in range(ndim) if a not in chosen])
    plan: list[NativeAxis] = []
    for a, ((low, high), m) in enumerate(zip(g.pads, margin, strict=True)):
        if a in chosen:
            with full_precision(weight.device):
                values = factor(alongs[a], g.kernel_size[a], g.dilation[a], m, weight.device)
            plan.append(NativeAxis(values, low + m, high + m, g.kernel_size[a], 0))
        else:
            plan.append(NativeAxis(None, low + m, high + m, g.stride[a], g.output_padding[a]))
    run = _run_transposed if transposed else _run
    return run(input, kernel, bias, plan, g, g.output_size(sizes))


def _run(input: Tensor, kernel: Tensor, bias: Tensor | None, plan: list[NativeAxis], g: ConvGeometry, outputs: Ints) -> Tensor:
    for a in reversed(range(g.ndim)):
        values = plan[a].factor
        if values is not None:
            input = toeplitz.at_taps(input, a - g.ndim, values.to(input.dtype), g.stride[a], plan[a].low, outputs[a])
    pads = [(axis.low, axis.high) if axis.factor is None else (0, 0) for axis in plan]
    padding = [low for low, _ in pads]
    if any(low != high for low, high in pads):
        input, padding = pad(input, pads), [0] * g.ndim
    return CONVOLUTIONS[g.ndim - 1](input, kernel, bias, [axis.stride for axis in plan], padding, [1] * g.ndim, g.groups)


def _run_transposed(
    input: Tensor, kernel: Tensor, bias: Tensor | None, plan: list[NativeAxis], g: ConvGeometry, outputs: Ints
) -> Tensor:
    stride, extra = [axis.stride for axis in plan], [axis.output_padding for axis in plan]
    padding = [axis.low if axis.factor is None else 0 for axis in plan]
    resampled = any(axis.factor is not None for axis in plan)
    function, ones = TRANSPOSED[g.ndim - 1], [1] * g.ndim
    out = function(input, kernel, None if resampled else bias, stride, padding, extra, g.groups, ones)
    for a, axis in enumerate(plan):
        if axis.factor is not None:
            out = toeplitz.from_taps(out, a - g.ndim, axis.factor.to(out.dtype), g.stride[a], axis.low, outputs[a])
    return out + bias.view(-1, *ones) if resampled and bias is not None else out


def cheapest(geometry: ConvGeometry, margin: Ints, sizes: Sequence[Any]) -> tuple[int, ...]:
    """The axes to resample; along the others the convolution has the window.

    By multiplications, those of a convolution of volumes counted twice, for they take longer, plus ``PER_SAMPLE`` for every
    sample that resampling writes (calibrated by benchmarks/speed/cc_speed.py, on a CPU). An output padding that only the
    dilation allows leaves no choice: the window has no dilation.
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
            read = fine[a] if coarse[a] <= 2 * toeplitz.BLOCK else toeplitz.BLOCK * g.stride[a] + window[a]
            total += channels * math.prod(lattice) * (read + PER_SAMPLE)
        return total

    # Of equals the last axis, whose product needs no transposing.
    subsets = [c[::-1] for n in range(g.ndim + 1) for c in itertools.combinations(axes[::-1], n)]
    every = [c for c in subsets if all(a in c for a in forced)]
    costs = [cost(chosen) for chosen in every]
    return every[costs.index(min(costs))]
