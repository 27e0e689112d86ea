"""Taps at continuous positions, placed on a dense window: ``B(geometry) . weight``, one factor per axis.

    K[s] = sum_t weight_t prod_axis phi(s_axis - p_t,axis)

The factors are small, ``(taps, cells of one axis)`` per set of positions, and the kernel is one batched product of them:
nothing of the size taps x window is built, and the backward recomputes the factors instead of keeping them.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ccrewrite.forms.regions import REGIONS, Region
from ccrewrite.nn.interpolation import MIN_WIDTH, interpolate, interpolate_backward

MAX_NDIM = 3


class Axis(NamedTuple):
    """One axis of the window: where its taps start, and which entry of ``offset`` moves them."""

    size: int
    """Cells of the window."""
    dim: int
    """The dimension of the taps (of ``weight.shape[2:]``) that runs along this axis."""
    origin: float
    """Start of the first tap, in cells."""
    step: int
    """Cells from one tap's start to the next one's, along ``dim``; 0 where all start at ``origin``."""
    row: int
    """Index into ``offset``'s first dimension; -1: this axis doesn't move."""

    def start(self, taps: Sequence[int], like: Tensor) -> Tensor:
        """Start of every tap, ``(prod(taps),)``, in cells, with the dtype and device of ``like``."""
        along = torch.arange(taps[self.dim], dtype=like.dtype, device=like.device) * self.step + self.origin
        return along.view([-1 if d == self.dim else 1 for d in range(len(taps))]).expand(*taps).flatten()


def positions_of(axes: Sequence[Axis], taps: Sequence[int], offset: Tensor) -> list[Tensor]:
    """Position of every tap on each axis, ``(A, B, prod(taps))`` in cells of the window, kept inside it.

    ``offset``: ``(learned axes, A, B, *taps)``, in samples.
    """
    moved = offset.flatten(3)
    starts = [axis.start(taps, offset) for axis in axes]
    return [
        start.expand(moved.shape[1:]) if axis.row < 0 else KeepInside.apply(start + moved[axis.row], 0, axis.size - 1)
        for axis, start in zip(axes, starts, strict=True)
    ]


def widths_of(axes: Sequence[Axis], interpolation: str, width: float, widening: Tensor | None) -> list[Tensor | None]:
    """Width of every tap on each axis, ``(A, B, prod(taps))`` in samples, ``width * exp(widening)``; None where it has none."""
    if widening is None:
        return [None] * len(axes)
    widths = KeepInside.apply(width * widening.flatten(3).exp(), MIN_WIDTH[interpolation], float("inf"))
    return [widths[axis.row] if axis.row >= 0 else None for axis in axes]


@torch.fx.wrap
def dcls_kernel(
    weight: Tensor, offset: Tensor, widening: Tensor | None, axes: tuple[Axis, ...], interpolation: str, width: float
) -> Tensor:
    """Effective kernel, ``(out, in/groups, *window)``, from ``weight`` ``(out, in/groups, *taps)``.

    ``offset`` and ``widening`` are ``(learned axes, A, B, *taps)`` with ``A`` a divisor of ``out`` and ``B`` of ``in/groups``.
    Built in at least float32, autocast or not; the result has the weight's dtype. A leaf for ``torch.fx.symbolic_trace``.
    """
    dtype = torch.float64 if torch.float64 in (weight.dtype, offset.dtype) else torch.float32
    device_type = "cpu" if weight.is_meta else weight.device.type  # autocast knows no meta device
    with torch.autocast(device_type, enabled=False):
        positions = positions_of(axes, weight.shape[2:], offset.to(dtype))
        widths = widths_of(axes, interpolation, width, None if widening is None else widening.to(dtype))
        kinds = tuple(interpolation if axis.row >= 0 else "linear" for axis in axes)
        out, inner = weight.shape[:2]
        rows, columns, taps = positions[0].shape
        grouped = weight.to(dtype).reshape(rows, out // rows, columns, inner // columns, taps).transpose(1, 2).flatten(2, 3)
        kernel = place(grouped, kinds, tuple(axis.size for axis in axes), positions, widths)
        window = kernel.shape[3:]
        kernel = kernel.view(rows, columns, out // rows, inner // columns, *window).transpose(1, 2)
    return kernel.reshape(out, inner, *window).to(weight.dtype)


def place(
    weight: Tensor, kinds: tuple[str, ...], sizes: tuple[int, ...], positions: Sequence[Tensor], widths: Sequence[Tensor | None]
) -> Tensor:
    """``(A, B, M, T)`` weights of T taps, with positions (and widths) ``(A, B, T)`` per axis -> ``(A, B, M, *sizes)``."""
    absent = [None] * (MAX_NDIM - len(sizes))
    return Place.apply(weight, kinds, sizes, *positions, *absent, *widths, *absent)


def coded(axes: Sequence[Axis], interpolation: str, width: float) -> str:
    """What the regions of a DCLS sampling get besides tensors, for ``decoded``."""
    return repr(([tuple(axis) for axis in axes], interpolation, width))


def decoded(constants: str) -> tuple[tuple[Axis, ...], str, float]:
    axes, interpolation, width = ast.literal_eval(constants)
    return tuple(Axis(*axis) for axis in axes), interpolation, width


def _positions(tensors: Sequence[Tensor], constants: str, numbers: Sequence[int]) -> Tensor:
    """``positions_of`` of all axes, stacked: ``(axes, A, B, prod(taps))``."""
    (offset,) = tensors
    return torch.stack(positions_of(decoded(constants)[0], offset.shape[3:], offset))


def _positions_like(tensors: Sequence[Tensor], constants: str, numbers: Sequence[int]) -> Tensor:
    (offset,) = tensors
    return offset.new_empty(len(decoded(constants)[0]), *offset.shape[1:3], math.prod(offset.shape[3:]))


def _kernel(tensors: Sequence[Tensor], constants: str, numbers: Sequence[int]) -> Tensor:
    weight, offset, widening = (*tensors, None)[:3]
    return dcls_kernel(cast(Tensor, weight), cast(Tensor, offset), widening, *decoded(constants))


def _kernel_like(tensors: Sequence[Tensor], constants: str, numbers: Sequence[int]) -> Tensor:
    weight = tensors[0]
    return weight.new_empty(*weight.shape[:2], *(axis.size for axis in decoded(constants)[0]))


REGIONS["dcls_positions"] = Region(_positions, _positions_like)
REGIONS["dcls_kernel"] = Region(_kernel, _kernel_like)


class KeepInside(torch.autograd.Function):
    """``clamp(value, low, high)`` whose gradient stops only what would push further out, so a tap can always come back."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, low: float, high: float) -> Tensor:  # pyright: ignore
        return value.clamp(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # pyright: ignore
        ctx.save_for_backward(inputs[0])
        ctx.bounds = inputs[1:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        (value,) = ctx.saved_tensors
        low, high = ctx.bounds
        # Descent moves against the gradient: a positive one pushes down.
        outward = ((value < low) & (gradient > 0)) | ((value > high) & (gradient < 0))
        return gradient.masked_fill(outward, 0), None, None


class Place(torch.autograd.Function):
    """``place``, with its derivatives.

    Axes beyond ``len(sizes)`` have None for both, as have widths of the linear form.

    Keeps its inputs alone for the backward, which is made of differentiable operations: derivatives of any order work.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(  # pyright: ignore
        weight: Tensor,
        kinds: tuple[str, ...],
        sizes: tuple[int, ...],
        position_0: Tensor,
        position_1: Tensor | None,
        position_2: Tensor | None,
        width_0: Tensor | None,
        width_1: Tensor | None,
        width_2: Tensor | None,
    ) -> Tensor:
        # One parameter for each argument: where no gradient is wanted, torch.compile tells by their number whether to pass ctx.
        factors = _factors(kinds, sizes, (position_0, position_1, position_2, width_0, width_1, width_2))
        first, rest = factors[0], _outer(factors[1:])
        if rest is None:
            kernel = weight @ first
        elif _folds(weight):
            kernel = _fold(weight, first) @ rest
        else:
            kernel = weight @ _pair(first, rest)
        return kernel.view(*weight.shape[:3], *sizes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # pyright: ignore
        weight, ctx.kinds, ctx.sizes, *places = inputs
        ctx.save_for_backward(weight, *places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        weight, *places = ctx.saved_tensors
        ndim = len(ctx.sizes)
        factors = _factors(ctx.kinds, ctx.sizes, places)
        first, rest = factors[0], _outer(factors[1:])
        rows, columns, count, taps = weight.shape
        wants_places = any(ctx.needs_input_grad[3:])
        d_factors: list[Tensor] = []
        if rest is None:
            d_weight = gradient @ first.mT
            d_factors = [weight.mT @ gradient]
        elif _folds(weight):
            gradient = gradient.reshape(rows, columns, count * ctx.sizes[0], -1)
            along = (gradient @ rest.mT).view(rows, columns, count, ctx.sizes[0], taps)
            d_weight = (along * first.mT[:, :, None]).sum(3)
            if wants_places:
                d_first = (along * weight[:, :, :, None]).sum(2).mT
                d_factors = [d_first, *_outer_backward(_fold(weight, first).mT @ gradient, factors[1:])]
        else:
            gradient = gradient.reshape(rows, columns, count, -1)
            d_weight = gradient @ _pair(first, rest).mT
            if wants_places:
                d_pair = (weight.mT @ gradient).view(rows, columns, taps, ctx.sizes[0], -1)
                d_first = (d_pair @ rest[..., None]).squeeze(-1)
                d_rest = (first[..., None, :] @ d_pair).squeeze(-2)
                d_factors = [d_first, *_outer_backward(d_rest, factors[1:])]
        d_positions: list[Tensor | None] = [None] * MAX_NDIM
        d_widths: list[Tensor | None] = [None] * MAX_NDIM
        for axis, d_factor in enumerate(d_factors):
            position, width = places[axis], places[MAX_NDIM + axis]
            if ctx.needs_input_grad[3 + axis] or ctx.needs_input_grad[3 + MAX_NDIM + axis]:
                found = interpolate_backward(ctx.kinds[axis], position, width, d_factor, ndim)
                d_positions[axis], d_widths[axis] = found
        return d_weight, None, None, *d_positions, *d_widths


def _factors(kinds: tuple[str, ...], sizes: tuple[int, ...], places: Sequence[Any]) -> list[Tensor]:
    ndim = len(sizes)
    return [interpolate(kinds[a], places[a], places[MAX_NDIM + a], sizes[a], ndim) for a in range(ndim)]


def _folds(weight: Tensor) -> bool:
    """With few weights per set of positions, they are folded into the first axis's factor; with many, the taps' footprints
    on the window are tabulated once and shared."""
    return weight.shape[2] < weight.shape[3]


def _fold(weight: Tensor, first: Tensor) -> Tensor:
    """``(A, B, M * cells of the first axis, T)``"""
    return (weight[:, :, :, None] * first.mT[:, :, None]).flatten(2, 3)


def _pair(first: Tensor, rest: Tensor) -> Tensor:
    """``(A, B, T, cells)``: the outer product of two factors, flat."""
    return (first[..., :, None] * rest[..., None, :]).flatten(-2)


def _outer(factors: Sequence[Tensor]) -> Tensor | None:
    """The flat outer product of the axes after the first: none, one (2-d) or two (3-d)."""
    if len(factors) == 2:
        return _pair(factors[0], factors[1])
    return factors[0] if factors else None


def _outer_backward(gradient: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
    if len(factors) == 1:
        return [gradient]
    first, second = factors
    gradient = gradient.unflatten(-1, (first.shape[-1], second.shape[-1]))
    return [(gradient @ second[..., None]).squeeze(-1), (first[..., None, :] @ gradient).squeeze(-2)]
