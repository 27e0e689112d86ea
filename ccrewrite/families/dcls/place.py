"""Taps at continuous positions, placed on a dense window: one small factor for each axis.

The factors are ``(taps, cells of one axis)`` for each set of positions, and the kernel is one batched product of them. Nothing
of the size taps x window is built, and the backward recomputes the factors instead of keeping them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ccrewrite.families.interpolation import interpolate, interpolate_backward
from ccrewrite.ir.typed import Context, TensorFunction

MAX_NDIM = 3


def place(
    weight: Tensor, kinds: tuple[str, ...], sizes: tuple[int, ...], positions: Sequence[Tensor], widths: Sequence[Tensor | None]
) -> Tensor:
    """``(A, B, M, T)`` weights of T taps, with positions (and widths) ``(A, B, T)`` per axis -> ``(A, B, M, *sizes)``."""
    return placed(weight, kinds, sizes, [p[None] for p in positions], [None if w is None else w[None] for w in widths])


def placed(
    weight: Tensor, kinds: tuple[str, ...], sizes: tuple[int, ...], positions: Sequence[Tensor], widths: Sequence[Tensor | None]
) -> Tensor:
    """``place`` with everything for axes that are alike together: positions (and widths) ``(axes, A, B, T)``."""
    absent = [None] * (MAX_NDIM - len(sizes))
    return Place.apply(weight, kinds, sizes, *positions, *absent, *widths, *absent)


_Inputs = tuple[Tensor, tuple[str, ...], tuple[int, ...], *tuple[Tensor | None, ...]]


class _Kept(Context, Protocol):
    kinds: tuple[str, ...]
    sizes: tuple[int, ...]


class Place(TensorFunction):
    """``placed``, with its derivatives.

    What is beyond ``len(sizes)`` has None for both, as have widths of the linear form.

    Keeps its inputs alone for the backward, which is made of differentiable operations: derivatives of any order work.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
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
        cells = [f.shape[-1] for f in factors]
        first, rest = factors[0], _outer(factors[1:])
        if rest is None:
            kernel = weight @ first
        elif _folds(weight):
            kernel = _fold(weight, first) @ rest
        else:
            kernel = weight @ _pair(first, rest)
        return kernel.view(*weight.shape[:3], *cells)

    @staticmethod
    def setup_context(ctx: _Kept, inputs: _Inputs, output: Tensor) -> None:
        weight, ctx.kinds, ctx.sizes, *places = inputs
        ctx.save_for_backward(weight, *places)

    @staticmethod
    def backward(ctx: _Kept, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight, *places = ctx.saved_tensors
        factors = _factors(ctx.kinds, ctx.sizes, places)
        first, rest = factors[0], _outer(factors[1:])
        rows, columns, count, taps = weight.shape
        wants_places = any(ctx.needs_input_grad[3:])
        d_factors: list[Tensor] = []
        if rest is None:
            d_weight = gradient @ first.mT
            d_factors = [weight.mT @ gradient]
        elif _folds(weight):
            gradient = gradient.reshape(rows, columns, count * first.shape[-1], -1)
            along = (gradient @ rest.mT).view(rows, columns, count, first.shape[-1], taps)
            d_weight = (along * first.mT[:, :, None]).sum(3)
            if wants_places:
                d_first = (along * weight[:, :, :, None]).sum(2).mT
                d_factors = [d_first, *_outer_backward(_fold(weight, first).mT @ gradient, factors[1:])]
        else:
            gradient = gradient.reshape(rows, columns, count, -1)
            d_weight = gradient @ _pair(first, rest).mT
            if wants_places:
                d_pair = (weight.mT @ gradient).view(rows, columns, taps, first.shape[-1], -1)
                d_first = (d_pair @ rest[..., None]).squeeze(-1)
                d_rest = (first[..., None, :] @ d_pair).squeeze(-2)
                d_factors = [d_first, *_outer_backward(d_rest, factors[1:])]
        d_positions: list[Tensor | None] = [None] * MAX_NDIM
        d_widths: list[Tensor | None] = [None] * MAX_NDIM
        done = 0
        for index, kind in enumerate(ctx.kinds):
            position, width = places[index], places[MAX_NDIM + index]
            if ctx.needs_input_grad[3 + index] or ctx.needs_input_grad[3 + MAX_NDIM + index]:
                d_factor = torch.stack(d_factors[done : done + len(position)])
                found = interpolate_backward(kind, position, width, d_factor, len(factors))
                d_positions[index], d_widths[index] = found
            done += len(position)
        return d_weight, None, None, *d_positions, *d_widths


def _factors(kinds: tuple[str, ...], sizes: tuple[int, ...], places: Sequence[Tensor | None]) -> list[Tensor]:
    """Of every axis, ``(A, B, T, cells)``."""
    positions = [position for position in places[:MAX_NDIM] if position is not None]
    ndim = sum(len(position) for position in positions)
    axes = zip(kinds, positions, places[MAX_NDIM:], sizes, strict=False)  # widths are as many as MAX_NDIM
    found = (interpolate(kind, position, width, size, ndim) for kind, position, width, size in axes)
    return [factor for together in found for factor in together.unbind()]


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
    gradient = torch.unflatten(gradient, -1, (first.shape[-1], second.shape[-1]))
    return [(gradient @ second[..., None]).squeeze(-1), (first[..., None, :] @ gradient).squeeze(-2)]
