"""A CC layer off its start in eager mode on a CPU: filters along each axis beside the untouched weight.

The kernel is, for every tap, one filter for all channels (``gathering/filters.py``). The window multiplies K + 4 cells along
each axis where this multiplies K taps, but it moves more data. The backward filters again: only inputs are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ccrewrite.families.cc.padding import pad
from ccrewrite.families.cc.profile import SUPPORT, Along
from ccrewrite.families.look import readable
from ccrewrite.gathering.filters import Bank
from ccrewrite.gathering.strided import Strided, near_taps
from ccrewrite.ir.geometry import ConvGeometry, Ints
from ccrewrite.ir.operators import CONVOLUTIONS, TRANSPOSED
from ccrewrite.ir.typed import Context, TensorFunction

PER_SAMPLE = {False: 100, True: 110}
"""What a filtered sample costs, in multiplications of a dense convolution: in inference, and in training where these count
three times."""
PER_VOXEL = 230
"""The same where volumes are filtered first: they leave a core's cache."""
PER_CALL = {False: 1e7, True: 5e7}
"""The same for a call: its operators are many."""


def takes(input: Tensor, weight: Tensor, alongs: Sequence[Along], geometry: ConvGeometry) -> bool:
    """Whether ``filtered_conv`` computes such a call."""
    g = geometry
    plain = [a for a, along in enumerate(alongs) if not along.layers and not (g.kernel_size[a] == g.stride[a] == 1)]
    wide = any(extra >= step for extra, step in zip(g.output_padding, g.stride, strict=True))
    kind = input.device.type == "cpu" and input.dtype == weight.dtype and not torch.is_autocast_enabled("cpu")
    return (
        kind
        and g.groups == 1
        and input.dtype in (torch.float32, torch.float64)
        and not plain
        and not wide
        and readable([input])
    )


def pays(input: Tensor, geometry: ConvGeometry, *, cost_of_others: float) -> bool:
    """Whether it is estimated to take less time. ``cost_of_others``: multiplications of the cheapest other form, for one
    picture."""
    g = geometry
    sizes = tuple(input.shape[-g.ndim :])
    outputs = g.output_size(sizes)
    if not input.numel() or min(outputs) < 1:
        return False
    fine, coarse = (outputs, sizes) if g.transposed else (sizes, outputs)
    channels = g.out_channels if g.transposed else g.in_channels
    lattice, samples = list(fine), 0
    for a, taps in enumerate(g.kernel_size):
        lattice[a] = coarse[a] * taps
        samples += math.prod(lattice)
    mixing = g.in_channels * g.out_channels // g.groups * math.prod(g.kernel_size) * math.prod(coarse)
    training = torch.is_grad_enabled()
    each = PER_VOXEL if g.ndim == 3 and not g.transposed else PER_SAMPLE[training]
    pictures = len(input) if input.dim() == g.ndim + 2 else 1
    return pictures * (mixing + channels * samples * each) + PER_CALL[training] < pictures * cost_of_others


def filtered_conv(
    input: Tensor, weight: Tensor, bias: Tensor | None, factors: Sequence[Tensor], geometry: ConvGeometry, margin: Ints
) -> Tensor:
    """The convolution of ``geometry`` whose tap ``t`` contributes ``factors[axis][t_axis, c]`` to cell ``c`` of a window that
    exceeds the original extent by ``margin``. ``input`` is ``(N, in, *size)``. Differentiable, any number of times."""
    return _Filtered.apply(input, weight, bias, geometry, margin, *factors)


class _Kept(Context, Protocol):
    geometry: ConvGeometry
    margin: Ints


class _Filtered(TensorFunction):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: _Kept,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: ConvGeometry,
        margin: Ints,
        *factors: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(input, weight, *factors)
        ctx.geometry, ctx.margin = geometry, margin
        bank = _bank(tuple(input.shape[2:]), weight, geometry, margin, factors)
        out = bank.finer(input) if geometry.transposed else bank.coarser(input)
        return out if bias is None else out.add_(bias.view(-1, *(1,) * geometry.ndim))

    @staticmethod
    def backward(ctx: _Kept, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        input, weight, *factors = ctx.saved_tensors
        g, wants = ctx.geometry, ctx.needs_input_grad
        d_bias = gradient.sum((0, *range(2, gradient.dim()))) if wants[2] else None
        if torch.is_grad_enabled():  # a second derivative will be wanted: by operators that have one
            out = _differentiable(input, weight, factors, g, ctx.margin)
            tensors, asked = (input, weight, *factors), (*wants[:2], *wants[5:])
            wanted = [tensor for tensor, want in zip(tensors, asked, strict=True) if want]
            given = iter(torch.autograd.grad(out, wanted, gradient, create_graph=True, allow_unused=True))
            d_input, d_weight, *d_factors = (next(given) if want else None for want in asked)
            return d_input, d_weight, d_bias, None, None, *d_factors
        bank = _bank(tuple(input.shape[2:]), weight, g, ctx.margin, factors)
        if g.transposed:
            met = bank.meet(gradient.contiguous(), input, wants_fine=False, wants_coarse=wants[0])
        else:
            met = bank.meet(input, gradient.contiguous(), wants_fine=wants[0], wants_coarse=False)
        return met.coarse if g.transposed else met.fine, met.mixing.view(weight.shape), d_bias, None, None, *met.factors


def _bank(sizes: Ints, weight: Tensor, geometry: ConvGeometry, margin: Ints, factors: Sequence[Tensor]) -> Bank:
    g, outputs = geometry, geometry.output_size(sizes)
    fine, coarse = (outputs, sizes) if g.transposed else (sizes, outputs)
    axes: list[Strided] = []
    for a, factor in enumerate(factors):
        near = near_taps(g.kernel_size[a], g.dilation[a], margin[a], SUPPORT)
        axes.append(Strided(factor, g.stride[a], g.pads[a][0] + margin[a], fine[a], coarse[a], near))
    return Bank(axes, weight.flatten(1))


def _differentiable(input: Tensor, weight: Tensor, factors: Sequence[Tensor], geometry: ConvGeometry, margin: Ints) -> Tensor:
    """The same by the kernel in its window, without a bias."""
    g, kernel, ndim = geometry, weight, geometry.ndim
    for axis, factor in enumerate(factors):
        kernel = (kernel.movedim(2 + axis, -1) @ factor).movedim(-1, 2 + axis)
    pads = [(low + m, high + m) for (low, high), m in zip(g.pads, margin, strict=True)]
    if g.transposed:
        padding = [low for low, _ in pads]
        return TRANSPOSED[ndim - 1](input, kernel, None, g.stride, padding, g.output_padding, g.groups)
    return CONVOLUTIONS[ndim - 1](pad(input, pads), kernel, None, g.stride, [0] * ndim, [1] * ndim, g.groups)
