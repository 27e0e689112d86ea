"""Folded convolutions whose kernel is, for every tap, one filter for all channels: the filters first, then the weights.

    out(y) = sum_t weight_t . (filter_t * x)(stride * y)

A dense kernel of such a layer is several cells wider than the taps are many. Here each tap is a small depthwise convolution and
all taps together a convolution of one tap. A transposed layer has its weights first, and then one grouped transposed
convolution along each axis, whose filters add the taps up. Only torch's own convolutions: for any runtime.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccrewrite.folded.fusing import Fusing, in_place
from ccrewrite.gathering.filters import Bank
from ccrewrite.gathering.mixing import mixed
from ccrewrite.gathering.strided import Strided, convolved, convolved_transposed
from ccrewrite.ir.geometry import ConvGeometry, Ints
from ccrewrite.ir.operators import CONVOLUTIONS, TRANSPOSED
from ccrewrite.ir.torch_private import ConvNd, ConvTransposeNd, output_padding_of
from ccrewrite.ir.typed import integers

Factors = Sequence[Tensor]
"""For each axis what a tap contributes to the cells of the window, ``(taps, cells)``."""


SMALL = 64
"""Filters of a window of so many cells are left as large as it is."""


class FilteredConv(Fusing):
    """Mixin for ``nn.ConvNd``: ``weight`` is ``(out, taps * in/groups)``; ``filter_0`` and so on, one for each tap, are
    ``(1, 1, *cells)``, and start at ``starts`` in a window that exceeds the original extent by ``margin``; ``factor_0`` and so
    on, one for each axis, are the same along it, ``(taps, cells)``. ``kernel_size`` and the rest are the original's."""

    starts: tuple[Ints, ...]
    near: tuple[tuple[tuple[int, int], ...], ...]
    """For each axis and tap, the first cell of the window that isn't zero, and the one after the last."""
    window: Ints
    margin: Ints

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer, ndim = cast(ConvNd, self), len(self.window)
        data = input if input.dim() == ndim + 2 else input[None]
        pads = ConvGeometry.from_module(layer).pads
        if layer.padding_mode != "zeros":
            data = F.pad(data, [n for pair in reversed(pads) for n in pair], mode=layer.padding_mode)
            pads = ((0, 0),) * ndim
        wide = [(low + m, high + m) for (low, high), m in zip(pads, self.margin, strict=True)]
        if _eager(data):
            axes, inner = _axes(self, tuple(data.shape[2:]), wide), data.shape[1] // layer.groups  # (channels may be pruned)
            out = Bank(axes, weight, layer.groups, inner).coarser(data)
            out = out if bias is None else out + bias.view(-1, *(1,) * ndim)
            return out if input.dim() == ndim + 2 else out[0]
        if self.fused():
            out = convolved(data, weight, _axes(self, tuple(data.shape[2:]), wide), layer.groups)
            out = out if bias is None else out + bias.view(-1, *(1,) * ndim)
            return out if input.dim() == ndim + 2 else out[0]
        whole = not any(map(any, self.starts))
        if not whole or any(low != high for low, high in wide):
            data = F.pad(data, [n for pair in reversed(wide) for n in pair])
            wide = [(0, 0)] * ndim
        padding = tuple(low for low, _ in wide)
        read = (self._read(data, tap, padding, whole) for tap in range(len(self.starts)))
        each = [torch.unflatten(x, 1, (layer.groups, -1)) for x in read]
        out = mixed(torch.stack(each, 2).flatten(1, 3), weight, layer.groups)
        out = out if bias is None else out + bias.view(-1, *(1,) * ndim)
        return out if input.dim() == ndim + 2 else out[0]

    def _read(self, data: Tensor, tap: int, padding: Ints, whole: bool) -> Tensor:
        """What a tap sees, ``(N, in, *outputs)``."""
        kernel, stride = getattr(self, f"filter_{tap}"), cast(ConvNd, self).stride
        channels, ndim = data.shape[1], len(padding)
        if not whole:
            for axis, (start, size, step) in enumerate(zip(self.starts[tap], self.window, stride, strict=True), 2):
                outputs = (data.shape[axis] - size) // step + 1
                data = data.narrow(axis, start, (outputs - 1) * step + kernel.shape[axis])
        kernel = kernel.expand(channels, 1, *kernel.shape[2:])
        return CONVOLUTIONS[ndim - 1](data, kernel, None, stride, padding, (1,) * ndim, channels)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {len(self.starts)} filters in {self.window}"


