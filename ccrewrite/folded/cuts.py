"""What folding leaves where torch's own layers don't do: convolutions whose geometry is a constant.

An effective kernel is cut to the cells that are not zero (``smallest_cuts``), and convolved with as a dilated one. Where the
cut is the same on both sides, that is a plain torch layer; else the pads differ from side to side, and ``FoldedConv2d`` and its
like say how. ``FixedSampling`` serves weights that are known at run time only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ccrewrite.errors import InputError
from ccrewrite.families.dcls.sampling import DclsSampling
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.geometry import ConvGeometry, Ints
from ccrewrite.ir.operators import CONVOLUTIONS, TRANSPOSED, bind, full_precision

Pads = tuple[tuple[int, int], ...]


class Cut(NamedTuple):
    """One axis of a cut kernel, in cells: how far inside the original extent it starts and ends (negative: outside), and the
    distance from one tap to the next."""

    before: int
    after: int
    step: int


def smallest_cuts(support: Tensor, margin: Sequence[int]) -> tuple[Cut, ...]:
    """The smallest dilated grid that holds every true cell of ``support``, a window with ``margin`` cells around the original
    extent.

    >>> smallest_cuts(torch.tensor([False, True, False, True, False, True]), [1])
    (Cut(before=0, after=-1, step=2),)
    """
    cuts: list[Cut] = []
    for axis, wide in enumerate(margin):
        others = [a for a in range(support.dim()) if a != axis]
        cells = (support.any(others) if others else support).nonzero().flatten().tolist() or [wide]
        step = math.gcd(*(b - a for a, b in itertools.pairwise(cells))) or 1
        cuts.append(Cut(cells[0] - wide, support.shape[axis] - 1 - cells[-1] - wide, step))
    return tuple(cuts)


def cut(kernel: Tensor, cuts: Sequence[Cut], margin: Sequence[int]) -> Tensor:
    """The cells of ``kernel`` ``(..., *window)`` that lie on the grid of ``cuts``."""
    first = kernel.dim() - len(cuts)
    for axis, (before, after, step) in enumerate(cuts):
        stop = kernel.shape[first + axis] - margin[axis] - after
        cells = torch.arange(before + margin[axis], stop, step, device=kernel.device)
        kernel = kernel.index_select(first + axis, cells)
    return kernel.contiguous()


def conv_of_cut(
    input: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    call: dict[str, Any],
    cuts: Sequence[Cut],
    pads: Pads,
    mode: str = "zeros",
) -> Tensor:
    """The convolution of ``call`` (torch's arguments for the kernel that was cut) with what ``cut`` left.

    ``pads``: (low, high) of the original kernel, continued as ``mode`` (torch's padding mode) says.
    """
    steps, groups = tuple(c.step for c in cuts), call["groups"]
    if "output_padding" in call:
        return _transposed(input, kernel, bias, call, cuts)
    input, rest = laid_out(input, cuts, pads, mode)
    if any(low != high or low < 0 for low, high in rest):
        input, rest = _pad(input, rest, "constant"), [(0, 0)] * len(rest)
    padding = tuple(low for low, _ in rest)
    return CONVOLUTIONS[len(cuts) - 1](input, kernel, bias, call["stride"], padding, steps, groups)


def laid_out(input: Tensor, cuts: Sequence[Cut], pads: Pads, mode: str) -> tuple[Tensor, list[tuple[int, int]]]:
    """``input``, padded as far as ``mode`` isn't zeros, and the zeros that the cut kernel needs beside it (negative: crops)."""
    if mode != "zeros":
        known = [(max(0, low - max(0, c.before)), max(0, high - max(0, c.after))) for (low, high), c in _pairs(pads, cuts)]
        input = _pad(input, known, mode)
        pads = tuple((low - a, high - b) for (low, high), (a, b) in zip(pads, known, strict=True))
    return input, [(low - c.before, high - c.after) for (low, high), c in _pairs(pads, cuts)]


def _transposed(input: Tensor, kernel: Tensor, bias: Tensor | None, call: dict[str, Any], cuts: Sequence[Cut]) -> Tensor:
    function, steps, stride = TRANSPOSED[len(cuts) - 1], tuple(c.step for c in cuts), call["stride"]
    low = tuple(p - c.before for p, c in zip(call["padding"], cuts, strict=True))
    high = tuple(p - c.after - e for p, c, e in zip(call["padding"], cuts, call["output_padding"], strict=True))
    extra = tuple(a - b for a, b in zip(low, high, strict=True))
    if all(p >= 0 and 0 <= e < max(s, d) for p, e, s, d in zip(low, extra, stride, steps, strict=True)):
        return function(input, kernel, bias, stride, low, extra, call["groups"], steps)
    padding = tuple(max(0, min(a, b)) for a, b in zip(low, high, strict=True))
    rest = [(p - a, p - b) for p, a, b in zip(padding, low, high, strict=True)]
    grows = any(n > 0 for pair in rest for n in pair)  # what is added is the bias alone
    out = function(input, kernel, None if grows else bias, stride, padding, (0,) * len(cuts), call["groups"], steps)
    out = _pad(out, rest, "constant")
    return out + bias.view(-1, *(1,) * len(cuts)) if grows and bias is not None else out


def _pairs(pads: Pads, cuts: Sequence[Cut]) -> list[tuple[tuple[int, int], Cut]]:
    return list(zip(pads, cuts, strict=True))


def _pad(x: Tensor, pads: Sequence[tuple[int, int]], mode: str) -> Tensor:
    """Negative pads crop; as slices, for few runtimes take them in a pad."""
    if any(n < 0 for pair in pads for n in pair):
        x = x[(..., *(slice(max(0, -low), min(0, high) or None) for low, high in pads))]
        pads = [(max(0, low), max(0, high)) for low, high in pads]
    if not any(n for pair in pads for n in pair):
        return x
    return F.pad(x, [n for pair in reversed(pads) for n in pair], mode=mode)


class Fusing(nn.Module):
    """Mixin for layers that compute the same in another way where Inductor will fuse it: ``ccrewrite.aot``, which exports in
    order to compile, sets ``fuses``."""

    fuses = False

    def fused(self) -> bool:
        return self.fuses or (torch.compiler.is_compiling() and not torch.compiler.is_exporting())


class FoldedConv(nn.Module):
    """Mixin for ``nn.ConvNd``: a fixed kernel whose pads differ from side to side.

    ``weight`` is what was cut out of the effective kernel. ``kernel_size``, ``stride``, ``padding``, ``dilation`` and the rest
    are the original's, for code that reads them; ``cuts`` says how the kernel lies in that extent.
    """

    cuts: tuple[Cut, ...]

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer = cast(_ConvNd, self)
        call = {"stride": layer.stride, "groups": layer.groups}
        return conv_of_cut(input, weight, bias, call, self.cuts, ConvGeometry.from_module(layer).pads, layer.padding_mode)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, cuts={tuple(tuple(c) for c in self.cuts)}"


class FoldedConvTranspose(FoldedConv):
    """The same for ``nn.ConvTransposeNd``."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        layer = cast(_ConvTransposeNd, self)
        extra: Any = layer.output_padding
        if output_size is not None:
            stride, padding, taps = (list(cast(Ints, v)) for v in (layer.stride, layer.padding, layer.kernel_size))
            extra = layer._output_padding(input, output_size, stride, padding, taps, len(taps), list(layer.dilation))
        call = {"stride": layer.stride, "padding": layer.padding, "output_padding": extra, "groups": layer.groups}
        return conv_of_cut(input, layer.weight, layer.bias, call, self.cuts, ())


class FoldedConv1d(FoldedConv, nn.Conv1d):
    """See ``FoldedConv``."""


class FoldedConv2d(FoldedConv, nn.Conv2d):
    """See ``FoldedConv``."""


class FoldedConv3d(FoldedConv, nn.Conv3d):
    """See ``FoldedConv``."""


class FoldedConvTranspose1d(FoldedConvTranspose, nn.ConvTranspose1d):
    """See ``FoldedConv``."""


class FoldedConvTranspose2d(FoldedConvTranspose, nn.ConvTranspose2d):
    """See ``FoldedConv``."""


class FoldedConvTranspose3d(FoldedConvTranspose, nn.ConvTranspose3d):
    """See ``FoldedConv``."""


FOLDED: dict[type, type[FoldedConv]] = {
    nn.Conv1d: FoldedConv1d,
    nn.Conv2d: FoldedConv2d,
    nn.Conv3d: FoldedConv3d,
    nn.ConvTranspose1d: FoldedConvTranspose1d,
    nn.ConvTranspose2d: FoldedConvTranspose2d,
    nn.ConvTranspose3d: FoldedConvTranspose3d,
}
"""torch's layer -> the folded one."""


class ResizedConv(nn.Module):
    """A CC layer at another output size: ``graph``, plain operators with constant matrices, for inputs of ``size`` samples.

    Raises ``InputError`` for inputs of another size.
    """

    def __init__(self, graph: fx.GraphModule, size: Ints) -> None:
        super().__init__()
        self.graph = graph
        self.size = size

    def forward(self, input: Tensor) -> Tensor:
        return self.graph(check_size(input, self.size))

    def extra_repr(self) -> str:
        return f"size={self.size}"


@torch.fx.wrap
def check_size(input: Tensor, size: Ints) -> Tensor:
    """``input``, which must have this size. A leaf for ``torch.fx.symbolic_trace``."""
    if tuple(input.shape[-len(size) :]) != size:
        raise InputError(
            f"this layer was folded at another output size than the convolution's own, for inputs of {size} samples; found "
            f"{tuple(input.shape[-len(size) :])}. Fold with example inputs of that size, or don't fold it (exclude=)"
        )
    return input


class FixedSampling(nn.Module):
    """A sampling whose geometry is a constant, for weights that are known at run time only: ``K = matrix . weight``.

    ``matrix`` is ``(taps, A, B, *cells)``, cut like a kernel, with ``A`` a divisor of the weight's first dimension and ``B`` of
    its second. Called as the sampling that it replaces.
    """

    matrix: Tensor

    def __init__(self, sampling: Sampling) -> None:
        super().__init__()
        self.kernel_size = sampling.kernel_size
        self.dilation = sampling.dilation
        self.transposed = sampling.transposed
        matrix = matrix_of(sampling)
        self.cuts = smallest_cuts(occupied(matrix, sampling.ndim), sampling.margin)
        self.register_buffer("matrix", cut(matrix, self.cuts, sampling.margin))

    @property
    def ndim(self) -> int:
        return len(self.kernel_size)

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *arguments: Any, **named: Any) -> Tensor:
        call = bind(self.transposed, self.ndim, arguments, named)
        pads: Pads = ()
        if not self.transposed:
            padding = (0,) * self.ndim if call["padding"] == "valid" else call["padding"]
            ones, zeros = (1,) * self.ndim, (0,) * self.ndim
            pads = ConvGeometry(1, 1, self.kernel_size, ones, padding, self.dilation, 1, zeros).pads
        return conv_of_cut(input, fixed_kernel(weight, self.matrix), bias, call, self.cuts, pads)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, dilation={self.dilation}, cuts={tuple(tuple(c) for c in self.cuts)}"


@torch.fx.wrap
def fixed_kernel(weight: Tensor, matrix: Tensor) -> Tensor:
    """``(*weight.shape[:2], *cells)``. A leaf for ``torch.fx.symbolic_trace``."""
    rows, columns = weight.shape[:2]
    sets, inner = matrix.shape[1:3]
    with full_precision(weight.device):
        flat = weight.to(matrix.dtype).flatten(2)
        if sets == inner == 1:
            kernel = flat @ matrix.flatten(1)
        else:
            spread = matrix.flatten(3).repeat_interleave(rows // sets, 1).repeat_interleave(columns // inner, 2)
            kernel = (flat.movedim(-1, 0)[..., None] * spread).sum(0)
    return kernel.view(rows, columns, *matrix.shape[3:]).to(weight.dtype)


def matrix_of(sampling: Sampling) -> Tensor:
    """``B`` of ``K = B . weight``, ``(taps, A, B, *window)``, in at least float32: a kernel is linear in its weight."""
    taps, sets = sampling.kernel_size, (1, 1)
    if isinstance(sampling, DclsSampling):
        taps, sets = sampling.taps, tuple(sampling.offset.shape[1:3])
    like = next(sampling.parameters())
    dtype, count = torch.promote_types(like.dtype, torch.float32), math.prod(taps)
    hot = torch.eye(count, dtype=dtype, device=like.device).view(count, 1, 1, *taps)
    return torch.stack([sampling.kernel(one.expand(*sets, *taps).contiguous()) for one in hot])


def occupied(kernel: Tensor, ndim: int) -> Tensor:
    """The cells, of shape ``(*window,)``, that some filter of ``kernel`` ``(..., *window)`` uses."""
    return used(kernel, ndim).any(0)


def used(kernel: Tensor, ndim: int) -> Tensor:
    """The cells, of shape ``(filters, *window)``, that are above rounding next to the filter's largest."""
    filters = kernel.detach().abs().reshape(-1, *kernel.shape[kernel.dim() - ndim :])
    largest = filters.flatten(1).amax(1).view(-1, *(1,) * ndim)
    return filters > largest * torch.finfo(kernel.dtype).eps / 4
