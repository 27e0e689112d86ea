"""Shared positions, shifts first: the input moved to where every tap is, then one GEMM over taps and channels.

    out[o, y] = sum_t weight_t . x[y + p_t]

For stride 1, ``groups`` 1 and positions that all channels share. Keeps nothing but its inputs for the backward, which is that
of ``ccrewrite.families.dcls.forms.products``, with one GEMM more. Arguments as there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ccrewrite.families.dcls.forms import products
from ccrewrite.gathering.corners import Corners, Pads, beside, gather, pad, row_strides, span, stored, unpadded


def forward(input: Tensor, weight: Tensor, positions: Tensor, window: Sequence[int], pads: Pads) -> tuple[Tensor, Tensor]:
    """The convolution, ``(N, out, *output size)``, and nothing for ``backward``."""
    padded = pad(input, pads).contiguous()
    strides = row_strides(padded.shape[2:])
    outputs = [n - w + 1 for n, w in zip(padded.shape[2:], window, strict=True)]
    (batch, inner), plane = input.shape[:2], padded.stride(1)
    windows = padded.as_strided((span(window, strides), inner, batch, *outputs), (1, plane, inner * plane, *strides))
    total: Tensor | None = None
    corners = Corners.of(positions[:, 0], window)
    terms = corners.value()
    index = corners.flat_index([corner for corner, _ in terms], strides)
    coefficients = stored([coefficient for _, coefficient in terms])
    for (corner, _), coefficient in zip(terms, coefficients, strict=True):
        term = gather(windows, [index[corner]]) * beside(coefficient, 2 + len(outputs))
        total = term if total is None else total + term
    assert total is not None
    columns = unpadded(total.to(input.dtype)).view(weight.shape[2] * inner, -1)
    mixing = weight.transpose(1, 2).reshape(weight.shape[0], -1)
    out = torch.mm(mixing, columns).view(weight.shape[0], batch, *outputs)
    return out.transpose(0, 1).contiguous(), input.new_empty(0)


def backward(
    gradient: Tensor,
    input: Tensor,
    weight: Tensor,
    positions: Tensor,
    kept: Tensor,
    window: Sequence[int],
    pads: Pads,
    wants: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As ``ccrewrite.families.dcls.forms.products.backward``."""
    mixed = products.products(input, weight) if wants[2] else kept
    return products.backward(gradient, input, weight, positions, mixed, window, pads, wants)
