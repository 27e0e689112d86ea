"""A folded convolution whose taps lie elsewhere in each output channel: one matrix product, and sums of gathered products.

    out[o, y] = sum_t (weight_t . x)[o, stride * y - pad + p[o, t]]

For taps whose positions the input channels share and that lie far apart in a large window, which a dense kernel would fill with
zeros. Compiled, with stride 1, the sums are those of ``ccrewrite.forms.products``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ccrewrite.forms import products
from ccrewrite.forms.corners import Corners, Pads, pad, row_strides
from ccrewrite.geometry import ConvGeometry, Ints
from ccrewrite.nn.dcls import DclsSampling
from ccrewrite.nn.folded import Fusing

GATHER_COST = 120
"""Multiplications that a dense convolution does in the time of gathering, weighting and adding one sample."""
PAYS = 1.5
"""From how much estimated time of a dense kernel, over that of gathered products, these are taken."""


def suits(sampling: Any, geometry: ConvGeometry) -> bool:
    """Whether a layer can be folded so."""
    return (
        isinstance(sampling, DclsSampling)
        and sampling.interpolation == "linear"
        and tuple(sampling.offset.shape[1:3]) == (geometry.out_channels, 1)
        and geometry.groups == 1
        and (geometry.padding_mode == "zeros" or not any(sampling.margin))
    )


def cost_of_dense(taps: int, geometry: ConvGeometry, cells: int) -> float:
    """Estimated time of a dense convolution with a kernel of ``cells``, over that of ``taps`` products, gathered."""
    return geometry.in_channels * cells / (taps * (geometry.in_channels + GATHER_COST * 2**geometry.ndim))


class GatheredConv(Fusing):
    """Mixin for ``nn.ConvNd``: ``weight`` is ``(taps * out, in)``, ``positions`` ``(ndim, out, taps)`` in cells of ``window``;
    ``kernel_size`` and the rest are the original's."""

    positions: Tensor
    window: Ints
    margin: Ints

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer, ndim = cast(_ConvNd, self), len(self.window)
        batched = input if input.dim() == ndim + 2 else input[None]
        pads = [(low + m, high + m) for (low, high), m in zip(ConvGeometry.from_module(layer).pads, self.margin, strict=True)]
        if layer.padding_mode != "zeros":
            batched = F.pad(batched, [n for pair in reversed(pads) for n in pair], mode=layer.padding_mode)
            pads = [(0, 0)] * ndim
        taps, size = self.positions.shape[2], batched.shape[2:]
        if self.fused() and not any(s > 1 for s in layer.stride):
            mixed = torch.mm(weight, products.rows(batched)).view(taps, layer.out_channels, batched.shape[0], *size)
            out = products.moved_sum(mixed, self.positions, self.window, pads)
        else:
            mixed = (weight @ batched.flatten(2)).view(-1, taps, layer.out_channels, *size)
            out = gathered_sum(mixed, self.positions, self.window, pads, layer.stride)
        out = out if bias is None else out + bias.to(out.dtype).view(-1, *(1,) * ndim)
        return out if input.dim() == ndim + 2 else out[0]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, taps={self.positions.shape[2]} gathered in {self.window}"


def gathered_sum(mixed: Tensor, positions: Tensor, window: Sequence[int], pads: Pads, stride: Sequence[int]) -> Tensor:
    """``(N, taps, out, *size)`` products, each gathered where its tap lies and added up: ``(N, out, *output size)``."""
    mixed = pad(mixed, pads)
    batch, taps, out, *sizes = mixed.shape
    strides = row_strides(sizes)
    outputs = [(n - w) // s + 1 for n, w, s in zip(sizes, window, stride, strict=True)]
    grid = torch.zeros((), dtype=torch.int64, device=mixed.device)
    for n, s, along in zip(outputs, stride, strides, strict=True):
        grid = grid[..., None] + torch.arange(n, device=mixed.device) * (s * along)
    corners = Corners.of(positions, window)
    # A corner after the window's last sample has the coefficient 0 and lies on that sample.
    terms = [(corners.flat(corner, strides), coefficient) for corner, coefficient in corners.value()]
    flat, total = mixed.flatten(3), None
    for tap in range(taps):
        for begin, coefficient in terms:
            index = (begin[:, tap, None] + grid.flatten()).expand(batch, out, -1)
            term = flat[:, tap].gather(2, index) * coefficient[:, tap, None]
            total = term if total is None else total + term
    assert total is not None
    return total.to(mixed.dtype).view(batch, out, *outputs)


class GatheredConv1d(GatheredConv, nn.Conv1d):
    """See ``GatheredConv``."""


class GatheredConv2d(GatheredConv, nn.Conv2d):
    """See ``GatheredConv``."""


class GatheredConv3d(GatheredConv, nn.Conv3d):
    """See ``GatheredConv``."""


GATHERED: dict[type, type[GatheredConv]] = {
    nn.Conv1d: GatheredConv1d,
    nn.Conv2d: GatheredConv2d,
    nn.Conv3d: GatheredConv3d,
}
"""torch's layer -> the gathered one."""


def gather_(conv: _ConvNd, sampling: DclsSampling) -> None:
    """Make ``conv``, which has the weight ``(out, in, *taps)``, one whose taps lie at ``sampling``'s positions. In place."""
    inner = conv.weight.shape[1]
    mixing = conv.weight.detach().flatten(2).permute(2, 0, 1).reshape(-1, inner)
    positions = torch.stack([cells[:, 0] for cells in sampling.cells()]).detach()
    conv.__class__ = cast(type[_ConvNd], GATHERED[type(conv)])
    layer = cast(GatheredConv, conv)
    layer.window, layer.margin = sampling.window, sampling.margin
    layer.register_buffer("positions", positions.to(torch.promote_types(positions.dtype, torch.float32)).contiguous())
    conv.weight = nn.Parameter(mixing.contiguous(), requires_grad=conv.weight.requires_grad)
