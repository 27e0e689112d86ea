"""Products of every tap with all inputs, each moved to where its tap is, and added up.

out[o, y] = sum_t products[t, o, y + p_t]
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ccrewrite.gathering.corners import Corner, Corners, Pads, beside, gather, pad, row_strides, span, stored, unpadded

_Read = Callable[[int, Corner], Tensor]
"""(tap, corner) -> ``(out, N, *output size)``: a tap's products where one of the samples next to it is."""


def channel_rows(x: Tensor) -> Tensor:
    """``(N, C, *size)`` -> ``(C, N * prod(size))``"""
    return unpadded(x.transpose(0, 1)).view(x.shape[1], -1)


def moved_sum(mixed: Tensor, positions: Tensor, window: Sequence[int], pads: Pads) -> Tensor:
    """``(taps, out, N, *size)`` products, each moved to its tap's position and added up: ``(N, out, *output size)``."""
    corners = Corners.of(positions, window)
    terms = corners.value()
    reader = _padded if copies(mixed.device) else _masked
    read = reader(mixed, corners, [corner for corner, _ in terms], window, pads)
    coefficients = stored([coefficient for _, coefficient in terms])
    total: Tensor | None = None
    # One tap after the other, so that the sum is a pointwise kernel that reads every product where it lies.
    for tap in range(len(mixed)):
        for (corner, _), coefficient in zip(terms, coefficients, strict=True):
            term = read(tap, corner) * beside(coefficient[:, tap], 1 + len(window))
            total = term if total is None else total + term
    assert total is not None
    return total.to(mixed.dtype).transpose(0, 1).contiguous()


def copies(device: torch.device) -> bool:
    """Whether products are read from a padded copy: on a CPU, where bounds checks keep Inductor from vectorising. On a GPU they
    cost nothing next to writing and reading a copy that is larger than the products."""
    return device.type == "cpu"


def _padded(mixed: Tensor, corners: Corners, asked: Sequence[Corner], window: Sequence[int], pads: Pads) -> _Read:
    padded = pad(mixed, pads).contiguous()
    taps, out, batch, *sizes = padded.shape
    strides, plane = row_strides(sizes), padded.stride(2)
    outputs = [n - w + 1 for n, w in zip(sizes, window, strict=True)]
    windows = padded.as_strided(
        (taps, span(window, strides), out, batch, *outputs), (out * batch * plane, 1, batch * plane, plane, *strides)
    )
    index = corners.flat_index(asked, strides)
    channel = torch.arange(out, device=mixed.device)

    def read(tap: int, corner: Corner) -> Tensor:
        places = index[corner][:, tap]
        return gather(windows[tap], [places])[0] if len(places) == 1 else gather(windows[tap], [places, channel])

    return read


def _masked(mixed: Tensor, corners: Corners, asked: Sequence[Corner], window: Sequence[int], pads: Pads) -> _Read:
    _, out, batch, *sizes = mixed.shape
    ndim = len(sizes)
    sides = sorted({(a, side) for corner in asked for a, side in enumerate(corner)})
    cells = dict(zip(sides, stored([getattr(corners, side)[a] for a, side in sides]), strict=True))
    first = [beside(torch.arange(out, device=mixed.device), 1 + ndim), beside(torch.arange(batch, device=mixed.device), ndim)]
    begins = [
        beside(torch.arange(n + low + high - w + 1, device=mixed.device) - low, ndim - 1 - a)
        for a, (n, w, (low, high)) in enumerate(zip(sizes, window, pads, strict=True))
    ]

    def read(tap: int, corner: Corner) -> Tensor:
        places = [
            begin + beside(cells[a, side][:, tap], 1 + ndim) for a, (begin, side) in enumerate(zip(begins, corner, strict=True))
        ]
        inside = [(place >= 0) & (place < n) for place, n in zip(places, sizes, strict=True)]
        mask = functools.reduce(torch.bitwise_and, inside).expand(out, batch, *(len(begin) for begin in begins))
        return torch.ops.aten._unsafe_masked_index(mixed[tap], mask, [*first, *places], 0)

    return read
