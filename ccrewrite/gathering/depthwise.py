"""Depthwise convolutions with wide kernels on a CPU, in eager mode: torch's, asked in the way in which it is fast.

Zeros beside the input that are wider than some six samples make it take twenty times as long, and so does its gradient of the
kernel. So the input is padded before, and that gradient is a depthwise convolution too: of the input, with what arrives at each
picture's channel as its kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ccrewrite.gathering.corners import Pads, pad
from ccrewrite.ir.torch_private import untraced
from ccrewrite.ir.typed import Context, TensorFunction

NARROW = 3
"""Kernels of at most so many cells along each axis are left to torch."""
PADDED_INSIDE = 6 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 4
"""Zeros that oneDNN's depthwise convolution takes on each side: as many as it computes outputs at once."""


def takes(input: Tensor, kernel: Tensor, stride: Sequence[int]) -> bool:
    """Whether ``depthwise_conv`` computes such a call."""
    if not untraced() or any(type(t) not in (Tensor, nn.Parameter) for t in (input, kernel)):
        return False
    if input.device.type != "cpu" or not input.dtype == kernel.dtype == torch.float32:
        return False
    channels = kernel.shape[0] if kernel.shape[1] == 1 else 0
    shaped = input.dim() == kernel.dim() < 5 and input.shape[1] == channels and input.numel() > 0
    return shaped and max(stride) == 1 and max(kernel.shape[2:]) > NARROW


def depthwise_conv(input: Tensor, kernel: Tensor, bias: Tensor | None, pads: Pads) -> Tensor:
    """``input`` ``(N, C, *size)`` of one or two axes convolved with ``kernel`` ``(C, 1, *cells)``, stride 1, zeros beside it as
    ``pads`` says. Differentiable, any number of times."""
    for axis, n in enumerate(input.shape[2:], 2):
        low, high = pads[axis - 2]
        cells = kernel.shape[axis]
        # Cells before ``first`` and from ``stop`` on meet zeros alone.
        first, stop = max(0, low - (n + low + high - cells)), min(cells, n + low)
        if first < stop:
            kernel = kernel.narrow(axis, first, stop - first)
            pads = [*pads[: axis - 2], (low - first, high - (cells - stop)), *pads[axis - 1 :]]
    if input.dim() == 4:
        return _Depthwise.apply(input, kernel, bias, pads)
    return _Depthwise.apply(input[:, :, None], kernel[:, :, None], bias, [(0, 0), *pads])[:, :, 0]


class _Kept(Context, Protocol):
    pads: Pads


class _Depthwise(TensorFunction):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: _Kept, input: Tensor, kernel: Tensor, bias: Tensor | None, pads: Pads
    ) -> Tensor:
        ctx.save_for_backward(input, kernel)
        ctx.pads = pads
        return _convolved(*_inside(input, pads), kernel, bias)

    @staticmethod
    def backward(ctx: _Kept, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        input, kernel = ctx.saved_tensors
        wants_input, wants_kernel, wants_bias = ctx.needs_input_grad[:3]
        d_bias = gradient.sum((0, 2, 3)) if wants_bias else None
        if torch.is_grad_enabled():  # a second derivative will be wanted: by operators that have one
            out = _convolved(pad(input, ctx.pads), [0, 0], kernel, None)
            wanted = [t for t, wants in ((input, wants_input), (kernel, wants_kernel)) if wants]
            given = iter(torch.autograd.grad(out, wanted, gradient, create_graph=True))
            return next(given) if wants_input else None, next(given) if wants_kernel else None, d_bias, None
        d_input = _of_input(gradient, input, kernel, ctx.pads) if wants_input else None
        d_kernel = _of_kernel(gradient, input, ctx.pads) if wants_kernel else None
        return d_input, d_kernel, d_bias, None


def _inside(input: Tensor, pads: Pads) -> tuple[Tensor, list[int]]:
    """What is convolved, and the zeros that are left to the convolution."""
    if all(low == high <= PADDED_INSIDE for low, high in pads):
        return input, [low for low, _ in pads]
    return pad(input, pads), [0, 0]


def _convolved(input: Tensor, padding: Sequence[int], kernel: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.aten.convolution(input, kernel, bias, [1, 1], padding, [1, 1], False, [0, 0], len(kernel))


def _of_input(gradient: Tensor, input: Tensor, kernel: Tensor, pads: Pads) -> Tensor:
    even = all(low == high for low, high in pads)
    data, padding = (input, [low for low, _ in pads]) if even else (pad(input, pads), [0, 0])
    how = [1, 1], padding, [1, 1], False, [0, 0], len(kernel), [True, False, False]
    found = torch.ops.aten.convolution_backward(gradient, data, kernel, None, *how)[0]
    return found if even else pad(found, [(-low, -high) for low, high in pads])


def _of_kernel(gradient: Tensor, input: Tensor, pads: Pads) -> Tensor:
    data, (batch, channels) = pad(input, pads).contiguous(), input.shape[:2]
    arrived = gradient.contiguous().view(batch * channels, 1, *gradient.shape[2:])
    found = _convolved(data.view(1, batch * channels, *data.shape[2:]), [0, 0], arrived, None)
    return found.view(batch, channels, *found.shape[2:]).sum(0)[:, None]
