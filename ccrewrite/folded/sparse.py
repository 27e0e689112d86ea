"""A folded depthwise convolution that leaves out cells of its kernel that are zero.

    out[c, y] = sum_k weight[c, cell_k(c)] x[c, y - pad + cell_k(c)]

Compiled, it visits just the cells of each channel that aren't. In eager mode and where it is exported, gathering doesn't pay:
there it is a sum of small dense convolutions, one for each box of cells that some channel uses. A tap's positions in all
channels lie in one box, as long as they haven't moved far from each other.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccrewrite.folded.cuts import Cut, arguments_of, conv_of_cut, crop_or_pad, cut_out, described, laid_out, used
from ccrewrite.folded.fusing import Fusing
from ccrewrite.folded.padded import parts_of
from ccrewrite.gathering.corners import Pads
from ccrewrite.gathering.last import depthwise, last
from ccrewrite.gathering.last import first as channels_first
from ccrewrite.gathering.rows import sum_of_cells
from ccrewrite.ir.geometry import ConvGeometry, Ints
from ccrewrite.ir.operators import autocast
from ccrewrite.ir.torch_private import ConvNd
from ccrewrite.ir.typed import integer_rows

Box = tuple[tuple[int, int], ...]
"""First cell and the one after the last, along each axis."""

WORTH_SPLITTING = 0.5
"""Boxes are used where they hold at most this part of the kernel's cells."""
SHORT = 48
"""Along one axis a kernel of so many cells is one box, and so is one of which boxes would hold more."""


def sum_of_boxes(input: Tensor, weight: Tensor, boxes: Sequence[Box], steps: Sequence[int], pads: Pads) -> Tensor:
    """The depthwise convolution (stride 1, dilation ``steps``) with ``weight``, which is zero outside ``boxes``. A channel may
    have several outputs."""
    ndim = len(steps)
    if ndim == 1 and len(weight) == input.shape[1] and input.device.type == "cpu" and not torch.compiler.is_compiling():
        return _sum_along_rows(input, weight, boxes, steps[0], pads[0])
    data = crop_or_pad(input, pads)
    sizes = zip(data.shape[2:], weight.shape[2:], steps, strict=True)
    outputs = [n - (k - 1) * step for n, k, step in sizes]
    total: Tensor | None = None
    for box in boxes:
        part, kernel = data, weight
        for axis, ((first, after), step, n) in enumerate(zip(box, steps, outputs, strict=True), 2):
            part = part.narrow(axis, first * step, n + (after - first - 1) * step)
            kernel = kernel.narrow(axis, first, after - first)
        zeros, ones = [0] * ndim, [1] * ndim
        term = torch.ops.aten.convolution(part, kernel, None, ones, zeros, list(steps), False, zeros, data.shape[1])
        total = term if total is None else total + term
    assert total is not None
    return total


def _sum_along_rows(input: Tensor, weight: Tensor, boxes: Sequence[Box], step: int, pads: tuple[int, int]) -> Tensor:
    """The same for one axis, with the channels last: torch's depthwise convolutions of pictures take them as they lie, where
    those of one axis are slow."""
    data = F.pad(last(input), (0, 0, *pads))
    outputs = data.shape[1] - (weight.shape[2] - 1) * step
    total: Tensor | None = None
    for ((start, stop),) in boxes:
        part = data.narrow(1, start * step, outputs + (stop - start - 1) * step).contiguous()
        term = depthwise(part, weight[:, 0, start:stop], 0, dilation=step)
        total = term if total is None else total.add_(term)
    assert total is not None
    return channels_first(total)


def boxes_of(filled: Tensor) -> tuple[Box, ...]:
    """The smallest boxes that hold the true cells of ``filled`` and don't touch each other.

    >>> boxes_of(torch.tensor([True, True, False, False, True]))
    (((0, 2),), ((4, 5),))
    """
    boxes = _boxes_of_neighbours(filled)
    merged: list[Box] = []
    while boxes:
        box = boxes.pop()
        near = next((other for other in (*boxes, *merged) if _touch(box, other)), None)
        if near is None:
            merged.append(box)
            continue
        (boxes if near in boxes else merged).remove(near)
        boxes.append(tuple((min(a, c), max(b, d)) for (a, b), (c, d) in zip(box, near, strict=True)))
    return tuple(sorted(merged))


def _boxes_of_neighbours(filled: Tensor) -> list[Box]:
    """A box around each set of cells that are next to each other, corners included."""
    left = {tuple(cell) for cell in integer_rows(filled.nonzero())}
    around = list(itertools.product((-1, 0, 1), repeat=filled.dim()))
    boxes: list[Box] = []
    while left:
        reached, found = [left.pop()], list[tuple[int, ...]]()
        while reached:
            cell = reached.pop()
            found.append(cell)
            near = {tuple(c + step for c, step in zip(cell, steps, strict=True)) for steps in around} & left
            left -= near
            reached.extend(near)
        boxes.append(tuple((min(along), max(along) + 1) for along in zip(*found, strict=True)))
    return boxes


