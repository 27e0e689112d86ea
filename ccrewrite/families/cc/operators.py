"""The operators ``ccrewrite::cc_conv`` and ``ccrewrite::cc_conv_backward``: a CC layer off its start, by filters and a product.

    conv        data where every tap is, by sums of slices along each axis, then one product with the untouched weight
    transposed  the product first; its results, brought from their taps to the outputs, after

Opaque to autograd and to torch.compile's partitioner: only inputs are kept, and the backward filters again.
``ccrewrite.lowering.inductor`` puts their code in place, for Inductor to fuse (``ccrewrite.gathering.strided``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from ccrewrite.families.cc.profile import SUPPORT, Along, factor
from ccrewrite.families.regions import EXPANSIONS
from ccrewrite.gathering.strided import (
    Strided,
    convolved,
    convolved_transposed,
    gradients,
    mix,
    mix_backward,
    near_taps,
    stages,
    tapwise,
)
from ccrewrite.ir.geometry import ConvArguments, ConvGeometry, Ints
from ccrewrite.ir.operators import autocast, full_precision
from ccrewrite.ir.typed import Context, differentiated_, fake_of

MIN_CHANNELS = 16
"""Input channels of a group (transposed: output channels), from which the form pays: slices are read along them."""


def applicable(geometry: ConvGeometry) -> bool:
    """Whether the operators evaluate such a convolution well."""
    channels = geometry.out_channels if geometry.transposed else geometry.in_channels
    return geometry.groups == 1 or channels >= MIN_CHANNELS * geometry.groups


def cc_conv(
    input: Tensor, weight: Tensor, bias: Tensor | None, alongs: Sequence[Along], margin: Ints, call: ConvArguments
) -> Tensor:
    """The convolution of ``call`` (torch's arguments) with the continuous kernel ``alongs``. ``input`` is ``(N, in, *size)`` or
    without a batch; the result has its channels last in memory. Differentiable once."""
    g = ConvGeometry.from_call("conv_transpose" if "output_padding" in call else "conv", weight.shape, call)
    input, weight = autocast(input, weight)
    batched = input if input.dim() == 2 + len(alongs) else input[None]
    numbers: list[int] = []
    factors: list[Tensor] = []
    with full_precision(weight.device):
        for a, along in enumerate(alongs):
            factors.append(factor(along, g.kernel_size[a], g.dilation[a], margin[a], weight.device))
            reach = 0 if not along.layers else along.extent or SUPPORT
            low, high = (p + margin[a] for p in g.pads[a])
            numbers += [g.stride[a], low, high - g.output_padding[a], g.dilation[a], margin[a], reach]
    out = torch.ops.ccrewrite.cc_conv(batched, weight, factors, numbers, g.transposed, g.groups)
    out = out if bias is None else out + bias.to(out.dtype).view(-1, *(1,) * len(alongs))
    return out if batched is input else out[0]


class Call(NamedTuple):
    """What forward and backward have in common."""

    axes: list[Strided]
    groups: int
    taps: int

    @classmethod
    def of(
        cls,
        sizes: Sequence[int],
        weight: Tensor,
        factors: Sequence[Tensor],
        numbers: Sequence[int],
        transposed: bool,
        groups: int,
    ) -> Call:
        axes: list[Strided] = []
        for a, values in enumerate(factors):
            stride, low, high, spacing, margin, reach = numbers[6 * a : 6 * a + 6]
            given, cells, near = sizes[a], values.shape[1], near_taps(len(values), spacing, margin, reach)
            if transposed:
                fine, coarse = (given - 1) * stride - low - high + cells, given
            else:
                fine, coarse = given, (given + low + high - cells) // stride + 1
            axes.append(Strided(values, stride, low, fine, coarse, near))
        return cls(axes, groups, weight[0, 0].numel())

    def grouped(self, data: Tensor) -> Tensor:
        """``(N, C, *size)`` -> ``(N, *size, groups, C / groups)``"""
        return torch.unflatten(data.movedim(1, -1), -1, (self.groups, -1))

    def flat(self, data: Tensor) -> Tensor:
        """``(N, *size, groups, ..., C)`` -> ``(N, *size, channels)``"""
        return data.flatten(1 + len(self.axes))

    def mixing(self, weight: Tensor, transposed: bool) -> Tensor:
        """``(out, taps * in/groups)``; transposed ``(groups * taps * out/groups, in/groups)``"""
        if not transposed:
            return weight.flatten(2).transpose(1, 2).flatten(1)
        return torch.unflatten(weight.flatten(2), 0, (self.groups, -1)).permute(0, 3, 2, 1).flatten(0, 2)

    def weights(self, mixing: Tensor, like: Tensor, transposed: bool) -> Tensor:
        """The inverse of ``mixing``."""
        if not transposed:
            return torch.unflatten(mixing, 1, (self.taps, -1)).transpose(1, 2).reshape(like.shape)
        return mixing.view(self.groups, self.taps, like.shape[1], -1).permute(0, 3, 2, 1).reshape(like.shape)


def forward_of(
    input: Tensor,
    weight: Tensor,
    factors: Sequence[Tensor],
    numbers: Sequence[int],
    transposed: bool,
    groups: int,
) -> Tensor:
    """What ``ccrewrite::cc_conv`` is made of."""
    call = Call.of(input.shape[2:], weight, factors, numbers, transposed, groups)
    mixing = call.mixing(weight, transposed)
    return (convolved_transposed if transposed else convolved)(input, mixing, call.axes, groups)


def backward_of(
    gradient: Tensor,
    input: Tensor,
    weight: Tensor,
    factors: Sequence[Tensor],
    numbers: Sequence[int],
    transposed: bool,
    groups: int,
    wants: Sequence[bool],
) -> list[Tensor]:
    """What ``ccrewrite::cc_conv_backward`` is made of: the gradients of input, weight and factors, empty where ``wants`` (of
    input, weight, factors) says no."""
    call = Call.of(input.shape[2:], weight, factors, numbers, transposed, groups)
    mixing = call.mixing(weight, transposed)
    if transposed:
        passed, data = stages(call.grouped(gradient), call.axes), input.movedim(1, -1)
        d_data, d_mixing = mix_backward(call.flat(passed[-1]), data, mixing, groups, wants[:2])
        coarse = tapwise(mix(data, mixing, groups), call.axes, groups) if wants[2] else passed[-1]
        _, d_factors = gradients(passed, coarse, call.axes, False, wants[2])
    else:
        passed = stages(call.grouped(input), call.axes)
        asked = [wants[0] or wants[2], wants[1]]
        d_coarse, d_mixing = mix_backward(gradient.movedim(1, -1), call.flat(passed[-1]), mixing, groups, asked)
        d_fine, d_factors = gradients(passed, tapwise(d_coarse, call.axes, groups), call.axes, wants[0], wants[2])
        d_data = d_coarse if d_fine is None else call.flat(d_fine)
    nothing = input.new_empty(0)
    return [
        d_data.movedim(-1, 1) if wants[0] else nothing,
        call.weights(d_mixing, weight, transposed).contiguous() if wants[1] else nothing,
        *(d_factors if wants[2] else [nothing] * len(factors)),
    ]


ARGUMENTS = "Tensor input, Tensor weight, Tensor[] factors, int[] numbers, bool transposed, int groups"


@torch.library.custom_op("ccrewrite::cc_conv", mutates_args=(), schema=f"({ARGUMENTS}) -> Tensor")
def _forward(
    input: Tensor,
    weight: Tensor,
    factors: Sequence[Tensor],
    numbers: Sequence[int],
    transposed: bool,
    groups: int,
) -> Tensor:
    return forward_of(input, weight, factors, numbers, transposed, groups).clone()


@torch.library.custom_op(
    "ccrewrite::cc_conv_backward", mutates_args=(), schema=f"(Tensor gradient, {ARGUMENTS}, bool[] wants) -> Tensor[]"
)
def _backward(
    gradient: Tensor,
    input: Tensor,
    weight: Tensor,
    factors: Sequence[Tensor],
    numbers: Sequence[int],
    transposed: bool,
    groups: int,
    wants: Sequence[bool],
) -> list[Tensor]:
    every = backward_of(gradient, input, weight, factors, numbers, transposed, groups, wants)
    return [found.clone() for found in every]


@fake_of(_forward)
def _(
    input: Tensor,
    weight: Tensor,
    factors: Sequence[Tensor],
    numbers: Sequence[int],
    transposed: bool,
    groups: int,
) -> Tensor:
    call = Call.of(input.shape[2:], weight, factors, numbers, transposed, groups)
    outputs = [axis.fine if transposed else axis.coarse for axis in call.axes]
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    return input.new_empty(input.shape[0], *outputs, channels).movedim(-1, 1)


@fake_of(_backward)
def _(
    gradient: Tensor,
    input: Tensor,
    weight: Tensor,
    factors: Sequence[Tensor],
    numbers: Sequence[int],
    transposed: bool,
    groups: int,
    wants: Sequence[bool],
) -> list[Tensor]:
    nothing = input.new_empty(0)
    last = input.new_empty(input.shape[0], *input.shape[2:], input.shape[1]).movedim(-1, 1)
    return [
        last if wants[0] else nothing,
        weight.new_empty(weight.shape) if wants[1] else nothing,
        *(f.new_empty(f.shape) if wants[2] else nothing for f in factors),
    ]


_Inputs = tuple[Tensor, Tensor, Sequence[Tensor], Sequence[int], bool, int]


class _Kept(Context, Protocol):
    numbers: Sequence[int]
    transposed: bool
    groups: int


def _setup_context(ctx: _Kept, inputs: _Inputs, output: Tensor) -> None:
    input, weight, factors, ctx.numbers, ctx.transposed, ctx.groups = inputs
    ctx.save_for_backward(input, weight, *factors)


def _differentiate(ctx: _Kept, gradient: Tensor) -> tuple[Tensor | list[Tensor] | list[None] | None, ...]:
    input, weight, *factors = ctx.saved_tensors
    of_factors = cast("Sequence[bool]", ctx.needs_input_grad[2])  # of a list of tensors, one for each
    wants = [*ctx.needs_input_grad[:2], any(of_factors)]
    numbers = ctx.numbers, ctx.transposed, ctx.groups
    found = torch.ops.ccrewrite.cc_conv_backward(gradient, input, weight, factors, *numbers, wants)
    first, second = (g if wanted else None for g, wanted in zip(found[:2], wants, strict=False))
    return first, second, (found[2:] if wants[2] else [None] * len(factors)), None, None, None


differentiated_(_forward, _differentiate, _setup_context)

EXPANSIONS[torch.ops.ccrewrite.cc_conv.default] = forward_of
EXPANSIONS[torch.ops.ccrewrite.cc_conv_backward.default] = backward_of
