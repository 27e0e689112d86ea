"""Folded convolutions whose taps stay apart: data read where each tap is, and one product over channels.

    out[o, y] = sum_t weight_t . x[stride * y - pad + p_t]

For taps that all channels share and that lie far apart in a large window, which a dense kernel would fill with zeros. Positions
are constants here: a tap is a slice, linearly interpolated. Where the outputs have far fewer channels than the inputs, products
come first and are read instead.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccrewrite.folded.fusing import Fusing, in_place
from ccrewrite.folded.scripting import Unscriptable
from ccrewrite.gathering.corners import Pads
from ccrewrite.gathering.mixing import mixed
from ccrewrite.gathering.places import Layout, Tap, padded, read
from ccrewrite.ir.geometry import ConvGeometry, Ints
from ccrewrite.ir.operators import CONVOLUTIONS, bind
from ccrewrite.ir.torch_private import ConvNd

Taps = tuple[Tap, ...]


class ShiftedConv(Unscriptable, Fusing):
    """Mixin for ``nn.ConvNd``: ``weight`` mixes channels, ``(out, taps * in)`` where the input is read (``reads_input``), else
    ``(taps * out, in)``; ``kernel_size`` and the rest are the original's."""

    taps: Taps
    window: Ints
    margin: Ints
    reads_input: bool

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer = cast(ConvNd, self)
        pads = [(low + m, high + m) for (low, high), m in zip(ConvGeometry.from_module(layer).pads, self.margin, strict=True)]
        how = self.taps, self.window, layer.stride, pads, layer.padding_mode, self.reads_input, self.fused()
        return shifted_conv(input, weight, bias, *how)

    def extra_repr(self) -> str:
        what = "inputs" if self.reads_input else "products"
        return f"{super().extra_repr()}, taps={len(self.taps)} apart in {self.window}, {what} read"


class ShiftedSampling(Unscriptable, Fusing):
    """The same for weights that are known at run time only. Called as the sampling that it replaces: with the arguments of the
    torch function, of one group.

    Args:
        taps: where they lie, in cells of ``window``, which exceeds the original extent by ``margin``.
        kernel_size, dilation: of the convolution that the calls ask for.
    """

    transposed = False

    def __init__(self, taps: Taps, window: Ints, margin: Ints, kernel_size: Ints, dilation: Ints) -> None:
        super().__init__()
        self.taps, self.window, self.margin = taps, window, margin
        self.kernel_size, self.dilation = kernel_size, dilation

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *arguments: object, **named: object) -> Tensor:
        ndim = len(self.window)
        call = bind(False, ndim, arguments, named)
        padding = (0,) * ndim if call["padding"] == "valid" else call["padding"]
        geometry = ConvGeometry(1, 1, self.kernel_size, (1,) * ndim, padding, self.dilation, 1, (0,) * ndim)
        pads = [(low + m, high + m) for (low, high), m in zip(geometry.pads, self.margin, strict=True)]
        reads_input = reads(weight.shape, call["stride"])
        how = self.taps, self.window, call["stride"], pads, "zeros", reads_input, self.fused()
        return shifted_conv(input, mixing_of(weight, reads_input), bias, *how)

    def describe(self) -> str:
        """What it is, in a few words."""
        return f"{len(self.taps)} taps apart in {'x'.join(map(str, self.window))}"

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, dilation={self.dilation}, {self.describe()}"


@torch.fx.wrap
def shifted_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    taps: Taps,
    window: Ints,
    stride: Ints,
    pads: Pads,
    padding_mode: str,
    reads_input: bool,
    fused: bool,
) -> Tensor:
    """``ShiftedConv``'s forward; ``padding_mode`` is torch's. A leaf for ``torch.fx.symbolic_trace``."""
    ndim = len(window)
    batched = input if input.dim() == ndim + 2 else input[None]
    if padding_mode != "zeros":
        batched = F.pad(batched, [n for pair in reversed(pads) for n in pair], mode=padding_mode)
        pads = [(0, 0)] * ndim
    outputs = Layout(window, stride, pads, 1).outputs(batched)
    if reads_input:
        data = padded(batched, pads)
        total = mixed(_patches(data, taps, outputs, stride, fused), weight, 1, fused=fused)
    else:
        products = padded(mixed(batched, weight, 1, fused=fused), pads).chunk(len(taps), 1)
        total = _read(products[0], taps[0], outputs, stride, fused)
        for product, tap in zip(products[1:], taps[1:], strict=True):
            total = total + _read(product, tap, outputs, stride, fused)
    total = total if bias is None else total + bias.view(-1, *(1,) * ndim)
    return total if input.dim() == ndim + 2 else total[0]