def _touch(one: Box, other: Box) -> bool:
    return all(a <= d and c <= b for (a, b), (c, d) in zip(one, other, strict=True))


class SparseConv(Fusing):
    """Mixin for ``nn.ConvNd``: ``weight`` is the dense kernel, cut as ``cuts`` say, and ``cells`` ``(out, K)`` says where it is
    not zero: flat indices into a filter, filled up with the number of cells. ``kernel_size`` and so on are the original's."""

    cuts: tuple[Cut, ...]
    cells: Tensor
    boxes: tuple[Box, ...]
    """What eager mode convolves with, of the kernel; none: all of it."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer, ndim, steps = cast(ConvNd, self), len(self.cuts), [c.step for c in self.cuts]
        fused = self.fused()
        if not fused and not self.boxes:
            how = arguments_of(layer), self.cuts, ConvGeometry.from_module(layer).pads, layer.padding_mode
            return conv_of_cut(input, weight, bias, *how)
        batched = input if input.dim() == ndim + 2 else input[None]
        batched, pads = laid_out(batched, self.cuts, ConvGeometry.from_module(layer).pads, layer.padding_mode)
        if fused:
            out = sum_of_cells(*autocast(batched, weight), self.cells, steps, pads)
        else:
            out = sum_of_boxes(batched, weight, self.boxes, steps, pads)
        out = out if bias is None else out + bias.to(out.dtype).view(-1, *(1,) * ndim)
        return out if input.dim() == ndim + 2 else out[0]

    def __prepare_scriptable__(self) -> nn.Module:
        """For torch.jit.script, torch's own layers, which share the weight."""
        layer = cast(ConvNd, self)
        return nn.Sequential(OrderedDict(parts_of(layer, cast(nn.Parameter, layer.weight), self.cuts))).train(layer.training)

    def extra_repr(self) -> str:
        cells = f"visits {self.cells.shape[1]} of {math.prod(cast(Tensor, self.weight).shape[2:])} cells"
        return f"{super().extra_repr()}, cuts={tuple(tuple(c) for c in self.cuts)}, {cells}"


@contextmanager
def whole_kernels(model: nn.Module) -> Generator[None]:
    """Inside, the sparse layers of ``model`` convolve with their whole kernels in eager mode too: one convolution each."""
    layers = [(module, module.boxes) for module in model.modules() if isinstance(module, SparseConv)]
    try:
        for layer, _ in layers:
            layer.boxes = ()
        yield
    finally:
        for layer, boxes in layers:
            layer.boxes = boxes


class SparseConv1d(SparseConv, nn.Conv1d):
    """See ``SparseConv``."""


class SparseConv2d(SparseConv, nn.Conv2d):
    """See ``SparseConv``."""


class SparseConv3d(SparseConv, nn.Conv3d):
    """See ``SparseConv``."""


SPARSE: dict[type, type[SparseConv]] = {nn.Conv1d: SparseConv1d, nn.Conv2d: SparseConv2d, nn.Conv3d: SparseConv3d}
"""torch's layer -> the sparse one."""


def make_(conv: ConvNd, kernel: Tensor, margin: Ints) -> str:
    """Make ``conv``, of torch's own class and depthwise, one with the non-zero cells of ``kernel`` ``(out, 1, *window)``, which
    exceeds the original extent by ``margin``. In place; the site's message."""
    dense, cuts = cut_out(kernel, margin)
    filled = used(dense, len(cuts)).flatten(1)
    count = max(1, int(filled.sum(1).amax()))
    cells = torch.arange(filled.shape[1], device=filled.device).expand(filled.shape).masked_fill(~filled, filled.shape[1])
    conv.__class__ = cast(type[ConvNd], SPARSE[type(conv)])
    layer = cast(SparseConv, conv)
    layer.cuts = cuts
    boxes = boxes_of(filled.view(dense.shape[0], *dense.shape[2:]).any(0))
    split = sum(math.prod(after - first for first, after in box) for box in boxes) <= WORTH_SPLITTING * dense[0].numel()
    layer.boxes = boxes if split else ()
    if len(cuts) == 1 and (not split or dense.shape[2] <= SHORT):
        layer.boxes = (((0, dense.shape[2]),),)
    layer.register_buffer("cells", cells.sort(1).values[:, :count].to(torch.int32))
    conv.weight = nn.Parameter(dense, requires_grad=conv.weight.requires_grad)
    return f"{count} cells of {described(dense, cuts)}"
