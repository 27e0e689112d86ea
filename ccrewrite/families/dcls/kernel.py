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

from ccrewrite.families.interpolation import MIN_WIDTH, KeepInside, interpolate, interpolate_backward
from ccrewrite.families.regions import REGIONS, Region

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
        count = taps[self.dim]
        along = torch.linspace(self.origin, self.origin + self.step * (count - 1), count, dtype=like.dtype, device=like.device)
        return along.view([-1 if d == self.dim else 1 for d in range(len(taps))]).expand(*taps).flatten()


class Alike(NamedTuple):
    """Axes one after the other that are of one size and all move, or one that doesn't: computed together, for on small kernels
    the number of operators is what takes time."""

    size: int
    axes: tuple[Axis, ...]

    @property
    def moves(self) -> bool:
        return self.axes[0].row >= 0


def alike(axes: Sequence[Axis]) -> list[Alike]:
    """``axes`` in their order, those that can be computed together as one."""
    found: list[Alike] = []
    for axis in axes:
        if found and found[-1].moves and axis.row >= 0 and found[-1].size == axis.size:
            found[-1] = Alike(axis.size, (*found[-1].axes, axis))
        else:
            found.append(Alike(axis.size, (axis,)))
    return found


def _alike_positions(kinds: Sequence[Alike], taps: Sequence[int], offset: Tensor) -> list[Tensor]:
    """For each of ``kinds``, ``(axes, A, B, prod(taps))``."""
    found: list[Tensor] = []
    offset = offset.flatten(3)
    for kind in kinds:
        starts = torch.stack([axis.start(taps, offset) for axis in kind.axes])[:, None, None]
        if kind.moves:
            moved = starts + offset[kind.axes[0].row : kind.axes[-1].row + 1]
            found.append(KeepInside.apply(moved, 0, kind.size - 1))
        else:
            found.append(starts.expand(1, *offset.shape[1:]))
    return found


def _alike_widths(kinds: Sequence[Alike], interpolation: str, width: float, widening: Tensor | None) -> Sequence[Tensor | None]:
    if widening is None:
        return [None] * len(kinds)
    widths = KeepInside.apply(width * widening.flatten(3).exp(), MIN_WIDTH[interpolation], float("inf"))
    return [widths[k.axes[0].row : k.axes[-1].row + 1] if k.moves else None for k in kinds]


def positions_of(axes: Sequence[Axis], taps: Sequence[int], offset: Tensor) -> list[Tensor]:
    """Position of every tap on each axis, ``(A, B, prod(taps))`` in cells of the window, kept inside it.

    ``offset``: ``(learned axes, A, B, *taps)``, in samples.
    """
    return [along for found in _alike_positions(alike(axes), taps, offset) for along in found.unbind()]


def widths_of(axes: Sequence[Axis], interpolation: str, width: float, widening: Tensor | None) -> list[Tensor | None]:
    """Width of every tap on each axis, ``(A, B, prod(taps))`` in samples, ``width * exp(widening)``; None where it has none."""
    found: list[Tensor | None] = []
    for widths in _alike_widths(alike(axes), interpolation, width, widening):
        found += [None] if widths is None else widths.unbind()
    return found if widening is not None else [None] * len(axes)


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
        together = alike([axis for axis in axes if axis.size > 1])  # of one cell nothing is to be interpolated
        positions = _alike_positions(together, weight.shape[2:], offset.to(dtype))
        widths = _alike_widths(together, interpolation, width, None if widening is None else widening.to(dtype))
        kinds = tuple(interpolation if k.moves else "linear" for k in together)
        sizes = tuple(k.size for k in together)
        out, inner = weight.shape[:2]
        rows, columns, taps = positions[0].shape[1:]
        grouped = weight.to(dtype).reshape(rows, out // rows, columns, inner // columns, taps).transpose(1, 2).flatten(2, 3)
        kernel = _placed(grouped, kinds, sizes, positions, widths)
        window = [axis.size for axis in axes]
        kernel = kernel.view(rows, columns, out // rows, inner // columns, *window).transpose(1, 2)
    return kernel.reshape(out, inner, *window).to(weight.dtype)


def place(
    weight: Tensor, kinds: tuple[str, ...], sizes: tuple[int, ...], positions: Sequence[Tensor], widths: Sequence[Tensor | None]
) -> Tensor:
    """``(A, B, M, T)`` weights of T taps, with positions (and widths) ``(A, B, T)`` per axis -> ``(A, B, M, *sizes)``."""
    return _placed(weight, kinds, sizes, [p[None] for p in positions], [None if w is None else w[None] for w in widths])


def _placed(
    weight: Tensor, kinds: tuple[str, ...], sizes: tuple[int, ...], positions: Sequence[Tensor], widths: Sequence[Tensor | None]
) -> Tensor:
    """``place`` with everything for axes that are alike together: positions (and widths) ``(axes, A, B, T)``."""
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


class Place(torch.autograd.Function):
    """``_placed``, with its derivatives.

    What is beyond ``len(sizes)`` has None for both, as have widths of the linear form.

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
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # pyright: ignore
        weight, ctx.kinds, ctx.sizes, *places = inputs
        ctx.save_for_backward(weight, *places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # pyright: ignore
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


def _factors(kinds: tuple[str, ...], sizes: tuple[int, ...], places: Sequence[Any]) -> list[Tensor]:
    """Of every axis, ``(A, B, T, cells)``."""
    ndim = sum(len(places[i]) for i in range(len(sizes)))
    found = (interpolate(kind, places[i], places[MAX_NDIM + i], sizes[i], ndim) for i, kind in enumerate(kinds))
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
    gradient = gradient.unflatten(-1, (first.shape[-1], second.shape[-1]))
    return [(gradient @ second[..., None]).squeeze(-1), (first[..., None, :] @ gradient).squeeze(-2)]
