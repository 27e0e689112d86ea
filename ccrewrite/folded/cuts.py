"""Kernels that are constants, cut to the cells that aren't zero, and convolutions with what is left.

An effective kernel lies in a window with ``margin`` cells around the original extent. ``smallest_cuts`` finds the smallest
dilated grid that holds its cells; ``conv_of_cut`` convolves with that grid in the original's place.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ccrewrite.ir.geometry import ConvArguments, Ints, Padding
from ccrewrite.ir.operators import CONVOLUTIONS, TRANSPOSED
from ccrewrite.ir.torch_private import ConvNd
from ccrewrite.ir.typed import integers

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
        cells = integers((support.any(others) if others else support).nonzero().flatten()) or [wide]
        step = math.gcd(*(b - a for a, b in itertools.pairwise(cells))) or 1
        cuts.append(Cut(cells[0] - wide, support.shape[axis] - 1 - cells[-1] - wide, step))
    return tuple(cuts)


def cut_out(kernel: Tensor, margin: Sequence[int]) -> tuple[Tensor, tuple[Cut, ...]]:
    """The smallest dilated grid of ``kernel`` ``(..., *window)`` that holds its cells that aren't zero, and how it lies in the
    original extent."""
    cuts = smallest_cuts(used(kernel, len(margin)).any(0), margin)
    return cut(kernel, cuts, margin), cuts


def cut(kernel: Tensor, cuts: Sequence[Cut], margin: Sequence[int]) -> Tensor:
    """The cells of ``kernel`` ``(..., *window)`` that lie on the grid of ``cuts``."""
    first = kernel.dim() - len(cuts)
    for axis, (before, after, step) in enumerate(cuts):
        stop = kernel.shape[first + axis] - margin[axis] - after
        cells = torch.arange(before + margin[axis], stop, step, device=kernel.device)
        kernel = kernel.index_select(first + axis, cells)
    return kernel.contiguous()


def used(kernel: Tensor, ndim: int) -> Tensor:
    """The cells, of shape ``(filters, *window)``, that are above rounding next to the filter's largest."""
    filters = kernel.detach().abs().reshape(-1, *kernel.shape[kernel.dim() - ndim :])
    largest = filters.flatten(1).amax(1).view(-1, *(1,) * ndim)
    return filters > largest * torch.finfo(kernel.dtype).eps / 4


def described(kernel: Tensor, cuts: Sequence[Cut]) -> str:
    """Size and steps of a cut kernel ``(..., *cells)``, as ``ConvGeometry.describe`` writes them: "k4x3 d1x2"."""
    sizes = "x".join(map(str, kernel.shape[kernel.dim() - len(cuts) :]))
    steps = "x".join(str(c.step) for c in cuts)
    return f"k{sizes}" + (f" d{steps}" if any(c.step > 1 for c in cuts) else "")


def arguments_of(layer: ConvNd) -> ConvArguments:
    """What the layer's convolution is given; of a transposed one without ``output_padding``."""
    return {"stride": layer.stride, "padding": cast(Padding, layer.padding), "dilation": layer.dilation, "groups": layer.groups}


