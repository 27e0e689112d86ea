"""Where the outputs of a CC layer look at another size: ``ResizedAxis``, one axis; ``Resampling``, what is done along it.

An axis of a convolution with ``native`` outputs, asked for ``M``, is resampled at the places of its taps, before a convolution
of stride ``K`` with the untouched weight:

    R[(y, t), i] = phi_t((i - project(y) - rho node(t)) / rho) / rho          rho = max(1, native / M)

A transposed one puts its weighted samples side by side with stride ``K``, and its native output lattice is resampled after:

    A[y, (i, t)] = phi_t((Y(y) - n(i, t)) / rho) / rho        n(i, t) = s i + d t - p,   Y(y) = (y + 1/2) native / M - 1/2

So a convolution asked for less filters its input before it takes samples, a transposed one its output. Coordinates are integers
over ``2 M``, so that 6000 -> 8001 samples is as exact as 6 -> 8.

While ``phi_t`` is the bare interpolant, the same numbers come cheaper: taps ``rho`` apart lie on one grid (``on_grid``), taps
one sample apart share their fraction, so the outputs are an interpolation of the dense convolution's (``from_dense``), and a
transposed layer's one of its native outputs (``from_native``).

Sizes may be symbolic. Named tuples, for torch.compile follows these in every version.
"""

from __future__ import annotations

from typing import NamedTuple

from torch.fx.experimental.symbolic_shapes import has_static_value

from ccrewrite.families.resizable import fraction_of, largest, scaled_size
from ccrewrite.ir.geometry import ConvGeometry


class Resampling(NamedTuple):
    """One axis of a tensor, resampled. Output ``y``, tap ``t`` lies at ``(first + per_output y + per_tap t) / (2 asked)`` on a
    lattice, in samples, and reads the samples around that place."""

    asked: int
    first: int
    per_output: int
    per_tap: int
    stretch: int
    """By how much the kernel is wider than natively (``rho``), times ``asked``."""
    reach: int
    """How many samples around its place an output reads on either side, at most."""
    outputs: int
    """The result has this many, of ``taps`` values each; where ``interleaved``, of one value."""
    taps: int
    size: int
    """Samples of what is resampled; where ``interleaved``, of ``taps`` values each."""
    low: int
    """Sample 0 is at ``-low`` on the lattice."""
    interleaved: tuple[int, int] | None = None
    """(stride, dilation) where what is resampled has its taps side by side: tap ``t`` of sample ``i`` is at ``stride i +
    dilation t - low`` on the lattice."""

    def continued(self, before: int, after: int) -> Resampling:
        """The same outputs of an input that has ``before`` and ``after`` samples more at its ends."""
        return self._replace(size=self.size + before + after, low=self.low + before)

    def ends(self, start: int, stop: int) -> tuple[int, int]:
        """The first and the last lattice sample that the outputs ``start .. stop-1`` read."""
        first = self.per_output * start + self.first
        last = self.per_output * (stop - 1) + self.first + self.per_tap * (self.taps - 1)
        return first // (2 * self.asked) - self.reach, last // (2 * self.asked) + self.reach + 1


