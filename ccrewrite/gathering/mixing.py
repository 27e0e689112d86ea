"""The product of what was read with the taps' weights: over channels, for every sample."""

from __future__ import annotations

import torch
from torch import Tensor

from ccrewrite.ir.operators import CONVOLUTIONS
from ccrewrite.ir.torch_private import onednn_multiplies, onednn_product, unwatched

FEW = 48
"""Below so many channels a matrix product is faster than a convolution of one tap."""
SMALL = 2**20
"""Fewer multiplications are over before oneDNN has begun."""

# A matrix product as a convolution with one tap. A dilation of 2, which one tap doesn't feel, makes torch take oneDNN on one
# thread too: on some processors twice as fast as its matrix product.
_ONE_TAP = ([1], [0], [2], False, [0])


def mix(data: Tensor, mixing: Tensor, groups: int) -> Tensor:
    """``(N, in, samples)`` and ``(out, in/groups, 1)`` -> ``(N, out, samples)``."""
    if _multiplied(data, mixing, groups):
        return _together([onednn_product(mixing[:, :, 0], each.mT) for each in data])
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
    if _multiplied(data, mixing, groups):
        d_mixing = onednn_product(gradient[0], data[0])
        for g, x in zip(gradient[1:], data[1:], strict=True):
            d_mixing += onednn_product(g, x)
        d_data = _together([onednn_product(mixing[:, :, 0].mT, g.mT) for g in gradient]) if wants_data else gradient
        return d_data, d_mixing[:, :, None]
    if _few(mixing, groups):
        d_mixing = (gradient @ data.mT).sum(0)
        return mixing.flatten(1).mT @ gradient if wants_data else gradient, d_mixing[:, :, None]
    asked = [wants_data, True, False]
    d_data, d_mixing, _ = torch.ops.aten.convolution_backward(gradient, data, mixing, None, *_ONE_TAP, groups, asked)
    return d_data, d_mixing


def _multiplied(data: Tensor, mixing: Tensor, groups: int) -> bool:
    """Whether oneDNN's matrix product is taken: on some processors it is twice as fast as torch's."""
    if groups > 1 or not onednn_multiplies() or not unwatched(data, mixing):
        return False
    kinds = {(t.dtype, t.device.type) for t in (data, mixing)}
    return kinds == {(torch.float32, "cpu")} and len(data) > 0 and data[0].numel() * len(mixing) >= SMALL


def _together(pictures: list[Tensor]) -> Tensor:
    return pictures[0][None] if len(pictures) == 1 else torch.stack(pictures)


def _few(mixing: Tensor, groups: int) -> bool:
    return groups == 1 and (min(mixing.shape[:2]) < FEW or mixing.dtype != torch.float32)
