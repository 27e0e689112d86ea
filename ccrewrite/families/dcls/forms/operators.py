"""The operators ``ccrewrite::dcls_conv`` and ``ccrewrite::dcls_conv_backward``: a DCLS convolution in one of the forms.

Opaque to autograd and to torch.compile's partitioner, which therefore keep for the backward what the form says and not what it
gathers. ``ccrewrite.lowering.inductor`` expands them into their ATen code, for Inductor to fuse; without it they run that
code eagerly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ccrewrite.families.dcls.forms import products, shifts, taps
from ccrewrite.families.regions import EXPANSIONS
from ccrewrite.ir.operators import autocast
from ccrewrite.ir.typed import Context, differentiated_, fake_of

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class Form(NamedTuple):
    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., Gradients]
    keeps_products: bool


FORMS = {
    "products": Form(products.forward, products.backward, True),
    "shifts": Form(shifts.forward, shifts.backward, False),
    "taps": Form(taps.forward, taps.backward, False),
}


def applicable(groups: int, weight_shape: Sequence[int], sets: tuple[int, int], stride: Sequence[int]) -> tuple[str, ...]:
    """The forms that a convolution can take: ``weight_shape`` is ``(out, in/groups, ...)``, ``sets`` the numbers of output and
    of input channels (per group) that have positions of their own; for linear interpolation.

    >>> applicable(1, (8, 4, 3, 3), (1, 1), (1, 1)), applicable(8, (8, 1, 3, 3), (8, 1), (1, 1))
    (('products', 'shifts'), ('taps',))
    """
    out, inner = weight_shape[:2]
    if any(s != 1 for s in stride) or sets[1] != 1:
        return ()
    if groups == 1 and sets[0] in (1, out):
        return ("products", "shifts") if sets[0] == 1 else ("products",)
    if groups == out and inner == 1 and sets[0] in (1, out):
        return ("taps",)
    return ()


def dcls_conv(
    input: Tensor, weight: Tensor, positions: Tensor, form: str, window: Sequence[int], pads: Sequence[tuple[int, int]]
) -> Tensor:
    """The convolution (stride 1, without bias) whose taps ``weight`` ``(out, in/groups, taps)`` lie at ``positions``
    ``(ndim, 1 or out, taps)``, linearly interpolated, in ``form``. ``input`` is ``(N, in, *size)``.

    Differentiable once. Under autocast, input and weight are cast as a convolution's are; positions never.

    >>> x, weight, places = torch.ones(1, 2, 5), torch.ones(3, 2, 1), torch.tensor([[[0.5]]])
    >>> dcls_conv(x, weight, places, "products", (2,), [(0, 0)])[0, 0]
    tensor([2., 2., 2., 2.])
    """
    input, weight = autocast(input, weight)
    flat = [n for pair in pads for n in pair]
    return torch.ops.ccrewrite.dcls_conv(input, weight, positions, form, list(window), flat)[0]


@torch.library.custom_op("ccrewrite::dcls_conv", mutates_args=())
def _forward(
    input: Tensor, weight: Tensor, positions: Tensor, form: str, window: Sequence[int], pads: Sequence[int]
) -> tuple[Tensor, Tensor]:
    return forward_of(input, weight, positions, form, window, pads)


@torch.library.custom_op("ccrewrite::dcls_conv_backward", mutates_args=())
def _backward(
    gradient: Tensor,
    input: Tensor,
    weight: Tensor,
    positions: Tensor,
    kept: Tensor,
    form: str,
    window: Sequence[int],
    pads: Sequence[int],
    wants: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return backward_of(gradient, input, weight, positions, kept, form, window, pads, wants)


def forward_of(
    input: Tensor, weight: Tensor, positions: Tensor, form: str, window: Sequence[int], pads: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """What ``ccrewrite::dcls_conv`` is made of."""
    return FORMS[form].forward(input, weight, positions, window, _pairs(pads))


def backward_of(
    gradient: Tensor,
    input: Tensor,
    weight: Tensor,
    positions: Tensor,
    kept: Tensor,
    form: str,
    window: Sequence[int],
    pads: Sequence[int],
    wants: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``ccrewrite::dcls_conv_backward`` is made of; empty tensors stand for gradients that nothing wants."""
    found = FORMS[form].backward(gradient, input, weight, positions, kept, window, _pairs(pads), wants)
    first, second, third = (input.new_empty(0) if f is None else f for f in found)
    return first, second, third


@fake_of(_forward)
def _(
    input: Tensor, weight: Tensor, positions: Tensor, form: str, window: Sequence[int], pads: Sequence[int]
) -> tuple[Tensor, Tensor]:
    outputs = [n + low + high - w + 1 for n, w, (low, high) in zip(input.shape[2:], window, _pairs(pads), strict=True)]
    out, batch = weight.shape[0], input.shape[0]
    kept = (weight.shape[2], out, batch, *input.shape[2:]) if FORMS[form].keeps_products else (0,)
    return input.new_empty(batch, out, *outputs), input.new_empty(kept)


@fake_of(_backward)
def _(
    gradient: Tensor,
    input: Tensor,
    weight: Tensor,
    positions: Tensor,
    kept: Tensor,
    form: str,
    window: Sequence[int],
    pads: Sequence[int],
    wants: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = zip((input, weight, positions), wants, strict=True)
    first, second, third = (like.new_empty(like.shape if wanted else (0,)) for like, wanted in shapes)
    return first, second, third


_Inputs = tuple[Tensor, Tensor, Tensor, str, Sequence[int], Sequence[int]]


class _Kept(Context, Protocol):
    form: str
    window: Sequence[int]
    pads: Sequence[int]


def _setup_context(ctx: _Kept, inputs: _Inputs, output: tuple[Tensor, Tensor]) -> None:
    input, weight, positions, ctx.form, ctx.window, ctx.pads = inputs
    ctx.save_for_backward(input, weight, positions, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: _Kept, gradient: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 6
    wants = list(ctx.needs_input_grad[:3])
    saved = ctx.saved_tensors
    found = torch.ops.ccrewrite.dcls_conv_backward(gradient, *saved, ctx.form, ctx.window, ctx.pads, wants)
    return *(g if wanted else None for g, wanted in zip(found, wants, strict=True)), None, None, None


differentiated_(_forward, _differentiate, _setup_context)


def _pairs(pads: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(pads[::2], pads[1::2], strict=True))


EXPANSIONS[torch.ops.ccrewrite.dcls_conv.default] = forward_of
EXPANSIONS[torch.ops.ccrewrite.dcls_conv_backward.default] = backward_of
