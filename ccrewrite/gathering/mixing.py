"""The product of what was read with the taps' weights: over channels, for every sample."""

from __future__ import annotations

import torch
from torch import Tensor

FEW = 48
"""Below so many channels a matrix product is faster than a convolution of one tap."""

# A matrix product as a convolution with one tap. A dilation of 2, which one tap doesn't feel, makes torch take oneDNN on one
# thread too: on some processors twice as fast as its matrix product.
_ONE_TAP = ([1], [0], [2], False, [0])


def mix(data: Tensor, mixing: Tensor, groups: int) -> Tensor:
    """``(N, in, samples)`` and ``(out, in/groups, 1)`` -> ``(N, out, samples)``."""
    if _few(mixing, groups):
        return mixing.flatten(1) @ data
    return torch.ops.aten.convolution(data, mixing, None, *_ONE_TAP, groups)


def mix_backward(gradient: Tensor, data: Tensor, mixing: Tensor, groups: int, wants_data: bool) -> tuple[Tensor, Tensor]:
    """The gradients of ``data`` (of no use unless ``wants_data``) and ``mixing``."""
    if _few(mixing, groups):
        d_mixing = (gradient @ data.mT).sum(0)
        return mixing.flatten(1).mT @ gradient if wants_data else gradient, d_mixing[:, :, None]
    asked = [wants_data, True, False]
    d_data, d_mixing, _ = torch.ops.aten.convolution_backward(gradient, data, mixing, None, *_ONE_TAP, groups, asked)
    return d_data, d_mixing


def _few(mixing: Tensor, groups: int) -> bool:
    return groups == 1 and (min(mixing.shape[:2]) < FEW or mixing.dtype != torch.float32)
