"""Shared positions, products first: every tap's product with all inputs in one GEMM, then moved to where the tap is, and added.

    out[o, y] = sum_t (weight_t . x)[o, y + p_t]

For stride 1, ``groups`` 1 and positions that the input channels share (per output channel or not). ``weight`` is
``(out, in, taps)``, ``positions`` ``(ndim, 1 or out, taps)`` in cells of the window.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ccrewrite.gathering.corners import Corner, Corners, Pads, beside, full, gather, pad, row_strides, span, stored, unpadded
from ccrewrite.gathering.moved import channel_rows, moved_sum


def products(input: Tensor, weight: Tensor) -> Tensor:
    """``(taps, out, N, *size)``: of every tap with the input."""
    out, inner, taps = weight.shape
    mixing = weight.permute(2, 0, 1).reshape(taps * out, inner)
    return torch.mm(mixing, channel_rows(input)).view(taps, out, input.shape[0], *input.shape[2:])


def forward(input: Tensor, weight: Tensor, positions: Tensor, window: Sequence[int], pads: Pads) -> tuple[Tensor, Tensor]:
    """The convolution, ``(N, out, *output size)``, and the products, which ``backward`` takes."""
    mixed = products(input, weight)
    return moved_sum(mixed, positions, window, pads), mixed


def backward(
    gradient: Tensor,
    input: Tensor,
    weight: Tensor,
    positions: Tensor,
    mixed: Tensor,
    window: Sequence[int],
    pads: Pads,
    wants: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients for input, weight and positions, as far as ``wants`` says, from the output's. Gathers only, of the output's."""
    out, inner, taps = weight.shape
    padded = pad(gradient, full(pads, window)).contiguous()
    strides = row_strides(padded.shape[2:])
    plane, size = padded.stride(1), tuple(input.shape[2:])
    windows = padded.as_strided((span(window, strides), out, input.shape[0], *size), (1, plane, out * plane, *strides))
    corners = Corners.of(positions, window).reversed(window)
    channel = torch.arange(out, device=gradient.device)[None]

    value = corners.value()
    slopes = [corners.derivative(a) for a in range(len(size))] if wants[2] else []
    asked = list(dict.fromkeys(corner for terms in (value, *slopes) for corner, _ in terms))
    index = corners.flat_index(asked, strides)

    def arrived(corner: Corner) -> Tensor:
        """``(taps, out, N, *size)``: the gradient that reaches every product from one of the samples next to its tap."""
        return gather(windows, [index[corner][0]] if positions.shape[1] == 1 else [index[corner].t(), channel])

    d_input = d_weight = d_positions = None
    if wants[0] or wants[1]:
        coefficients = stored([coefficient for _, coefficient in value])
        total: Tensor | None = None
        for (corner, _), coefficient in zip(value, coefficients, strict=True):
            term = arrived(corner) * beside(coefficient.t(), 1 + len(size))
            total = term if total is None else total + term
        assert total is not None
        flat = unpadded(total.to(gradient.dtype)).view(taps * out, -1)
        if wants[0]:
            mixing = weight.permute(2, 0, 1).reshape(taps * out, inner)
            d_input = torch.mm(mixing.t(), flat).view(inner, input.shape[0], *size).transpose(0, 1).contiguous()
        if wants[1]:
            d_weight = torch.mm(flat, channel_rows(input).t()).view(taps, out, inner).permute(1, 2, 0).contiguous()
    if wants[2]:
        # Sample by sample, so that the loop over the outputs is a product and a sum.
        over = (1, *range(2, 3 + len(size))) if positions.shape[1] == 1 else tuple(range(2, 3 + len(size)))
        met = {c: (arrived(c) * mixed).sum(over).to(positions.dtype) for terms in slopes for c, _ in terms}
        added = [
            torch.stack([met[corner] * coefficient.t().reshape(met[corner].shape) for corner, coefficient in terms]).sum(0)
            for terms in slopes
        ]
        d_positions = torch.stack(added).view(len(size), taps, -1).mT
    return d_input, d_weight, d_positions
