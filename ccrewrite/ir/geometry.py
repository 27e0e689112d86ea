"""The geometry of a convolution, and the coordinate maps of its axes.

Pure functions and frozen values; no modules and no tensors. Coordinates are exact (``fractions.Fraction``), so 6000 -> 8001
samples is as exact as 6 -> 8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NotRequired, SupportsInt, TypedDict, cast

from torch import Tensor

from ccrewrite.errors import InputError
from ccrewrite.ir.torch_private import ConvNd

Ints = tuple[int, ...]
Padding = Ints | Literal["same"]


class ConvArguments(TypedDict):
    """What a convolution is given after the bias, by torch's names, one entry per axis."""

    stride: Ints
    padding: Padding | Literal["valid"]
    """Of a transposed convolution numbers alone."""
    dilation: Ints
    groups: int
    output_padding: NotRequired[Ints]
    """Of a transposed convolution alone."""
    padding_mode: NotRequired[str]
    """Where a layer pads with something else than zeros."""


def per_axis(value: object, ndim: int, name: str) -> Ints:
    """``value`` (an int, or one or ``ndim`` ints) as a tuple of ``ndim`` ints.

    >>> per_axis(2, 3, "stride"), per_axis([1, 2], 2, "stride")
    ((2, 2, 2), (1, 2))
    """
    values = tuple(cast("Sequence[SupportsInt]", value)) if isinstance(value, Sequence) else (cast(SupportsInt, value),)
    if len(values) not in (1, ndim):
        raise InputError(f"{name} must have 1 or {ndim} entries (one per axis), found {len(values)}: {value!r}")
    return tuple(int(v) for v in (values * ndim if len(values) == 1 else values))