def _patches(data: Tensor, taps: Taps, outputs: Ints, stride: Ints, fused: bool) -> Tensor:
    """``padded`` data at all taps, ``(N, taps * C, *outputs)``."""
    if not in_place(data):
        return torch.cat([_read(data, tap, outputs, stride, fused) for tap in taps], 1)
    patches = data.new_empty(len(data), len(taps) * data.shape[1], *outputs)
    for tap, patch in zip(taps, patches.chunk(len(taps), 1), strict=True):
        found = read(data, tap, outputs, stride, out=patch)
        if found is not patch:
            patch.copy_(found)
    return patches


def _read(data: Tensor, tap: Tap, outputs: Ints, stride: Ints, fused: bool) -> Tensor:
    """``padded`` data at a tap. Exported, between samples by a depthwise convolution of two cells an axis: one operator that
    runtimes are fast at, where an interpolation would be several."""
    if fused or not torch.compiler.is_exporting() or not any(tap.fractions):
        return read(data, tap, outputs, stride)
    for axis, (cell, n, step, fraction) in enumerate(zip(tap.cells, outputs, stride, tap.fractions, strict=True), 2):
        data = data.narrow(axis, cell + 1, (n - 1) * step + (2 if fraction else 1))
    shares = [(1 - fraction, fraction) if fraction else (1.0,) for fraction in tap.fractions]
    cells = torch.tensor([math.prod(each) for each in itertools.product(*shares)], dtype=data.dtype, device=data.device)
    channels, zeros, ones = data.shape[1], (0,) * len(shares), (1,) * len(shares)
    kernel = cells.view(1, 1, *map(len, shares)).expand(channels, 1, *map(len, shares))
    return CONVOLUTIONS[len(shares) - 1](data, kernel, None, stride, zeros, ones, channels)


class ShiftedConv1d(ShiftedConv, nn.Conv1d):
    """See ``ShiftedConv``."""


class ShiftedConv2d(ShiftedConv, nn.Conv2d):
    """See ``ShiftedConv``."""


class ShiftedConv3d(ShiftedConv, nn.Conv3d):
    """See ``ShiftedConv``."""


SHIFTED: dict[type, type[ShiftedConv]] = {nn.Conv1d: ShiftedConv1d, nn.Conv2d: ShiftedConv2d, nn.Conv3d: ShiftedConv3d}
"""torch's layer -> the shifted one."""


def reads(weight_shape: Sequence[int], stride: Ints) -> bool:
    """Whether inputs are read, and not products: what has not far more channels than the other."""
    return any(s > 1 for s in stride) or weight_shape[1] <= 2 * weight_shape[0]


def mixing_of(weight: Tensor, reads_input: bool) -> Tensor:
    """``(out, in, *taps)`` as the matrix that mixes channels."""
    flat = weight.flatten(2)
    return flat.transpose(1, 2).flatten(1) if reads_input else flat.permute(2, 0, 1).flatten(0, 1)


def make_(conv: ConvNd, taps: Taps, window: Ints, margin: Ints) -> str:
    """Make ``conv``, of torch's own class with the weight ``(out, in, *taps)``, one whose taps lie where ``taps`` says, in a
    window that exceeds the original extent by ``margin``. In place; the site's message."""
    weight = conv.weight.detach()
    conv.__class__ = cast(type[ConvNd], SHIFTED[type(conv)])
    layer = cast(ShiftedConv, conv)
    layer.taps, layer.window, layer.margin = taps, window, margin
    layer.reads_input = reads(weight.shape, conv.stride)
    mixing = mixing_of(weight, layer.reads_input).contiguous()
    conv.weight = nn.Parameter(mixing, requires_grad=conv.weight.requires_grad)
    return f"{len(taps)} taps apart in {'x'.join(map(str, window))}"
