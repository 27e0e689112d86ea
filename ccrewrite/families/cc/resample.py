"""One axis of a CC layer asked for another output size: where its outputs look, and the banded matrix that does it.

A convolution's axis of ``native`` outputs, asked for ``M``, is resampled at the places of its taps, before a convolution of
stride ``K`` with the untouched weight:

    R[(y, t), i] = phi_t((i - project(y) - rho node(t)) / rho) / rho          rho = max(1, native / M)

A transposed one puts its weighted samples side by side with stride ``K``, and its native output lattice is resampled after:

    A[y, (i, t)] = phi_t((Y(y) - n(i, t)) / rho) / rho        n(i, t) = s i + d t - p,   Y(y) = (y + 1/2) native / M - 1/2

So a convolution asked for less filters its input before it takes samples, a transposed one its output. Whatever the fraction,
each row's sum is that of the native kernel: what is missing is added in the shape of the interpolant (never divided by a sum
that can be zero). Coordinates are integers over ``2 M``; only a fraction within one sample becomes a float, so that
6000 -> 8001 samples is as exact as 6 -> 8.

While ``phi_t`` is the bare interpolant, the same numbers come cheaper: taps ``rho`` apart lie on one grid (``Line.grid``), taps
one sample apart share their fraction, so the outputs are an interpolation of the dense convolution's (``Line.dense``), and a
transposed layer's one of its native outputs (``Line.output``).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import has_static_value, statically_known_true

from ccrewrite.families.cc.profile import Along, gain, profile
from ccrewrite.families.resizable import fraction_of, largest, scaled_size
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.operators import full_precision

BLOCK = 512
"""Samples of an axis from which it is resampled block by block: a matrix of all its outputs would be mostly zeros."""


class Line(NamedTuple):
    """The places where the outputs of one axis look: tap ``t`` of output ``y`` at ``(slope y + start + node t) / (2 asked)``,
    in samples of a lattice. Sizes may be symbolic."""

    native: int
    asked: int
    slope: int
    start: int
    node: int
    stretch: int
    """``rho`` times ``asked``."""
    reach: int
    """How many samples of the lattice around its place an output reads, at most."""
    size: int
    """Samples of what is resampled."""
    rows: int
    """Outputs of what is resampled."""
    taps: int
    low: int = 0
    """Sample 0 is at ``-low`` on the lattice."""
    spread: tuple[int, int] | None = None
    """Transposed, a line of every tap: (stride, dilation), by which tap ``t`` of sample ``i`` is ``stride i + dilation t -
    low`` on the lattice."""
    centre: int = 0
    """Twice the distance from the input's centre to the native grid's, in samples of the lattice."""

    @classmethod
    def of(
        cls,
        geometry: ConvGeometry,
        axis: int,
        size: int,
        asked: int | None,
        scale: float | None,
        along: Along,
        *,
        centred: bool = False,
        rescaled: bool = False,
    ) -> Line:
        """The line of one axis for ``asked`` outputs, or ``scale`` times the native number of them.

        Of symbolic sizes, ``rho`` and what it bounds are said as simply as can be: every comparison of sizes that
        ``torch.export`` can't decide narrows what the exported program takes.
        """
        g = geometry
        k, s, d, low = g.kernel_size[axis], g.stride[axis], g.dilation[axis], g.pads[axis][0]
        sizes = [1] * g.ndim
        sizes[axis] = size
        native = g.output_size(sizes)[axis]
        twice = along.twice_support
        if asked is not None:
            stretch = largest(native, asked)
            most = size * (s if g.transposed else 1) + g.extent[axis] + sum(g.pads[axis])
            reach = twice * most if not has_static_value(stretch) else -(-twice * stretch // (2 * asked))
        elif scale is None or scale == 1:
            asked = stretch = native
            reach = -(-twice // 2)
        else:
            asked = scaled_size(native, scale)
            stretch = native if scale < 1 else asked
            ratio = fraction_of(scale)
            reach = -(-twice * stretch // (2 * asked))
            if not has_static_value(native):  # rounding to asked >= 1 makes rho at most 3/2 of 1 / scale
                reach = -(-twice // 2) if scale > 1 else -(-3 * twice * ratio.denominator // (4 * ratio.numerator))
        around = d * (k - 1) - 2 * low
        if g.transposed:
            centre = native - 1 - s * (size - 1) - around
            start = native - asked - (centre * asked if centred else 0)
            return cls(native, asked, 2 * native, start, 0, stretch, reach, size, asked, k, low, (s, d), centre)
        centre = s * (native - 1) + around - (size - 1)
        apart = native if rescaled else stretch
        start = (around - s) * asked + s * native - d * apart * (k - 1)
        if centred or rescaled:
            start = start - centre * asked
        if rescaled and not centred:
            start = start + centre * native
        return cls(native, asked, 2 * s * native, start, 2 * d * apart, stretch, reach, size, asked, k, 0, None, centre)

    def grid(self, stride: int, dilation: int) -> Line:
        """For taps ``rho`` apart: resampled at steps of ``rho``, what is left to do is the native convolution, unpadded."""
        rows = stride * (self.asked - 1) + dilation * (self.taps - 1) + 1
        return self._replace(slope=2 * self.native, node=0, rows=rows, taps=1)

    def dense(self) -> Line:
        """For taps a sample apart: the outputs out of those of the convolution of stride 1, whose first window starts at
        ``-low``; ``size`` is how many of them are needed."""
        first, last = self._replace(node=0).ends(0, self.rows)
        return self._replace(node=0, taps=1, low=-first, size=last - first + 1)

    def output(self) -> Line:
        """For a transposed layer: the outputs out of the native ones, uncropped."""
        stride, dilation = self.spread or (1, 1)
        return self._replace(taps=1, size=(self.size - 1) * stride + dilation * (self.taps - 1) + 1, spread=None)

    def extended(self, low: int, high: int) -> Line:
        """The same outputs of an input that has ``low`` and ``high`` samples more at its ends."""
        return self._replace(size=self.size + low + high, low=self.low + low)

    def ends(self, start: int, stop: int) -> tuple[int, int]:
        """The first and last lattice sample that the outputs ``start .. stop-1`` read."""
        den = 2 * self.asked
        first = self.slope * start + self.start
        last = self.slope * (stop - 1) + self.start + self.node * (self.taps - 1)
        return first // den - self.reach, last // den + self.reach + 1

    def band(self, start: int, stop: int, along: Along, device: Any) -> tuple[Tensor, Tensor, Tensor]:
        """What the outputs ``start .. stop-1`` read: (taps, lattice samples, their weights), of shapes ``(r, 1)``, ``(r, n)``
        and ``(r, n)`` for ``r = (stop - start) * taps`` rows, spread ``(1, taps, 1)``, ``(r, 1, n)`` and ``(r, taps, n)`` for
        ``r = stop - start``."""
        den = 2 * self.asked
        if self.spread is not None:
            taps = torch.arange(self.taps, device=device)[None]
            places = self.slope * torch.arange(start, stop, device=device)[:, None] + self.start
        else:
            rows = torch.arange(start * self.taps, stop * self.taps, device=device)
            y, taps = torch.div(rows, self.taps, rounding_mode="floor"), rows % self.taps
            places = self.slope * y + self.node * taps + self.start
        below = torch.div(places, den, rounding_mode="floor")
        fraction = (places - below * den).to(along.dtype) / den
        near = torch.arange(-self.reach, self.reach + 2, device=device)
        distance = (near.to(along.dtype) - fraction[..., None]) * self.asked / self.stretch
        # A transposed layer's outputs are at -distance from their places on the lattice.
        values, bump = profile(distance if self.spread is None else -distance, taps, along)
        bump = bump / bump.sum(-1, keepdim=True)
        if along.layers:
            values = values * self.asked / self.stretch
            bump = values + (gain(taps, along)[..., None] - values.sum(-1, keepdim=True)) * bump
        return taps[..., None], below[..., None] + near, bump


def resample(x: Tensor, axis: int, line: Line, along: Along) -> Tensor:
    """``x`` with ``axis`` (counted from the end) resampled: ``size -> rows * taps``, spread ``size * taps -> rows``."""
    blocks = [(0, line.rows)]
    if has_static_value(line.rows) and has_static_value(line.size) and line.size > BLOCK:
        count = -(-line.size // (BLOCK // 2))
        rows = -(-line.rows // count)
        blocks = [(y, min(y + rows, line.rows)) for y in range(0, line.rows, rows)]
    pieces = [_block(x, axis, line, along, start, stop, whole=len(blocks) == 1) for start, stop in blocks]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, axis)


def _block(x: Tensor, axis: int, line: Line, along: Along, start: int, stop: int, *, whole: bool) -> Tensor:
    first, last = 0, line.size
    if not whole:
        low, high = line.ends(start, stop)
        low, high = low + line.low, high + line.low
        if line.spread is not None:
            stride, dilation = line.spread
            low, high = -(-(low - dilation * (line.taps - 1)) // stride), high // stride
        first = min(max(low, 0), line.size - 1)
        last = min(max(high + 1, first + 1), line.size)
    if along.layers:
        with full_precision(x.device):
            matrix = _matrix(line, along, start, stop, first, last, x.device).to(x.dtype)
    else:
        matrix = _fixed_matrix(line, along.basis, along.dtype, start, stop, first, last, x.dtype, x.device)
    width = line.taps if line.spread is not None else 1
    part = x if whole else x.narrow(axis, first * width, (last - first) * width)
    if not all(has_static_value(n) for n in part.shape):
        # One product per row of the batch: joining rows, as `@` does, compares symbolic sizes.
        part = part.movedim(axis, -1)
        return (part @ matrix.mT.expand(*part.shape[:-2], -1, -1)).movedim(-1, axis)
    return product(matrix, part, axis)


def product(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """``matrix`` applied to ``axis`` of ``x``, counted from the end."""
    if axis == -1:
        return x @ matrix.mT
    return (matrix @ x.flatten(axis + 1)).unflatten(-1, x.shape[axis + 1 :])


@functools.lru_cache(maxsize=64)
def _fixed_matrix(
    line: Line, basis: str, exact: torch.dtype, start: int, stop: int, first: int, last: int, dtype: torch.dtype, device: Any
) -> Tensor:
    """``_matrix`` of the bare interpolant, which depends on nothing that is learned: kept from call to call."""
    with torch.inference_mode(False), torch.no_grad(), full_precision(device):
        along = Along(basis, 0, torch.zeros(1, dtype=exact, device=device), ())
        return _matrix(line, along, start, stop, first, last, device).to(dtype)


def _matrix(line: Line, along: Along, start: int, stop: int, first: int, last: int, device: Any) -> Tensor:
    """``R`` (or ``A``) of the outputs ``start .. stop-1`` and the input samples ``first .. last-1``."""
    columns, values = entries(line, along, start, stop, first, last, device)
    width = (last - first) * (line.taps if line.spread is not None else 1)
    return values.new_zeros(values.shape[0], width).scatter_add(1, columns, values)


def entries(line: Line, along: Along, start: int, stop: int, first: int, last: int, device: Any) -> tuple[Tensor, Tensor]:
    """The matrix's entries that may be other than zero, row by row: (columns, values); several of a column add up."""
    taps, lattice, values = line.band(start, stop, along, device)
    samples, width = lattice + line.low, last - first
    if line.spread is not None:
        stride, dilation = line.spread
        ahead = samples - dilation * taps
        samples = torch.div(ahead, stride, rounding_mode="floor")
        values = values * (samples * stride == ahead)
    values = values * ((samples >= first) & (samples < last))
    columns = (samples - first).clamp(0, width - 1)
    if line.spread is not None:
        columns, values = (columns * line.taps + taps).flatten(1), values.flatten(1)
    return columns, values


def extend(x: Tensor, axis: int, mode: str, low: int, high: int) -> Tensor:
    """``x`` continued by ``low`` and ``high`` samples along ``axis`` (counted from the end) as torch's padding ``mode`` says,
    by more than its length where need be."""
    size = x.shape[axis]
    places = torch.arange(-low, size + high, device=x.device)
    if mode == "circular":
        places = places % size
    elif mode == "replicate":
        places = places.clamp(0, size - 1)
    else:
        places = (size - 1) - ((places % largest(1, 2 * size - 2)) - (size - 1)).abs()
    return x.index_select(axis, places)


def pad(x: Tensor, pads: Sequence[tuple[int, int]], mode: str = "zeros") -> Tensor:
    """``F.pad`` of the spatial axes by (low, high) pairs; negative ones crop."""
    if all(statically_known_true(n == 0) for pair in pads for n in pair):
        return x
    return F.pad(x, [n for pair in reversed(pads) for n in pair], mode="constant" if mode == "zeros" else mode)
