"""Shared positions without the window: every tap's products first, then moved to where the tap is, and added up.

    out[o, y] = sum_t sum_i phi(i - (stride * y - pad + p_t)) (weight_t . x)[o, i]

Where all input channels share a tap's position, mixing the channels (one product for all taps) and interpolating along each
axis (a product with a band matrix) commute. The cost grows with the taps and not with the window, which a large dilation
makes almost empty: 3x3 taps 12 samples apart span 625 cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor

from ccrewrite.families.dcls.grid import Grid
from ccrewrite.families.interpolation import interpolate, interpolate_backward
from ccrewrite.families.regions import REGIONS, Region
from ccrewrite.ir.geometry import Ints
from ccrewrite.ir.typed import Context, TensorFunction

NOMINAL_SIZE = 64
"""Samples per axis of a typical feature map, for the choice of form: it must not depend on the input, which may be symbolic."""


def pays(taps: int, window: Ints, stride: Ints, channels: int) -> bool:
    """Whether moving products is cheaper than convolving with the window, by multiplications per output sample.

    Twice, for a convolution runs nearer to a machine's peak than band matrices do.
    """
    moving = taps * (channels * math.prod(stride) + len(window) * NOMINAL_SIZE)
    return channels * math.prod(window) > 2 * moving


@torch.fx.wrap
def banded_conv(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    widening: Tensor | None,
    grid: Grid,
    stride: Ints,
    pads: Sequence[tuple[int, int]],
) -> Tensor:
    """The convolution with ``dcls_kernel(weight, offset, widening, grid)``, ``groups`` 1 and positions shared by the input
    channels, without a bias. ``input`` is ``(N, in, *size)`` or ``(in, *size)``. A leaf for ``torch.fx.symbolic_trace``."""
    dtype = torch.float64 if torch.float64 in (weight.dtype, offset.dtype) else torch.float32
    positions = grid.positions(weight.shape[2:], offset.to(dtype))
    widths = grid.widths(None if widening is None else widening.to(dtype))
    factors: list[Tensor] = []
    for axis, position, spread in zip(grid.axes, positions, widths, strict=True):
        if axis.size == 1:
            factors.append(position.new_ones(1, position.shape[-1], 1))
            continue
        kind = grid.interpolation if axis.moves else "linear"
        along = None if spread is None else spread[:, 0]
        factors.append(Interpolate.apply(kind, position[:, 0], along, axis.size, len(grid.axes)))
    batched = input if input.dim() == 2 + len(grid.axes) else input[None]
    out = conv_of_factors(batched, weight, factors, stride, pads)
    return out if batched is input else out[0]


def _bands(tensors: Sequence[Tensor], constants: str, numbers: Sequence[int]) -> Tensor:
    input, weight, offset, widening = (*tensors, None)[:4]
    grid = Grid.from_text(constants)
    parameters = cast(Tensor, offset), widening, grid
    return banded_conv(cast(Tensor, input), cast(Tensor, weight), *parameters, *_stride_and_pads(numbers, len(grid.axes)))


def _bands_like(tensors: Sequence[Tensor], constants: str, numbers: Sequence[int]) -> Tensor:
    input, axes = tensors[0], Grid.from_text(constants).axes
    ndim = len(axes)
    spans = zip(input.shape[-ndim:], axes, *_stride_and_pads(numbers, ndim), strict=True)
    outputs = [(n + low + high - axis.size) // s + 1 for n, axis, s, (low, high) in spans]
    return input.new_empty(*input.shape[: -ndim - 1], tensors[1].shape[0], *outputs)


def _stride_and_pads(numbers: Sequence[int], ndim: int) -> tuple[Ints, tuple[tuple[int, int], ...]]:
    return tuple(numbers[:ndim]), tuple(zip(numbers[ndim::2], numbers[ndim + 1 :: 2], strict=True))


REGIONS["dcls_bands"] = Region(_bands, _bands_like)


def conv_of_factors(
    input: Tensor, weight: Tensor, factors: Sequence[Tensor], stride: Ints, pads: Sequence[tuple[int, int]]
) -> Tensor:
    """The convolution of ``input`` ``(N, in, *size)`` with the effective kernel of ``weight`` ``(out, in, *taps)``.

    ``factors``: for each axis ``phi(s - p_t)``, ``(A, prod(taps), window)``, ``A`` being 1 or ``out``; ``pads``: zeros before
    and after each axis, for the window. Returns ``(N, out, *output size)``.
    """
    out, inner = weight.shape[:2]
    sets, taps = factors[0].shape[:2]
    batch, sizes = input.shape[0], list(input.shape[2:])
    mixing = weight.flatten(2).permute(2, 0, 1).reshape(taps * out, inner)
    mixed = mixing @ input.transpose(0, 1).flatten(1)
    products = mixed.view(taps, out, batch, *sizes)
    # Along an axis of which each output reads the sample at its own place alone, nothing is to be done but the sum.
    still = [f.shape[-1] == s == 1 and pad == (0, 0) for f, s, pad in zip(factors, stride, pads, strict=True)]
    for axis in (a for a in reversed(range(1, len(factors))) if not still[a]):
        band = _band(factors[axis], sizes[axis], stride[axis], pads[axis]).to(products.dtype)
        rows = products.movedim(3 + axis, -1)
        alike = rows.flatten(1, -2) if sets == 1 else rows.flatten(0, 1).flatten(1, -2)  # rows that one band moves
        moved = torch.bmm(alike, band.flatten(0, 1).mT)
        sizes[axis] = band.shape[2]
        products = moved.view(*rows.shape[:-1], sizes[axis]).movedim(-1, 3 + axis)
    if still[0]:
        return products.sum(0).transpose(0, 1)
    # Along the first axis together with the sum over the taps.
    band = _band(factors[0], sizes[0], stride[0], pads[0]).to(products.dtype)
    outputs, behind = band.shape[2], sizes[1:]
    band = band.permute(1, 2, 0, 3).reshape(sets, outputs, taps * sizes[0])
    stacked = products.movedim(0, 2).reshape(sets, out // sets * batch, taps * sizes[0], *behind)
    summed = band[:, None] @ stacked.flatten(3) if behind else stacked @ band.mT
    return summed.view(out, batch, outputs, *behind).transpose(0, 1)


def _band(factor: Tensor, size: int, stride: int, pad: tuple[int, int]) -> Tensor:
    """``band[t, a, y, i] = factor[a, t, i - (stride * y - pad)]``, zero outside the window."""
    window = factor.shape[-1]
    outputs = (size + pad[0] + pad[1] - window) // stride + 1
    first = torch.arange(outputs, device=factor.device) * stride - pad[0]
    cell = torch.arange(size, device=factor.device) - first[:, None]
    inside = (cell >= 0) & (cell < window)
    return (factor[..., cell.clamp(0, window - 1)] * inside).transpose(0, 1)


class _Kept(Context, Protocol):
    kind: str
    ndim: int


class Interpolate(TensorFunction):
    """``interpolate`` with ``interpolate_backward`` for a derivative: defined on the grid too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(kind: str, position: Tensor, width: Tensor | None, size: int, ndim: int) -> Tensor:
        return interpolate(kind, position, width, size, ndim)

    @staticmethod
    def setup_context(ctx: _Kept, inputs: tuple[str, Tensor, Tensor | None, int, int], output: Tensor) -> None:
        ctx.kind, position, width, _, ctx.ndim = inputs
        ctx.save_for_backward(position, width)

    @staticmethod
    def backward(ctx: _Kept, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        position, width = ctx.saved_tensors
        d_position, d_width = interpolate_backward(ctx.kind, position, width, gradient, ctx.ndim)
        return None, d_position, d_width, None, None
