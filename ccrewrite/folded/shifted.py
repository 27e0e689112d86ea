"""A folded convolution whose taps stay where they are, apart from each other: one matrix product, and shifted sums.

    out[o, y] = sum_t (weight_t . x)[o, stride * y - pad + p_t]

For taps that all channels share and that lie far apart in a large window, which a dense kernel would fill with zeros. Positions
are constants here: a shift is a slice, and linear interpolation the weighted sum of at most ``2^ndim`` of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ccrewrite.ir.geometry import ConvGeometry, Ints


class Shift(NamedTuple):
    """One sample of a tap: where it lies in the window, in cells, and its coefficient."""

    cell: Ints
    coefficient: float


Taps = tuple[tuple[Shift, ...], ...]


class ShiftedConv(nn.Module):
    """Mixin for ``nn.ConvNd``: ``weight`` mixes channels, ``(out, taps * in)`` where the input is shifted first
    (``shifts_first``), else ``(taps * out, in)``; ``kernel_size`` and the rest are the original's."""

    shifts: Taps
    window: Ints
    margin: Ints
    shifts_first: bool

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer = cast(_ConvNd, self)
        pads = [(low + m, high + m) for (low, high), m in zip(ConvGeometry.from_module(layer).pads, self.margin, strict=True)]
        widths = [n for pair in reversed(pads) for n in pair]
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        return shifted_conv(input, weight, bias, self.shifts, self.window, layer.stride, widths, mode, self.shifts_first)

    def extra_repr(self) -> str:
        first = "shifts" if self.shifts_first else "products"
        return f"{super().extra_repr()}, taps={len(self.shifts)} apart in {self.window}, {first} first"


@torch.fx.wrap
def shifted_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    taps: Taps,
    window: Ints,
    stride: Ints,
    widths: Sequence[int],
    mode: str,
    shifts_first: bool,
) -> Tensor:
    """``ShiftedConv``'s forward; ``widths`` and ``mode`` are ``F.pad``'s. A leaf for ``torch.fx.symbolic_trace``."""
    ndim = len(window)
    if shifts_first:
        padded = F.pad(input, widths, mode=mode)
        moved = [_moved(padded, shifts, window, stride) for shifts in taps]
        total = _mixed(torch.cat(moved, -ndim - 1), weight, ndim)
    else:
        products = F.pad(_mixed(input, weight, ndim), widths, mode=mode).chunk(len(taps), -ndim - 1)
        total = _moved(products[0], taps[0], window, stride)
        for product, shifts in zip(products[1:], taps[1:], strict=True):
            total = total + _moved(product, shifts, window, stride)
    return total if bias is None else total + bias.view(-1, *(1,) * ndim)


def _moved(x: Tensor, shifts: Sequence[Shift], window: Ints, stride: Ints) -> Tensor:
    total: Tensor | None = None
    for cell, coefficient in shifts:
        term = x
        for a, (start, step, size) in enumerate(zip(cell, stride, window, strict=True), -len(window)):
            length = x.shape[a] - size + 1
            term = term.narrow(a, start, length)
            term = term if step == 1 else term[(..., slice(None, None, step), *(slice(None),) * (-1 - a))]
        term = term if coefficient == 1 else term * coefficient
        total = term if total is None else total + term
    assert total is not None
    return total


def _mixed(x: Tensor, weight: Tensor, ndim: int) -> Tensor:
    """A convolution with a 1x1 kernel, as the matrix product that it is: Inductor fuses around it without changing layouts."""
    out = weight @ x.flatten(-ndim)
    return out.view(*out.shape[:-1], *x.shape[-ndim:])


class ShiftedConv1d(ShiftedConv, nn.Conv1d):
    """See ``ShiftedConv``."""


class ShiftedConv2d(ShiftedConv, nn.Conv2d):
    """See ``ShiftedConv``."""


class ShiftedConv3d(ShiftedConv, nn.Conv3d):
    """See ``ShiftedConv``."""


SHIFTED: dict[type, type[ShiftedConv]] = {nn.Conv1d: ShiftedConv1d, nn.Conv2d: ShiftedConv2d, nn.Conv3d: ShiftedConv3d}
"""torch's layer -> the shifted one."""


def make_(conv: _ConvNd, taps: Taps, window: Ints, margin: Ints) -> str:
    """Make ``conv``, of torch's own class with the weight ``(out, in, *taps)``, one whose taps lie where ``taps`` says, in a
    window that exceeds the original extent by ``margin``. In place; the site's message."""
    out, inner = conv.weight.shape[:2]
    flat = conv.weight.detach().flatten(2)
    conv.__class__ = cast(type[_ConvNd], SHIFTED[type(conv)])
    layer = cast(ShiftedConv, conv)
    layer.shifts, layer.window, layer.margin = taps, window, margin
    layer.shifts_first = any(s > 1 for s in conv.stride) or inner <= 2 * out
    if layer.shifts_first:
        mixing = flat.transpose(1, 2).reshape(out, -1)
    else:
        mixing = flat.permute(2, 0, 1).reshape(-1, inner)
    conv.weight = nn.Parameter(mixing.contiguous(), requires_grad=conv.weight.requires_grad)
    return f"{len(taps)} taps apart in {'x'.join(map(str, window))}"
