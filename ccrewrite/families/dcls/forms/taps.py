"""Depthwise convolutions tap by tap: the input where each tap is, times its weight, added up.

    out[c, y] = sum_t weight[c, t] x[c, y + p[c, t]]

For stride 1 and one input channel per group. ``weight`` is ``(out, 1, taps)`` with as many output channels as input channels,
``positions`` ``(ndim, 1 or out, taps)`` in cells of the window. Nothing of the window's size is built; forward and backward
gather from windows that run over whole rows, so that the innermost loop is long and contiguous also on small maps.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ccrewrite.families.dcls.forms.corners import Corner, Corners, Pads, full, pad, row_strides, span, stored

_gather = torch.ops.aten._unsafe_index.Tensor
TOGETHER = 4
"""Samples that are added before they join the sum: chains of additions that don't wait for each other."""


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


def sparse(input: Tensor, weight: Tensor, cells: Tensor, dilation: Sequence[int], pads: Pads) -> Tensor:
    """The depthwise convolution with ``weight`` ``(out, 1, *kernel_size)`` that visits each filter's ``cells`` ``(out, K)``
    alone: flat indices, or the number of a filter's cells for none. ``out`` may be a multiple of the input channels."""
    sizes, count = weight.shape[2:], weight[0].numel()
    window = [(k - 1) * d + 1 for k, d in zip(sizes, dilation, strict=True)]
    rows = _Rows(input, window, pads)
    cells = F.pad(cells.long(), (0, -cells.shape[1] % TOGETHER), value=count)
    wide = torch.promote_types(weight.dtype, torch.float32)
    coefficients = F.pad(weight.flatten(1).to(wide), (0, 1)).gather(1, cells)
    places = [cells % count // within % k * d for within, k, d in zip(row_strides(sizes), sizes, dilation, strict=True)]
    index = functools.reduce(operator.add, (place * stride for place, stride in zip(places, rows.strides, strict=True)))
    together = coefficients.unflatten(1, (-1, TOGETHER)).unbind(2), index.unflatten(1, (-1, TOGETHER)).unbind(2)
    return _summed(rows, *map(stored, together)).to(input.dtype).contiguous()


def _correlate(x: Tensor, weight: Tensor, corners: Corners, window: Sequence[int], pads: Pads) -> Tensor:
    rows = _Rows(x, window, pads)
    terms = corners.value()
    index = corners.flat_index([corner for corner, _ in terms], rows.strides)
    coefficients = stored([weight * coefficient for _, coefficient in terms])
    return _summed(rows, coefficients, [index[corner] for corner, _ in terms])


def _summed(rows: _Rows, coefficients: Sequence[Tensor], index: Sequence[Tensor]) -> Tensor:
    """The samples of ``rows`` at each ``index`` ``(out, n)``, times its coefficient, over all of them."""
    out, channels = len(index[0]), rows.windows.shape[1]
    channel = torch.arange(out, device=rows.windows.device)[:, None] // (out // channels)
    total: Tensor | None = None
    for start, coefficient in zip(index, coefficients, strict=True):
        term = _gather(rows.windows, [None, channel, start]) * coefficient[..., None]
        total = term if total is None else total + term
    assert total is not None
    return rows.cropped(total.sum(2))


def _meeting(
    gradient: Tensor, input: Tensor, corners: Corners, asked: Sequence[Corner], window: Sequence[int], pads: Pads
) -> dict[Corner, Tensor]:
    """For each of the ``asked`` samples around every tap, ``(channels, taps)``: the gradient times the input there."""
    rows = _Rows(input, window, pads)
    spread = rows.spread(gradient)
    channel = torch.arange(input.shape[1], device=input.device)[:, None]
    index = corners.flat_index(asked, rows.strides)
    return {c: (_gather(rows.windows, [None, channel, index[c]]) * spread).sum((0, 3)) for c in asked}


class _Rows:
    """Padded data ``(N, C, *size)`` as windows that run through all rows: ``windows`` is ``(N, C, starts, elements)``.

    What follows a row is zero up to the next row's samples, so one margin between them serves both.
    """

    def __init__(self, x: Tensor, window: Sequence[int], pads: Pads) -> None:
        x = pad(x, [(min(low, 0), min(high, 0)) for low, high in pads])  # a negative number crops
        (first, last), *others = [(max(low, 0), max(high, 0)) for low, high in pads]
        spans = zip(x.shape[2:], window, [(first, last), *others], strict=True)
        self.outputs = [n + low + high - w + 1 for n, w, (low, high) in spans]
        widths = [max(n + low, n + high, m) for n, m, (low, high) in zip(x.shape[3:], self.outputs[1:], others, strict=True)]
        margins = [(width - n, 0) for n, width in zip(x.shape[3:], widths, strict=True)]
        # What windows read past the last row is of no use, but must be there: at most two rows more.
        padded = pad(x, [(first, last + 2), *margins]).contiguous()
        self.widths = widths
        self.strides = row_strides(padded.shape[2:])
        self.elements = self.outputs[0] * self.strides[0]
        begins = [margin - low for (margin, _), (low, _) in zip(margins, others, strict=True)]
        start = sum(begin * stride for begin, stride in zip(begins, self.strides[1:], strict=True))
        shape = *x.shape[:2], span(window, self.strides), self.elements
        self.windows = padded.as_strided(shape, (padded.stride(0), padded.stride(1), 1, 1), start)

    def cropped(self, out: Tensor) -> Tensor:
        """``(N, C, elements)`` -> ``(N, C, *outputs)``"""
        out = out.view(*out.shape[:2], self.outputs[0], *self.widths)
        for axis, n in enumerate(self.outputs[1:], 3):
            out = out.narrow(axis, 0, n)
        return out

    def spread(self, y: Tensor) -> Tensor:
        """``(N, C, *outputs)`` -> ``(N, C, 1, elements)``, zero where no output is."""
        widths = [(0, n - m) for n, m in zip(self.widths, self.outputs[1:], strict=True)]
        return stored([pad(y, [(0, 0), *widths]).flatten(2)])[0][:, :, None]
