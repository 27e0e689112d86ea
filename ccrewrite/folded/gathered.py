"""A folded convolution whose taps lie elsewhere in each output channel: one matrix product, and sums of gathered products.

    out[o, y] = sum_t (weight_t . x)[o, stride * y - pad + p[o, t]]

For taps whose positions the input channels share and that lie far apart in a large window, which a dense kernel would fill with
zeros. Compiled, with stride 1, the sums are those of ``ccrewrite.gathering.moved``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccrewrite.folded.fusing import Fusing
from ccrewrite.folded.scripting import Unscriptable
from ccrewrite.gathering.corners import Corners, Pads, pad, row_strides
from ccrewrite.gathering.mixing import mixed
from ccrewrite.gathering.moved import channel_rows, moved_sum
from ccrewrite.ir.geometry import ConvGeometry, Ints
from ccrewrite.ir.torch_private import ConvNd


class GatheredConv(Unscriptable, Fusing):
    """Mixin for ``nn.ConvNd``: ``weight`` is ``(taps * out, in)``, ``positions`` ``(ndim, out, taps)`` in cells of ``window``;
    ``kernel_size`` and the rest are the original's."""

    positions: Tensor
    window: Ints
    margin: Ints

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer = cast(ConvNd, self)
        pads = [(low + m, high + m) for (low, high), m in zip(ConvGeometry.from_module(layer).pads, self.margin, strict=True)]
        return gathered_conv(
            input, weight, bias, self.positions, self.window, layer.stride, pads, layer.padding_mode, self.fused()
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, taps={self.positions.shape[2]} gathered in {self.window}"


@torch.fx.wrap
def gathered_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    positions: Tensor,
    window: Ints,
    stride: Ints,
    pads: Pads,
    padding_mode: str,
    fused: bool,
) -> Tensor:
    """``GatheredConv``'s forward. A leaf for ``torch.fx.symbolic_trace``."""
    ndim, (_, out, taps) = len(window), positions.shape
    batched = input if input.dim() == ndim + 2 else input[None]
    if padding_mode != "zeros":
        batched = F.pad(batched, [n for pair in reversed(pads) for n in pair], mode=padding_mode)
        pads = [(0, 0)] * ndim
    size = batched.shape[2:]
    if fused and not any(s > 1 for s in stride):
        products = torch.mm(weight, channel_rows(batched)).view(taps, out, batched.shape[0], *size)
        total = moved_sum(products, positions, window, pads)
    else:
        products = mixed(batched, weight, 1).view(batched.shape[0], taps, out, *size)
        total = gathered_sum(products, positions, window, pads, stride)
    total = total if bias is None else total + bias.to(total.dtype).view(-1, *(1,) * ndim)
    return total if input.dim() == ndim + 2 else total[0]


def gathered_sum(mixed: Tensor, positions: Tensor, window: Sequence[int], pads: Pads, stride: Sequence[int]) -> Tensor:
    """``(N, taps, out, *size)`` products, each gathered where its tap lies and added up: ``(N, out, *output size)``.

    One sample more than there are outputs is gathered along each axis: slices of it are the samples next to every position.
    """
    # After the window's last sample lies one that counts for nothing.
    mixed = pad(mixed, [(low, high + 1) for low, high in pads])
    batch, taps, out, *sizes = mixed.shape
    strides, spans = row_strides(sizes), [n - w for n, w in zip(sizes, window, strict=True)]
    grid = torch.zeros((), dtype=torch.int64, device=mixed.device)
    for n, along in zip(spans, strides, strict=True):
        grid = grid[..., None] + torch.arange(n + 1, device=mixed.device) * along
    corners = Corners.of(positions, window)
    begin = corners.flat(("low",) * len(window), strides)
    flat, grid, total = mixed.flatten(3), grid.flatten(), None
    for tap in range(taps):
        index = (begin[:, tap, None] + grid).expand(batch, out, -1)
        near = flat[:, tap].gather(2, index).view(batch, out, *(n + 1 for n in spans))
        for corner, coefficient in corners.value():
            starts = [1 if side == "high" else 0 for side in corner]
            beside = tuple(slice(a, a + n, step) for a, n, step in zip(starts, spans, stride, strict=True))
            term = near[(..., *beside)] * coefficient[:, tap].view(-1, *(1,) * len(window))
            total = term if total is None else total + term
    assert total is not None
    return total.to(mixed.dtype)


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


def make_(conv: ConvNd, positions: Tensor, window: Ints, margin: Ints) -> str:
    """Make ``conv``, of torch's own class with the weight ``(out, in, *taps)``, one whose taps lie at ``positions``
    ``(ndim, out, taps)``, in cells of a window that exceeds the original extent by ``margin``. In place; the site's message."""
    inner = conv.weight.shape[1]
    mixing = conv.weight.detach().flatten(2).permute(2, 0, 1).reshape(-1, inner)
    conv.__class__ = cast(type[ConvNd], GATHERED[type(conv)])
    layer = cast(GatheredConv, conv)
    layer.window, layer.margin = window, margin
    positions = positions.detach().to(torch.promote_types(positions.dtype, torch.float32))
    layer.register_buffer("positions", positions.contiguous())
    conv.weight = nn.Parameter(mixing.contiguous(), requires_grad=conv.weight.requires_grad)
    return f"{positions.shape[2]} taps of each channel in {'x'.join(map(str, window))}"
