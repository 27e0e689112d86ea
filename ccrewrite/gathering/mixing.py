"""The product of what was read with the taps' weights: over channels, for every sample."""

from __future__ import annotations

import torch
from torch import Tensor

from ccrewrite.ir.operators import CONVOLUTIONS

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


def mixed(x: Tensor, weight: Tensor, groups: int, *, fused: bool = False) -> Tensor:
    """``(N, in, *size)`` and ``(out, in/groups)`` -> ``(N, out, *size)``. Where something compiles or exports it, as torch's
    convolution of these axes; as a matrix product, of one group, where it is ``fused``: then Inductor fuses around it without
    changing layouts. Exported, that product would make an open batch of 1 a constant."""
    ndim, shape = x.dim() - 2, (x.shape[0], weight.shape[0], *x.shape[2:])
    if fused:
        return (weight @ x.flatten(2)).view(shape)
    if torch.compiler.is_compiling():
        ones, zeros = (1,) * ndim, (0,) * ndim
        return CONVOLUTIONS[ndim - 1](x, weight.view(*weight.shape, *ones), None, ones, zeros, ones, groups)
    return mix(x.flatten(2), weight[:, :, None], groups).view(shape)


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
