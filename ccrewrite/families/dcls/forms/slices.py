"""A DCLS convolution in eager mode at the cost of its taps: data read where each tap is, then one product with the weights.

    out[o, y] = sum_t sum_i weight[o, i, t] x[i, stride * y - pad + p_t]

However far apart the taps are, the cost follows their number and not the window (the im2col-like implementation that arXiv
2112.03740 describes). What is read is the input, where its channels share a tap's place, have places of their own, or each give
one output (depthwise). Where each output channel has its own places, or outputs have far fewer channels, every tap's products
with the input come first and are read instead.

The backward reads again. So only inputs are kept, and taps go block by block: nothing of the size taps x input is ever there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ccrewrite.families.dcls.forms.shared import SharedInputs, SharedProducts
from ccrewrite.families.dcls.forms.ways import Compiled, Depthwise, Indexed, Inputs, Products, Way, indexed_forms
from ccrewrite.families.dcls.place import place
from ccrewrite.gathering.corners import pad
from ccrewrite.gathering.places import Layout
from ccrewrite.ir.typed import Context, TensorFunction

FEWER = 2
"""From so many times fewer output than input channels, products come first."""


def takes(sharing: str, weight: Tensor, layout: Layout, device: torch.device) -> bool:
    """Whether ``dcls_conv`` evaluates such a convolution: not where each weight has a place of its own."""
    out, inner = weight.shape[:2]
    if device.type != "cpu":
        shares = ("tap", "out", "full") if inner == 1 else ("tap", "out")
        return sharing in shares and bool(indexed_forms(weight, 1 if sharing == "tap" else out, layout))
    if inner == 1 or sharing in ("tap", "group", "in"):
        return True
    return sharing == "out" and layout.groups == 1 and max(layout.stride) == 1


def dcls_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    positions: Tensor,
    sharing: str,
    layout: Layout,
    compiled: str | None = None,
) -> Tensor:
    """The convolution whose taps ``weight`` ``(out, in/groups, taps)`` lie at ``positions`` ``(ndim, A, B, taps)``, in cells of
    the window, which channels share as ``sharing`` says: linearly interpolated. ``input`` is ``(N, in, *size)``.

    ``compiled``: a compiled form, which may take calls that ``takes`` doesn't (``operators.applicable``). Else for calls that
    ``takes`` answers with yes. Differentiable, any number of times. Reads values of ``positions``.

    >>> x, weight, places = torch.ones(1, 2, 5), torch.ones(3, 2, 1), torch.tensor([[[[0.5]]]])
    >>> dcls_conv(x, weight, None, places, "tap", Layout((2,), (1,), [(0, 0)], 1))[0, 0]
    tensor([2., 2., 2., 2.])
    """
    out, inner = weight.shape[:2]
    if inner == 1 and out > layout.groups:  # several outputs of each channel: as if each had an input of its own
        input, layout = input.repeat_interleave(out // layout.groups, 1), layout._replace(groups=out)
    own = positions.shape[1] * positions.shape[2] > 1
    if not own:
        places = positions[:, :, 0]
    elif inner == 1 or sharing == "out":
        places = positions[:, :, 0].repeat_interleave(out // positions.shape[1], 1)
    elif sharing == "group":
        places = positions[:, :, 0].repeat_interleave(inner, 1)
    else:  # "in": each group's inputs have the same ones
        places = positions[:, 0].repeat(1, layout.groups, 1)
    of_outputs = own and inner > 1 and sharing == "out"
    way: Callable[..., Way] = way_of(input, weight, layout, own, of_outputs=of_outputs)
    if compiled is not None:
        way = functools.partial(Compiled, form=compiled)
    trains = torch.is_grad_enabled()
    return _Sliced.apply(input, weight, bias, places, layout, way, of_outputs or way is SharedProducts, trains)


def way_of(input: Tensor, weight: Tensor, layout: Layout, own: bool, *, of_outputs: bool) -> type[Way]:
    """What is read, and how. ``own``: places of each channel; ``of_outputs``: of each output channel."""
    if input.device.type != "cpu":
        return Indexed
    if weight.shape[1] == 1 and weight.shape[0] == layout.groups:
        return Depthwise
    fewer = layout.groups == 1 and max(layout.stride) == 1 and FEWER * weight.shape[0] <= input.shape[1]
    if not own:
        return SharedProducts if fewer else SharedInputs
    return Products if of_outputs else Inputs


class _Kept(Context, Protocol):
    layout: Layout
    way: Callable[..., Way]
    of_outputs: bool


def _no_view(out: Tensor) -> Tensor:
    """``out`` on its own: behind an autograd function torch lets nobody change a view in place, as a ReLU may."""
    return out.new_empty(0).set_(out) if out._is_view() else out  # pyright: ignore[reportPrivateUsage, reportArgumentType]


class _Sliced(TensorFunction):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: _Kept,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        positions: Tensor,
        layout: Layout,
        way: Callable[..., Way],
        of_outputs: bool,
        trains: bool,
    ) -> Tensor:
        ctx.save_for_backward(input, weight, positions)
        ctx.layout, ctx.way, ctx.of_outputs = layout, way, of_outputs
        call = way(input, weight, positions, layout)
        call.phase = "forward" if trains else "inference"
        return _no_view(call.forward(None if bias is None else bias.to(input.dtype)))

    @staticmethod
    def backward(ctx: _Kept, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        tensors = dict(zip(("input", "weight", "positions"), ctx.saved_tensors, strict=True))
        wants_input, wants_weight, wants_bias, wants_positions = ctx.needs_input_grad[:4]
        wants = dict(zip(tensors, (wants_input, wants_weight, wants_positions), strict=True))
        if torch.is_grad_enabled():  # a second derivative will be wanted: by operators that have one
            out = _differentiable(**tensors, layout=ctx.layout, of_outputs=ctx.of_outputs)
            wanted = {name: tensor for name, tensor in tensors.items() if wants[name]}
            gradients = torch.autograd.grad(out, list(wanted.values()), gradient, create_graph=True)
            found = dict(zip(wanted, gradients, strict=True))
        else:
            found = ctx.way(**tensors, layout=ctx.layout).backward(gradient.contiguous(), wants["input"], wants["positions"])
        d_input, d_weight, d_positions = (found.get(name) if wants[name] else None for name in wants)
        d_bias = gradient.sum((0, *range(2, gradient.dim()))) if wants_bias else None
        return d_input, d_weight, d_bias, d_positions, None, None, None, None


def _differentiable(input: Tensor, weight: Tensor, positions: Tensor, layout: Layout, of_outputs: bool) -> Tensor:
    """The same by the dense kernel, which can be differentiated any number of times."""
    out, inner, taps = weight.shape
    if positions.shape[1] == 1:
        grouped, places = weight.view(1, 1, out * inner, taps), positions[:, :, None]
    elif of_outputs or inner == 1:
        grouped, places = weight.view(out, 1, inner, taps), positions[:, :, None]
    else:  # (groups, 1, out/groups, in/groups): of every input channel
        split = weight.view(layout.groups, out // layout.groups, inner, taps).transpose(1, 2)
        grouped, places = split, positions.view(len(positions), layout.groups, inner, taps)
    sizes, ndim = tuple(layout.window), len(layout.window)
    kernel = place(grouped, ("linear",) * ndim, sizes, list(places), [None] * ndim)
    if grouped.shape[1] != 1:
        kernel = kernel.transpose(1, 2)
    kernel = kernel.reshape(out, inner, *sizes)
    zeros, ones = [0] * ndim, [1] * ndim
    data = pad(input, layout.pads)
    return torch.ops.aten.convolution(data, kernel, None, layout.stride, zeros, ones, False, zeros, layout.groups)