class FilteredConvTranspose(Fusing):
    """The same for ``nn.ConvTransposeNd`` of one group: ``weight`` is ``(out * taps, in)``; ``factor_0`` and so on, one for
    each axis, are ``(taps, cells)`` of the window."""

    near: tuple[tuple[tuple[int, int], ...], ...]
    window: Ints
    margin: Ints

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        layer, ndim = cast(ConvTransposeNd, self), len(self.window)
        stride, padding = layer.stride, cast(Ints, layer.padding)
        extra: Sequence[int] = layer.output_padding
        if output_size is not None:
            taps, dilation = list(layer.kernel_size), list(layer.dilation)
            extra = output_padding_of(layer, input, output_size, list(stride), list(padding), taps, ndim, dilation)
        batched = input if input.dim() == ndim + 2 else input[None]
        if self.fused():
            wide = [(p + m, p + m - e) for p, m, e in zip(padding, self.margin, extra, strict=True)]
            count, last = math.prod([len(taps) for taps in self.near]), layer.weight.shape[1]
            taps = layer.weight.view(-1, count, last).transpose(0, 1).flatten(0, 1)
            out = convolved_transposed(batched, taps, _axes(self, tuple(batched.shape[2:]), wide), 1)
            out = out if layer.bias is None else out + layer.bias.view(-1, *(1,) * ndim)
            return out if input.dim() == ndim + 2 else out[0]
        if _eager(batched):
            wide = [(p + m, p + m - e) for p, m, e in zip(padding, self.margin, extra, strict=True)]
            out = Bank(_axes(self, tuple(batched.shape[2:]), wide), layer.weight.T).finer(batched)
            out = out if layer.bias is None else out + layer.bias.view(-1, *(1,) * ndim)
            return out if input.dim() == ndim + 2 else out[0]
        out = mixed(batched, layer.weight, 1)
        # The last axis first: its taps are next to each other.
        for axis in reversed(range(ndim)):
            factor: Tensor = getattr(self, f"factor_{axis}")
            groups = out.shape[1] // len(factor)
            cells = tuple(factor.shape[1] if a == axis else 1 for a in range(ndim))
            kernel = factor.view(len(factor), 1, *cells).repeat(groups, *(1,) * (ndim + 1))
            along = [
                tuple(value if a == axis else still for a in range(ndim))
                for value, still in ((stride[axis], 1), (padding[axis] + self.margin[axis], 0), (extra[axis], 0))
            ]
            out = TRANSPOSED[ndim - 1](out, kernel, None, *along, groups)
        out = out if layer.bias is None else out + layer.bias.view(-1, *(1,) * ndim)
        return out if input.dim() == ndim + 2 else out[0]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, filters in {self.window}"


def _eager(data: Tensor) -> bool:
    """Whether sums of slices are computed: in eager mode on a CPU. Elsewhere, for any runtime, and where gradients pass (sums
    in place are slow to differentiate), torch's convolutions."""
    return data.device.type == "cpu" and data.numel() > 0 and in_place(data)


