"""The operators ``ccrewrite::dcls_slices`` and ``ccrewrite::dcls_slices_backward``: the eager slices in a compiled model.

Taps that all channels share are read as slices where a number says, which only eager code knows. Inductor calls these as they
are: what they are made of is never compiled, so they cost no time to compile either, however many layers there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ccrewrite.families import regions
from ccrewrite.families.dcls.forms.slices import way_of
from ccrewrite.families.dcls.forms.ways import Way
from ccrewrite.gathering.places import Layout
from ccrewrite.ir.operators import autocast
from ccrewrite.ir.typed import Context, differentiated_, fake_of


def dcls_slices(input: Tensor, weight: Tensor, offset: Tensor, grid: str, layout: Layout) -> Tensor:
    """The convolution whose taps ``weight`` ``(out, in/groups, taps)`` are moved by ``offset`` ``(axes, 1, 1, *taps)`` in the
    window of ``grid`` (``Grid.to_text``); without a bias. ``input`` is ``(N, in, *size)``. Differentiable once."""
    pads = [n for pair in layout.pads for n in pair]
    arguments = grid, list(layout.window), list(layout.stride), pads, layout.groups
    return torch.ops.ccrewrite.dcls_slices(*autocast(input, weight), offset, *arguments)


POSITIONS = "dcls_positions"
"""The region (``ccrewrite.families.regions``) that gives positions."""


@torch.library.custom_op("ccrewrite::dcls_slices", mutates_args=())
def _forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    grid: str,
    window: Sequence[int],
    stride: Sequence[int],
    pads: Sequence[int],
    groups: int,
) -> Tensor:
    way = _way(input, weight, _positions(offset, grid), _layout(window, stride, pads, groups))
    way.phase = "forward"
    return way.forward(None).contiguous()


@torch.library.custom_op("ccrewrite::dcls_slices_backward", mutates_args=())
def _backward(
    gradient: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    grid: str,
    window: Sequence[int],
    stride: Sequence[int],
    pads: Sequence[int],
    groups: int,
    wants: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    way = _way(input, weight, _positions(offset, grid), _layout(window, stride, pads, groups))
    found = way.backward(gradient.contiguous(), wants[0], wants[2])
    nothing = input.new_empty(0)
    first = found["input"].contiguous() if wants[0] else nothing
    third = nothing
    if wants[2]:
        arrived = found["positions"].to(offset.dtype)[:, :, None]
        third = regions.region_backward_of(arrived, [offset], POSITIONS, grid, (), [True])[0]
    return first, found["weight"].contiguous(), third


def _positions(offset: Tensor, grid: str) -> Tensor:
    """``(ndim, 1, taps)``, in cells of the window."""
    return regions.region_of([offset], POSITIONS, grid, ())[:, :, 0]


def _way(input: Tensor, weight: Tensor, positions: Tensor, layout: Layout) -> Way:
    return way_of(input, weight, layout, False, of_outputs=False)(input.contiguous(), weight, positions, layout)


def _layout(window: Sequence[int], stride: Sequence[int], pads: Sequence[int], groups: int) -> Layout:
    return Layout(tuple(window), tuple(stride), list(zip(pads[::2], pads[1::2], strict=True)), groups)


@fake_of(_forward)
def _(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    grid: str,
    window: Sequence[int],
    stride: Sequence[int],
    pads: Sequence[int],
    groups: int,
) -> Tensor:
    outputs = _layout(window, stride, pads, groups).outputs(input)
    return input.new_empty(input.shape[0], weight.shape[0], *outputs)


@fake_of(_backward)
def _(
    gradient: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    grid: str,
    window: Sequence[int],
    stride: Sequence[int],
    pads: Sequence[int],
    groups: int,
    wants: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    first, third = (like.new_empty(like.shape if want else (0,)) for like, want in ((input, wants[0]), (offset, wants[2])))
    return first, weight.new_empty(weight.shape), third


_Others = tuple[str, Sequence[int], Sequence[int], Sequence[int], int]


class _Kept(Context, Protocol):
    others: _Others


def _setup_context(ctx: _Kept, inputs: tuple[Tensor, Tensor, Tensor, *_Others], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.others = inputs[3:]


def _differentiate(ctx: _Kept, gradient: Tensor) -> tuple[Tensor | None, ...]:
    wants = list(ctx.needs_input_grad[:3])
    found = torch.ops.ccrewrite.dcls_slices_backward(gradient, *ctx.saved_tensors, *ctx.others, wants)
    return *(g if wanted else None for g, wanted in zip(found, wants, strict=True)), None, None, None, None, None


differentiated_(_forward, _differentiate, _setup_context)
