"""Data with its channels last, ``(N, *size, C)``: moving there and back, and convolutions of each channel.

Torch's convolutions of one channel each take such data as it lies, where any other layout is rearranged inside, forth and back.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