def conv_of_cut(
    input: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    call: ConvArguments,
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
        input, rest = crop_or_pad(input, rest, "constant"), [(0, 0)] * len(rest)
    padding = tuple(low for low, _ in rest)
    return CONVOLUTIONS[len(cuts) - 1](input, kernel, bias, call["stride"], padding, steps, groups)


def laid_out(input: Tensor, cuts: Sequence[Cut], pads: Pads, mode: str) -> tuple[Tensor, list[tuple[int, int]]]:
    """``input``, padded as far as ``mode`` isn't zeros, and the zeros that the cut kernel needs beside it (negative: crops)."""
    known, rest = pads_of(cuts, pads, mode)
    return crop_or_pad(input, known, mode) if mode != "zeros" else input, rest


def pads_of(cuts: Sequence[Cut], pads: Pads, mode: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """What is continued as ``mode`` says, none where that is zeros; and the zeros beside it (negative: crops)."""
    known = [(max(0, low - max(0, c.before)), max(0, high - max(0, c.after))) for (low, high), c in _pairs(pads, cuts)]
    known = known if mode != "zeros" else [(0, 0)] * len(cuts)
    left = tuple((low - a, high - b) for (low, high), (a, b) in zip(pads, known, strict=True))
    return known, [(low - c.before, high - c.after) for (low, high), c in _pairs(left, cuts)]


def _transposed(input: Tensor, kernel: Tensor, bias: Tensor | None, call: ConvArguments, cuts: Sequence[Cut]) -> Tensor:
    function, steps, stride = TRANSPOSED[len(cuts) - 1], tuple(c.step for c in cuts), call["stride"]
    given, asked = cast(Ints, call["padding"]), call.get("output_padding", (0,) * len(cuts))
    low = tuple(p - c.before for p, c in zip(given, cuts, strict=True))
    high = tuple(p - c.after - e for p, c, e in zip(given, cuts, asked, strict=True))
    if not all(isinstance(e, int) for e in asked):  # pyright: ignore[reportUnnecessaryIsInstance]
        return _transposed_open(input, kernel, bias, call, cuts, low, high)
    extra = tuple(a - b for a, b in zip(low, high, strict=True))
    if all(p >= 0 and 0 <= e < max(s, d) for p, e, s, d in zip(low, extra, stride, steps, strict=True)):
        return function(input, kernel, bias, stride, low, extra, call["groups"], steps)
    padding = tuple(max(0, min(a, b)) for a, b in zip(low, high, strict=True))
    rest = [(p - a, p - b) for p, a, b in zip(padding, low, high, strict=True)]
    grows = any(n > 0 for pair in rest for n in pair)  # what is added is the bias alone
    out = function(input, kernel, None if grows else bias, stride, padding, (0,) * len(cuts), call["groups"], steps)
    out = crop_or_pad(out, rest, "constant")
    return out + bias.view(-1, *(1,) * len(cuts)) if grows and bias is not None else out


def _transposed_open(
    input: Tensor, kernel: Tensor, bias: Tensor | None, call: ConvArguments, cuts: Sequence[Cut], low: Ints, high: Ints
) -> Tensor:
    """The same where something traces it, and the crops ``high`` depend on open sizes: nothing may be decided by these. All
    outputs that there may be, and then those that there are."""
    function, steps, stride, zeros = TRANSPOSED[len(cuts) - 1], tuple(c.step for c in cuts), call["stride"], (0,) * len(cuts)
    whole = function(input, kernel, None, stride, zeros, zeros, call["groups"], steps)
    least = [p - c.after - s + 1 for p, c, s in zip(cast(Ints, call["padding"]), cuts, stride, strict=True)]
    out = crop_or_pad(whole, [(max(0, -a), max(0, -b)) for a, b in zip(low, least, strict=True)])
    for axis, (a, b) in enumerate(zip(low, high, strict=True), whole.dim() - len(cuts)):
        out = out.narrow(axis, max(0, a), whole.shape[axis] - a - b)
    return out if bias is None else out + bias.view(-1, *(1,) * len(cuts))


def _pairs(pads: Pads, cuts: Sequence[Cut]) -> list[tuple[tuple[int, int], Cut]]:
    return list(zip(pads, cuts, strict=True))


def crop_or_pad(x: Tensor, pads: Sequence[tuple[int, int]], mode: str = "constant") -> Tensor:
    """Negative pads crop; as slices, for few runtimes take them in a pad."""
    if any(n < 0 for pair in pads for n in pair):
        x = x[(..., *(slice(max(0, -low), min(0, high) or None) for low, high in pads))]
        pads = [(max(0, low), max(0, high)) for low, high in pads]
    if not any(n for pair in pads for n in pair):
        return x
    return F.pad(x, [n for pair in reversed(pads) for n in pair], mode=mode)
