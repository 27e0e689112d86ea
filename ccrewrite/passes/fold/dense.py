"""A layer whose weight is the effective kernel, cut to its non-zero cells: torch's own, and a pad or a crop beside it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ccrewrite.folded import padded
from ccrewrite.folded.cuts import Cut, cut, cut_out
from ccrewrite.ir.geometry import ConvGeometry, Ints
from ccrewrite.ir.torch_private import ConvNd, set_border_
from ccrewrite.passes.fold.sites import Answer
from ccrewrite.passes.targets import Target


def with_kernel_(conv: ConvNd, kernel: Tensor, margin: Ints, target: Target | None = None) -> Answer | None:
    """Give ``conv`` this effective kernel, ``(*weight.shape[:2], *window)``, in a window that exceeds the original extent by
    ``margin``, in a way that ``target`` takes where there is one. In place; None, and nothing done, for a layer that can't pad
    as the cut kernel needs: one of a class of somebody else's, or with submodules."""
    dense, cuts = cut_out(kernel, margin)
    extra = True
    if conv.transposed and target is not None:
        extra = target.transposed.output_padding or not any(conv.output_padding)
        if not target.transposed.dilated:
            cuts = tuple(Cut(c.before, c.after, 1) for c in cuts)
            dense = cut(kernel, cuts, margin)
    padding = _torch_padding(ConvGeometry.from_module(conv), cuts) if extra else None
    if padding is None:
        message = padded.make_(conv, dense, cuts, extra=extra) if type(conv) in padded.TORCH else None
        return None if message is None else Answer("padded", message)
    conv.weight = nn.Parameter(dense, requires_grad=conv.weight.requires_grad)
    conv.kernel_size = tuple(conv.weight.shape[2:])
    conv.dilation = tuple(c.step if k > 1 else 1 for c, k in zip(cuts, conv.kernel_size, strict=True))
    conv.padding = padding
    set_border_(conv, padding)
    return Answer("convolution", ConvGeometry.from_module(conv).describe().split(" ", 1)[1])


def _torch_padding(geometry: ConvGeometry, cuts: Sequence[Cut]) -> Ints | None:
    """The ``padding`` of the torch layer that convolves with the cut kernel; None where none can."""
    pads = list(zip(geometry.pads, cuts, strict=True))
    rest = [(low - c.before, high - c.after) for (low, high), c in pads]
    if any(low != high or low < 0 for low, high in rest):
        return None
    if geometry.padding_mode != "zeros" and any(min(c.before, c.after) < 0 for c in cuts):
        return None
    limits = zip(geometry.output_padding, geometry.stride, cuts, strict=True)
    if geometry.transposed and any(e >= max(s, c.step) for e, s, c in limits):
        return None
    return tuple(low for low, _ in rest)