@dataclass(frozen=True)
class ConvGeometry:
    """What one convolution call does to the sampling grid, in torch's own argument names, one entry per spatial axis.

    ``padding`` is ``"same"`` or a tuple ("valid" is a tuple of zeros); ``pads`` resolves it to (low, high) pairs.

    >>> from torch import nn
    >>> g = ConvGeometry.from_module(nn.Conv2d(8, 16, 3, stride=2, padding=1))
    >>> g.output_size((56, 57)), g.kinds
    ((28, 29), ('strided',))
    """

    in_channels: int
    out_channels: int
    kernel_size: Ints
    stride: Ints
    padding: Padding
    dilation: Ints
    groups: int
    output_padding: Ints
    padding_mode: str = "zeros"
    transposed: bool = False

    @classmethod
    def from_module(cls, conv: ConvNd) -> ConvGeometry:
        """The geometry of any ``nn.ConvNd`` or ``nn.ConvTransposeNd``."""
        ndim = len(conv.kernel_size)
        return cls(
            conv.in_channels,
            conv.out_channels,
            tuple(conv.kernel_size),
            tuple(conv.stride),
            _padding(conv.padding, ndim),
            tuple(conv.dilation),
            conv.groups,
            tuple(conv.output_padding),
            conv.padding_mode,
            conv.transposed,
        )

    @classmethod
    def from_call(cls, name: str, weight_shape: Sequence[int], arguments: Mapping[str, object]) -> ConvGeometry:
        """The geometry of a functional call: ``name`` as in ``torch.conv2d``, ``torch.conv_transpose1d`` or
        ``torch.ops.aten.convolution``; ``arguments`` by torch's argument names, absent ones at their defaults.

        >>> ConvGeometry.from_call("conv1d", (4, 2, 3), {"dilation": 2, "groups": 3}).in_channels
        6
        """
        ndim = len(weight_shape) - 2
        transposed = bool(arguments.get("transposed", "transpose" in name))
        groups = int(cast(int, arguments.get("groups", 1)))
        first, second = int(weight_shape[0]), int(weight_shape[1]) * groups
        return cls(
            in_channels=first if transposed else second,
            out_channels=second if transposed else first,
            kernel_size=tuple(int(k) for k in weight_shape[2:]),
            stride=per_axis(arguments.get("stride", 1), ndim, "stride"),
            padding=_padding(arguments.get("padding", 0), ndim),
            dilation=per_axis(arguments.get("dilation", 1), ndim, "dilation"),
            groups=groups,
            output_padding=per_axis(arguments.get("output_padding", 0), ndim, "output_padding"),
            transposed=transposed,
        )

    @property
    def ndim(self) -> int:
        return len(self.kernel_size)

    @property
    def weight_channels(self) -> tuple[int, int]:
        """The weight's first two dimensions: ``(out, in/groups)``, of a transposed convolution ``(in, out/groups)``."""
        if self.transposed:
            return self.in_channels, self.out_channels // self.groups
        return self.out_channels, self.in_channels // self.groups

    @property
    def extent(self) -> Ints:
        """Samples from a kernel's first tap to its last, both included, per axis: ``dilation * (kernel_size - 1) + 1``."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel_size, self.dilation, strict=True))

    @property
    def pads(self) -> tuple[tuple[int, int], ...]:
        """(low, high) padding of each axis; an odd total under "same" puts the extra sample at the high end, as torch does."""
        if self.padding == "same":
            return tuple(((e - 1) // 2, e - 1 - (e - 1) // 2) for e in self.extent)
        return tuple((p, p) for p in self.padding)

    @property
    def depthwise(self) -> bool:
        """One group per input channel (and more than one of them)."""
        return self.groups == self.in_channels > 1

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kind flags: "transposed", "dilated", "strided", "large", or "plain" where none of them holds.

        An axis of one tap is not dilated, whatever its dilation says. "large" is a kernel of at least ``LARGE`` taps along
        some axis, undilated. A transposed convolution is "strided" where it up-samples.
        """
        flags = {
            "transposed": self.transposed,
            "dilated": any(d > 1 and k > 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)),
            "strided": any(s > 1 for s in self.stride),
        }
        flags["large"] = max(self.kernel_size) >= LARGE and not flags["dilated"]
        return tuple(kind for kind, holds in flags.items() if holds) or ("plain",)

    def output_size(self, input_size: Sequence[int]) -> Ints:
        """Native output size for an input of ``input_size`` samples (spatial axes only)."""
        sizes = zip(input_size, self.extent, self.stride, self.pads, self.output_padding, strict=True)
        if self.transposed:
            return tuple((n - 1) * s - low - high + e + op for n, e, s, (low, high), op in sizes)
        return tuple((n + low + high - e) // s + 1 for n, e, s, (low, high), _ in sizes)

    def describe(self) -> str:
        """One line as a person would write it: only what differs from the defaults.

        >>> from torch import nn
        >>> ConvGeometry.from_module(nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)).describe()
        '8->8 k3 p2 d2 g8'
        """
        parts = [f"{self.in_channels}->{self.out_channels}", "k" + _short(self.kernel_size)]
        zeros, ones = (0,) * self.ndim, (1,) * self.ndim
        parts += ["s" + _short(self.stride)] if self.stride != ones else []
        parts += [f"p{self.padding if self.padding == 'same' else _short(self.padding)}"] if self.padding != zeros else []
        parts += ["d" + _short(self.dilation)] if self.dilation != ones else []
        parts += ["op" + _short(self.output_padding)] if self.output_padding != zeros else []
        parts += [f"g{self.groups}"] if self.groups != 1 else []
        parts += [self.padding_mode] if self.padding_mode != "zeros" else []
        return " ".join(parts)

    def axis_map(self, axis: int) -> AxisMap:
        """The native coordinate map of one axis (``AxisMap``)."""
        k, d, s = self.kernel_size[axis], self.dilation[axis], self.stride[axis]
        low, _ = self.pads[axis]
        centre = Fraction(d * (k - 1), 2)
        if self.transposed:
            return AxisMap(Fraction(1, s), (low - centre) / s, Fraction(-d, s), k, Fraction(1, s))
        return AxisMap(Fraction(s), centre - low, Fraction(d), k, Fraction(1))


LARGE = 7
"""Taps along one axis from which an undilated kernel counts as large (the ConvMixer and ConvNeXt kernels)."""


@dataclass(frozen=True)
class AxisMap:
    """Where the outputs of one axis look, in input samples (arXiv 2006.11120, projected grid; see docs/design.md).

    ``out(y) = sum_t w_t sum_i phi((i - project(y) - node(t)) / width) x_i``, with ``project(y) = step * y + origin`` the
    centre of output ``y`` and ``node(t) = spacing * (t - (taps - 1) / 2)`` the tap's place around it.

    >>> from torch import nn
    >>> m = ConvGeometry.from_module(nn.Conv1d(1, 1, 3, stride=2, padding=1)).axis_map(0)
    >>> m.project(0), m.project(5), m.node(0)
    (Fraction(0, 1), Fraction(10, 1), Fraction(-1, 1))
    """

    step: Fraction
    origin: Fraction
    spacing: Fraction
    taps: int
    width: Fraction

    def project(self, y: int) -> Fraction:
        """Centre of output sample ``y``, in input samples."""
        return self.step * y + self.origin

    def node(self, t: int) -> Fraction:
        """Place of tap ``t`` relative to the centre, in input samples."""
        return self.spacing * (t - Fraction(self.taps - 1, 2))

    def resized(self, native_size: int, size: int) -> AxisMap:
        """The map that covers the same interval with ``size`` outputs instead of ``native_size``.

        The paper's centred grid plus the layer's own constant offset: the first cell's left edge stays where it was.

        >>> from torch import nn
        >>> m = ConvGeometry.from_module(nn.Conv1d(1, 1, 2, stride=2)).axis_map(0)
        >>> m.resized(8, 4).project(0)
        Fraction(3, 2)
        """
        if size < 1 or native_size < 1:
            raise InputError(f"an axis needs at least one sample, found native size {native_size} and asked size {size}")
        step = self.step * Fraction(native_size, size)
        return AxisMap(step, self.origin + (step - self.step) / 2, self.spacing, self.taps, self.width)

    def centred_origin(self, input_size: int, size: int) -> Fraction:
        """Origin that puts the output's centre on the input's: ``(N - 1) / 2 - step * (M - 1) / 2`` (the paper's grid)."""
        return Fraction(input_size - 1, 2) - self.step * Fraction(size - 1, 2)


def require_channels(owner: str, weight: Tensor, made_for: Sequence[int], sets: Sequence[int]) -> None:
    """Raise ``InputError``, in the name of ``owner``, where ``weight`` has other numbers of channels than geometry was
    ``made_for`` along a dimension with several ``sets`` of it: which channel has which is unknown then."""
    if not isinstance(weight, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        return  # torch.fx traces symbolically
    for axis, name in enumerate(("first", "second")):
        if sets[axis] > 1 and weight.shape[axis] != made_for[axis]:
            raise InputError(
                f"this {owner} has geometry for {made_for[axis]} channels along the weight's {name} dimension, but the call's "
                f"weight has {weight.shape[axis]}. Weights with other numbers of channels in other calls need a geometry that "
                "all channels share; channels are pruned before a model is rewritten, or after it is folded"
            )


def _padding(value: object, ndim: int) -> Padding:
    if value == "same":
        return "same"
    if value == "valid":
        return (0,) * ndim
    if isinstance(value, str):
        raise InputError(f"padding must be 'same', 'valid' or integers, found {value!r}")
    return per_axis(value, ndim, "padding")


def _short(values: Ints) -> str:
    return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))
