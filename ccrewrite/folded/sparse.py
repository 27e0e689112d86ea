"""A folded depthwise convolution that visits, once compiled, only those cells of its kernel that aren't zero.

    out[c, y] = sum_k weight[c, cell_k(c)] x[c, y - pad + cell_k(c)]

In eager mode, and where it is exported, it is the dense convolution with the same weight: gathering pays only when it is fused.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ccrewrite.families.dcls.sampling import DclsSampling
from ccrewrite.folded.cuts import Cut, FoldedConv, Fusing, laid_out, used
from ccrewrite.gathering.rows import sum_of_cells
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.operators import autocast

PAYS = 3.0
"""From how many cells of a dense kernel for each one visited they are visited alone, where nothing is measured. Between 1.5 and
this, large maps gain and small ones lose."""


def suits(sampling: Any, geometry: ConvGeometry) -> bool:
    """Whether a layer's cells can be visited one by one: a depthwise DCLS layer without strides."""
    depthwise = geometry.groups == geometry.in_channels > 1
    return isinstance(sampling, DclsSampling) and depthwise and not any(s > 1 for s in geometry.stride)


class SparseConv(Fusing, FoldedConv):
    """Mixin for ``nn.ConvNd``: ``weight`` is the dense kernel as in ``FoldedConv``, and ``cells`` ``(out, K)`` says where it is
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


def visit_(conv: _ConvNd, cuts: tuple[Cut, ...]) -> None:
    """Make ``conv``, whose weight has been cut, one that visits its non-zero cells alone. In place."""
    filled = used(conv.weight, len(cuts)).flatten(1)
    count = max(1, int(filled.sum(1).amax()))
    cells = torch.arange(filled.shape[1], device=filled.device).expand(filled.shape).masked_fill(~filled, filled.shape[1])
    conv.__class__ = cast(type[_ConvNd], SPARSE[type(conv)])
    layer = cast(SparseConv, conv)
    layer.cuts = cuts
    layer.register_buffer("cells", cells.sort(1).values[:, :count].to(torch.int32))