class ResizedAxis(NamedTuple):
    """One axis of a convolution that is asked for ``asked`` outputs. All in samples."""

    taps: int
    stride: int
    dilation: int
    low: int
    """Padding before the first sample."""
    transposed: bool
    size: int
    """Samples of the input."""
    native: int
    """Outputs that the convolution has by itself."""
    asked: int
    stretch: int
    """``rho asked``, that is ``max(native, asked)``."""
    reach: int
    """How many samples around its place an output reads on either side, at most."""
    centred: bool
    """The centre of the outputs is put on the input's."""
    rescaled: bool
    """Taps keep their distance in the picture: they are ``native / asked`` apart instead of ``rho``."""

    @classmethod
    def of(
        cls,
        geometry: ConvGeometry,
        axis: int,
        size: int,
        asked: int | None,
        scale: float | None,
        *,
        twice_support: int,
        centred: bool,
        rescaled: bool,
    ) -> ResizedAxis:
        """For ``asked`` outputs, or ``scale`` times the native number of them. The kernel ends ``twice_support / 2`` samples
        from its centre.

        Of symbolic sizes, ``rho`` and what it bounds are said as simply as can be: every comparison of sizes that
        ``torch.export`` can't decide narrows what the exported program takes.
        """
        g = geometry
        native = g.output_size([size if a == axis else 1 for a in range(g.ndim)])[axis]
        if asked is not None:
            stretch = largest(native, asked)
            most = size * (g.stride[axis] if g.transposed else 1) + g.extent[axis] + sum(g.pads[axis])
            reach = _over(twice_support * stretch, 2 * asked) if has_static_value(stretch) else twice_support * most
        elif scale is None or scale == 1:
            asked = stretch = native
            reach = _over(twice_support, 2)
        else:
            asked = scaled_size(native, scale)
            stretch = native if scale < 1 else asked
            reach = _over(twice_support * stretch, 2 * asked)
            if not has_static_value(native):  # rounding to asked >= 1 makes rho at most 3/2 of 1 / scale
                ratio = fraction_of(scale)
                widest = _over(3 * twice_support * ratio.denominator, 4 * ratio.numerator)
                reach = _over(twice_support, 2) if scale > 1 else widest
        return cls(
            taps=g.kernel_size[axis],
            stride=g.stride[axis],
            dilation=g.dilation[axis],
            low=g.pads[axis][0],
            transposed=g.transposed,
            size=size,
            native=native,
            asked=asked,
            stretch=stretch,
            reach=reach,
            centred=centred,
            rescaled=rescaled,
        )

    @property
    def apart(self) -> int:
        """Distance of two taps of dilation 1, times ``asked``."""
        return self.native if self.rescaled else self.stretch

    @property
    def off_centre(self) -> int:
        """Twice the distance from the input's centre to that of the native outputs, in samples of the lattice."""
        around = self.dilation * (self.taps - 1) - 2 * self.low  # twice the centre of output 0
        if self.transposed:
            return self.native - 1 - self.stride * (self.size - 1) - around
        return self.stride * (self.native - 1) + around - (self.size - 1)

    # Of a convolution, the lattice is its input.

    def by_taps(self) -> Resampling:
        """The input at the places of all taps: a convolution of stride K is left to do."""
        extent = self.dilation * (self.taps - 1)
        # The centre of output 0: its native place, and half of what a cell of the output grows by.
        first = (extent - 2 * self.low) * self.asked + self.stride * (self.native - self.asked)
        if self.centred:
            first = first - self.off_centre * self.asked
        elif self.rescaled:  # the convolution's own offset is one in the picture, too
            first = first + self.off_centre * (self.native - self.asked)
        return Resampling(
            asked=self.asked,
            first=first - extent * self.apart,
            per_output=2 * self.stride * self.native,
            per_tap=2 * self.dilation * self.apart,
            stretch=self.stretch,
            reach=self.reach,
            outputs=self.asked,
            taps=self.taps,
            size=self.size,
            low=0,
        )

    def on_grid(self) -> Resampling:
        """The input at steps of ``native / asked``, where taps are that far apart: the native convolution is left to do,
        unpadded."""
        outputs = self.stride * (self.asked - 1) + self.dilation * (self.taps - 1) + 1
        return self.by_taps()._replace(per_output=2 * self.native, per_tap=0, outputs=outputs, taps=1)

    def from_dense(self) -> Resampling:
        """The outputs out of those of the convolution of stride 1, where taps are a sample apart. Its window 0 starts at sample
        ``-low``; ``size`` is how many windows are needed."""
        first_taps = self.by_taps()._replace(per_tap=0, taps=1)
        first, last = first_taps.ends(0, self.asked)
        return first_taps._replace(low=-first, size=last - first + 1)

    # Of a transposed convolution, it is the native output, uncropped.

    def from_taps(self) -> Resampling:
        """The outputs out of the weighted input samples, whose taps lie side by side."""
        first = self.native - self.asked
        if self.centred:
            first = first - self.off_centre * self.asked
        return Resampling(
            asked=self.asked,
            first=first,
            per_output=2 * self.native,
            per_tap=0,
            stretch=self.stretch,
            reach=self.reach,
            outputs=self.asked,
            taps=self.taps,
            size=self.size,
            low=self.low,
            interleaved=(self.stride, self.dilation),
        )

    def from_native(self) -> Resampling:
        """The outputs out of the native ones, uncropped."""
        size = (self.size - 1) * self.stride + self.dilation * (self.taps - 1) + 1
        return self.from_taps()._replace(taps=1, size=size, interleaved=None)


def _over(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return -(-a // b)
