"""Depthwise convolutions tap by tap: the input where each tap is, times its weight, added up.

    out[c, y] = sum_t weight[c, t] x[c, y + p[c, t]]

For stride 1 and one input channel per group. ``weight`` is ``(out, 1, taps)`` with as many output channels as input channels,
``positions`` ``(ndim, 1 or out, taps)`` in cells of the window. Nothing of the window's size is built; forward and backward
gather from windows that run over whole rows (``ccrewrite.gathering.rows``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ccrewrite.gathering.corners import Corner, Corners, Pads, full, gather, stored
from ccrewrite.gathering.rows import Rows


def forward(input: Tensor, weight: Tensor, positions: Tensor, window: Sequence[int], pads: Pads) -> tuple[Tensor, Tensor]:
    """The convolution, ``(N, out, *output size)``, and nothing for ``backward``."""
    places = positions.expand(-1, weight.shape[0], -1)
    out = _correlate(input, weight[:, 0], Corners.of(places, window), window, pads)
    return out.to(input.dtype).contiguous(), input.new_empty(0)


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
    """Gradients for input, weight and positions, as far as ``wants`` says, from the output's. Gathers only."""
    channels = weight.shape[0]
    places = positions.expand(-1, channels, -1)
    corners = Corners.of(places, window)
    d_input = d_weight = d_positions = None
    if wants[0]:
        back = corners.reversed(window)
        d_input = _correlate(gradient, weight[:, 0], back, window, full(pads, window)).to(input.dtype).contiguous()
    if wants[1] or wants[2]:
        value = corners.value() if wants[1] else []
        slopes = [corners.derivative(a) for a in range(len(window))] if wants[2] else []
        sums = _meeting(
            gradient, input, corners, list(dict.fromkeys(c for terms in (value, *slopes) for c, _ in terms)), window, pads
        )

        def added(terms: Sequence[tuple[Corner, Tensor]]) -> Tensor:
            return torch.stack([sums[corner] * coefficient for corner, coefficient in terms]).sum(0)

        if wants[1]:
            d_weight = added(value).to(weight.dtype)[:, None]
        if wants[2]:
            d_places = torch.stack([added(terms) for terms in slopes]).to(positions.dtype) * weight[:, 0]
            d_positions = d_places.sum(1, keepdim=True) if positions.shape[1] == 1 else d_places
    return d_input, d_weight, d_positions


def _correlate(x: Tensor, weight: Tensor, corners: Corners, window: Sequence[int], pads: Pads) -> Tensor:
    rows = Rows(x, window, pads)
    terms = corners.value()
    index = corners.flat_index([corner for corner, _ in terms], rows.strides)
    coefficients = stored([weight * coefficient for _, coefficient in terms])
    return rows.sum(coefficients, [index[corner] for corner, _ in terms])


def _meeting(
    gradient: Tensor, input: Tensor, corners: Corners, asked: Sequence[Corner], window: Sequence[int], pads: Pads
) -> dict[Corner, Tensor]:
    """For each of the ``asked`` samples around every tap, ``(channels, taps)``: the gradient times the input there."""
    rows = Rows(input, window, pads)
    spread = rows.spread(gradient)
    channel = torch.arange(input.shape[1], device=input.device)[:, None]
    index = corners.flat_index(asked, rows.strides)
    return {c: (gather(rows.windows, [None, channel, index[c]]) * spread).sum((0, 3)) for c in asked}
