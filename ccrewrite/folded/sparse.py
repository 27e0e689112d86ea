"""A folded depthwise convolution that visits, once compiled, only those cells of its kernel that aren't zero.

    out[c, y] = sum_k weight[c, cell_k(c)] x[c, y - pad + cell_k(c)]

In eager mode, and where it is exported, it is the dense convolution with the same weight: gathering pays only when it is fused.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ccrewrite.folded.cuts import cut_out, described, laid_out, used
from ccrewrite.folded.fusing import Fusing
from ccrewrite.folded.padded import PaddedConv
from ccrewrite.gathering.rows import sum_of_cells
from ccrewrite.ir.geometry import ConvGeometry, Ints
from ccrewrite.ir.operators import autocast


class SparseConv(Fusing, PaddedConv):
    """Mixin for ``nn.ConvNd``: ``weight`` is the dense kernel as in ``PaddedConv``, and ``cells`` ``(out, K)`` says where it is
    not zero: flat indices into a filter, filled up with the number of cells."""

    cells: Tensor

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.fused():
            return super()._conv_forward(input, weight, bias)
        layer, ndim = cast(_ConvNd, self), len(self.cuts)
        input, weight = autocast(input, weight)
        batched = input if input.dim() == ndim + 2 else input[None]
        batched, pads = laid_out(batched, self.cuts, ConvGeometry.from_module(layer).pads, layer.padding_mode)
        out = sum_of_cells(batched, weight, self.cells, [c.step for c in self.cuts], pads)
        out = out if bias is None else out + bias.to(out.dtype).view(-1, *(1,) * ndim)
        return out if input.dim() == ndim + 2 else out[0]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, visits {self.cells.shape[1]} of {math.prod(cast(Tensor, self.weight).shape[2:])} cells"


class SparseConv1d(SparseConv, nn.Conv1d):
    """See ``SparseConv``."""


class SparseConv2d(SparseConv, nn.Conv2d):
    """See ``SparseConv``."""


class SparseConv3d(SparseConv, nn.Conv3d):
    """See ``SparseConv``."""


SPARSE: dict[type, type[SparseConv]] = {nn.Conv1d: SparseConv1d, nn.Conv2d: SparseConv2d, nn.Conv3d: SparseConv3d}
"""torch's layer -> the sparse one."""


def make_(conv: _ConvNd, kernel: Tensor, margin: Ints) -> str:
    """Make ``conv``, of torch's own class and depthwise, one with the non-zero cells of ``kernel`` ``(out, 1, *window)``, which
    exceeds the original extent by ``margin``. In place; the site's message."""
    dense, cuts = cut_out(kernel, margin)
    filled = used(dense, len(cuts)).flatten(1)
    count = max(1, int(filled.sum(1).amax()))
    cells = torch.arange(filled.shape[1], device=filled.device).expand(filled.shape).masked_fill(~filled, filled.shape[1])
    conv.__class__ = cast(type[_ConvNd], SPARSE[type(conv)])
    layer = cast(SparseConv, conv)
    layer.cuts = cuts
    layer.register_buffer("cells", cells.sort(1).values[:, :count].to(torch.int32))
    conv.weight = nn.Parameter(dense, requires_grad=conv.weight.requires_grad)
    return f"{count} cells of {described(dense, cuts)}"