def _axes(layer: FilteredConv | FilteredConvTranspose, sizes: Ints, pads: Sequence[tuple[int, int]]) -> list[Strided]:
    """How the axes are read, of data of these ``sizes`` and a window that is padded by ``pads``."""
    conv = cast(ConvNd, layer)
    axes: list[Strided] = []  # not list[Strided](), which torch.compile can't trace
    for axis, (n, (low, high), stride) in enumerate(zip(sizes, pads, conv.stride, strict=True)):
        factor: Tensor = getattr(layer, f"factor_{axis}")
        cells = factor.shape[1]
        fine, coarse = (
            ((n - 1) * stride - low - high + cells, n) if conv.transposed else (n, (n + low + high - cells) // stride + 1)
        )
        axes.append(Strided(factor, stride, low, fine, coarse, [range(*ends) for ends in layer.near[axis]]))
    return axes


class FilteredConv1d(FilteredConv, nn.Conv1d):
    """See ``FilteredConv``."""


class FilteredConv2d(FilteredConv, nn.Conv2d):
    """See ``FilteredConv``."""


class FilteredConv3d(FilteredConv, nn.Conv3d):
    """See ``FilteredConv``."""


class FilteredConvTranspose1d(FilteredConvTranspose, nn.ConvTranspose1d):
    """See ``FilteredConvTranspose``."""


class FilteredConvTranspose2d(FilteredConvTranspose, nn.ConvTranspose2d):
    """See ``FilteredConvTranspose``."""


class FilteredConvTranspose3d(FilteredConvTranspose, nn.ConvTranspose3d):
    """See ``FilteredConvTranspose``."""


FILTERED: dict[type, type[nn.Module]] = {
    nn.Conv1d: FilteredConv1d,
    nn.Conv2d: FilteredConv2d,
    nn.Conv3d: FilteredConv3d,
    nn.ConvTranspose1d: FilteredConvTranspose1d,
    nn.ConvTranspose2d: FilteredConvTranspose2d,
    nn.ConvTranspose3d: FilteredConvTranspose3d,
}
"""torch's layer -> the filtered one."""


def make_(conv: ConvNd, factors: Factors, margin: Ints) -> str:
    """Make ``conv``, of torch's own class, one whose taps are filtered by ``factors`` in a window that exceeds the original
    extent by ``margin``. A transposed one has one group. In place; the site's message."""
    weight, like = conv.weight.detach(), conv.weight
    window = tuple(factor.shape[1] for factor in factors)
    conv.__class__ = cast(type[ConvNd], FILTERED[type(conv)])
    layer: Any = conv
    layer.window, layer.margin = window, margin
    boxes = [_boxes(factor) for factor in factors]
    layer.near = tuple(tuple((first, first + len(cells)) for first, cells in along) for along in boxes)
    for axis, factor in enumerate(factors):
        layer.register_buffer(f"factor_{axis}", factor.to(like))
    if isinstance(conv, FilteredConv):
        # Cutting out what a filter sees is a copy of it: worth it where the filter is clearly smaller than the window.
        whole = math.prod(window) <= SMALL
        places = [[(0, cells) for cells in factor] for factor in factors] if whole else boxes
        starts: list[Ints] = []
        for tap, taps in enumerate(itertools.product(*places)):
            starts.append(tuple(start for start, _ in taps))
            layer.register_buffer(f"filter_{tap}", _outer([cells for _, cells in taps]).to(like))
        layer.starts = tuple(starts)
        mixing = weight.flatten(2).transpose(1, 2).flatten(1)
    else:
        mixing = weight.flatten(1).T
    conv.weight = nn.Parameter(mixing.contiguous(), requires_grad=like.requires_grad)
    return f"{math.prod(len(factor) for factor in factors)} taps filtered in {'x'.join(map(str, window))}"


def _boxes(factor: Tensor) -> list[tuple[int, Tensor]]:
    """For each tap of one axis its first cell that isn't zero, and its cells from there to the last one."""
    found: list[tuple[int, Tensor]] = []
    for cells in factor:
        seen = cells.abs() > cells.abs().amax() * torch.finfo(cells.dtype).eps / 4
        used = integers(seen.nonzero().flatten()) or [0]
        found.append((used[0], cells[used[0] : used[-1] + 1]))
    return found


def _outer(along: Sequence[Tensor]) -> Tensor:
    """``(1, 1, *cells)``"""
    kernel = along[0]
    for cells in along[1:]:
        kernel = kernel[..., None] * cells
    return kernel[None, None].contiguous()
