"""Data with its channels last, ``(N, *size, C)``: products over channels, and moving there and back.

A tap's sample is one contiguous piece of all channels there. Torch's convolutions of one tap and of one channel each take such
data as it lies, where any other layout is rearranged inside, forth and back.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ccrewrite.gathering.corners import Pads

SMALL = 2**20
"""A product of so many multiplications is over sooner as a matrix product."""

# A product over channels as a convolution with one tap. A dilation of 2, which one tap doesn't feel, makes torch take oneDNN on
# one thread too: on some processors twice as fast as its matrix product.
_ONE_TAP = ([1, 1], [0, 0], [2, 2], False, [0, 0])


def last(x: Tensor) -> Tensor:
    """``(N, C, *size)`` -> ``(N, *size, C)``, contiguous."""
    if len(x) == 1:  # as a matrix, which torch turns over block by block
        return x[0].flatten(1).t().contiguous().view(1, *x.shape[2:], x.shape[1])
    return x.movedim(1, -1).contiguous()


def first(x: Tensor) -> Tensor:
    """``(N, *size, C)`` -> ``(N, C, *size)``, contiguous."""
    if len(x) == 1:
        return x[0].flatten(0, -2).t().contiguous().view(1, x.shape[-1], *x.shape[1:-1])
    return x.movedim(-1, 1).contiguous()


def padded(x: Tensor, pads: Pads) -> Tensor:
    """``(N, C, *size)``, as ``places.padded`` pads it, in memory with its channels last."""
    return F.pad(last(x), [0, 0, *(n + 1 for pair in reversed(pads) for n in pair)]).movedim(-1, 1)


def mix(data: Tensor, mixing: Tensor, groups: int = 1, bias: Tensor | None = None) -> Tensor:
    """``(N, *size, in)`` and ``(out, in/groups)`` -> ``(N, *size, out)``."""
    if not _convolved(data, mixing, groups):
        out = data @ mixing.mT
        return out if bias is None else out.add_(bias)
    out = torch.ops.aten.convolution(_picture(data), mixing[:, :, None, None], bias, *_ONE_TAP, groups)
    return out.permute(0, 2, 3, 1).view(*data.shape[:-1], len(mixing))


def mix_backward(gradient: Tensor, data: Tensor, mixing: Tensor, groups: int, wants_data: bool) -> tuple[Tensor, Tensor]:
    """The gradients of ``data`` (of no use unless ``wants_data``) and ``mixing``."""
    if not _convolved(data, mixing, groups):
        return gradient @ mixing if wants_data else data, gradient.flatten(0, -2).mT @ data.flatten(0, -2)
    tensors, asked = (_picture(gradient), _picture(data), mixing[:, :, None, None]), [wants_data, True, False]
    d_data, d_mixing, _ = torch.ops.aten.convolution_backward(*tensors, None, *_ONE_TAP, groups, asked)
    return d_data.permute(0, 2, 3, 1).reshape(data.shape) if wants_data else data, d_mixing.reshape(mixing.shape)


def depthwise(data: Tensor, kernel: Tensor, axis: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Tensor:
    """``data`` ``(N, *size, C)`` convolved along one axis with ``kernel`` ``(C, cells)``; ``(1, cells)`` for all alike."""
    size, behind, channels = data.shape[1 + axis], math.prod(data.shape[2 + axis : -1]), data.shape[-1]
    in_row = behind == 1  # of a picture, which torch reads along its rows
    picture = data.view(1, -1, size, channels) if in_row else data.view(-1, size, behind, channels)
    kernel = kernel.expand(channels, -1)[:, None]
    along = [(1, stride), (0, padding), (1, dilation)]
    how = along if in_row else [each[::-1] for each in along]
    kernel = kernel[:, :, None] if in_row else kernel[..., None]
    found = torch.ops.aten.convolution(picture.permute(0, 3, 1, 2), kernel, None, *how, False, (0, 0), channels)
    outputs = found.shape[3 if in_row else 2]
    return found.permute(0, 2, 3, 1).reshape(*data.shape[: 1 + axis], outputs, *data.shape[2 + axis :])


def _convolved(data: Tensor, mixing: Tensor, groups: int) -> bool:
    return groups > 1 or (mixing.dtype == torch.float32 and data.numel() * len(mixing) > SMALL)


def _picture(data: Tensor) -> Tensor:
    """All samples as one row of a picture, in torch's format of channels last."""
    return data.reshape(1, 1, -1, data.shape[-1]).permute(0, 3, 1, 2)
