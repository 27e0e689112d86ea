"""Shared positions, products first: every tap's product with all inputs in one GEMM, then moved to where the tap is, and added.

    out[o, y] = sum_t (weight_t . x)[o, y + p_t]

For stride 1, ``groups`` 1 and positions that the input channels share (per output channel or not). ``weight`` is
``(out, in, taps)``, ``positions`` ``(ndim, 1 or out, taps)`` in cells of the window.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ccrewrite.families.dcls.forms.corners import Corner, Corners, Pads, full, pad, row_strides, span, stored, unpadded

_gather = torch.ops.aten._unsafe_index.Tensor
_Read = Callable[[int, Corner], Tensor]
"""(tap, corner) -> ``(out, N, *output size)``: a tap's products where one of the samples next to it is."""


def products(input: Tensor, weight: Tensor) -> Tensor:
    """``(taps, out, N, *size)``: of every tap with the input."""
    out, inner, taps = weight.shape
    mixing = weight.permute(2, 0, 1).reshape(taps * out, inner)
    return torch.mm(mixing, rows(input)).view(taps, out, input.shape[0], *input.shape[2:])


def rows(x: Tensor) -> Tensor:
    """``(N, C, *size)`` -> ``(C, N * prod(size))``"""
    return unpadded(x.transpose(0, 1)).view(x.shape[1], -1)


def forward(input: Tensor, weight: Tensor, positions: Tensor, window: Sequence[int], pads: Pads) -> tuple[Tensor, Tensor]:
    """The convolution, ``(N, out, *output size)``, and the products, which ``backward`` takes."""
    mixed = products(input, weight)
    return moved_sum(mixed, positions, window, pads), mixed


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
            term = read(tap, corner) * _beside(coefficient[:, tap], 1 + len(window))
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
        return _gather(windows[tap], [places])[0] if len(places) == 1 else _gather(windows[tap], [places, channel])

    return read


def _masked(mixed: Tensor, corners: Corners, asked: Sequence[Corner], window: Sequence[int], pads: Pads) -> _Read:
    _, out, batch, *sizes = mixed.shape
    ndim = len(sizes)
    sides = sorted({(a, side) for corner in asked for a, side in enumerate(corner)})
    cells = dict(zip(sides, stored([getattr(corners, side)[a] for a, side in sides]), strict=True))
    first = [_beside(torch.arange(out, device=mixed.device), 1 + ndim), _beside(torch.arange(batch, device=mixed.device), ndim)]
    begins = [
        _beside(torch.arange(n + low + high - w + 1, device=mixed.device) - low, ndim - 1 - a)
        for a, (n, w, (low, high)) in enumerate(zip(sizes, window, pads, strict=True))
    ]

    def read(tap: int, corner: Corner) -> Tensor:
        places = [
            begin + _beside(cells[a, side][:, tap], 1 + ndim)
            for a, (begin, side) in enumerate(zip(begins, corner, strict=True))
        ]
        inside = [(place >= 0) & (place < n) for place, n in zip(places, sizes, strict=True)]
        mask = functools.reduce(torch.bitwise_and, inside).expand(out, batch, *(len(begin) for begin in begins))
        return torch.ops.aten._unsafe_masked_index(mixed[tap], mask, [*first, *places], 0)

    return read


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
        return _gather(windows, [index[corner][0]] if positions.shape[1] == 1 else [index[corner].t(), channel])

    d_input = d_weight = d_positions = None
    if wants[0] or wants[1]:
        coefficients = stored([coefficient for _, coefficient in value])
        total: Tensor | None = None
        for (corner, _), coefficient in zip(value, coefficients, strict=True):
            term = arrived(corner) * _beside(coefficient.t(), 1 + len(size))
            total = term if total is None else total + term
        assert total is not None
        flat = unpadded(total.to(gradient.dtype)).view(taps * out, -1)
        if wants[0]:
            mixing = weight.permute(2, 0, 1).reshape(taps * out, inner)
            d_input = torch.mm(mixing.t(), flat).view(inner, input.shape[0], *size).transpose(0, 1).contiguous()
        if wants[1]:
            d_weight = torch.mm(flat, rows(input).t()).view(taps, out, inner).permute(1, 2, 0).contiguous()
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


def _beside(x: Tensor, ndim: int) -> Tensor:
    """``x`` with ``ndim`` further axes of size 1."""
    return x.view(*x.shape, *(1,) * ndim)
