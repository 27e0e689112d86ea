"""Samplings that can give another output size than their convolution's own, and their layers."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from ccrewrite.errors import InputError
from ccrewrite.families.adopt import MIXINS, RewrittenConv, RewrittenConvTranspose
from ccrewrite.families.methods import Rerouted
from ccrewrite.families.sampling import Sampling
from ccrewrite.families.scratch import ScratchConv
from ccrewrite.ir.geometry import AxisMap, ConvArguments, ConvGeometry, Ints
from ccrewrite.ir.operators import bind
from ccrewrite.ir.torch_private import ConvNd, ConvTransposeNd

Scales = float | tuple[float, ...]
Alignment = Literal["native", "centred"]


class ResizableSampling(Sampling):
    """A ``Sampling`` whose kernel is continuous, so that it can be sampled for any output size.

    ``output_size`` (an int, or one per spatial axis) or ``scale`` (a ratio to the native output size, or one per axis) ask for
    another output size, of every call from then on; None, the start, is the native size. ``alignment`` is "native" (each output
    stays where the convolution has it) or "centred" (the centre of the output is on the input's, at every size).
    ``rescaled`` (False at the start) says that another size is due to another resolution of the input: the taps then keep their
    distance in the picture, not in samples. All four are plain attributes: copied and pickled with the layer, not part of its
    ``state_dict``.

    Scale groups, ``resize_``, ``misalignment`` and ``fold`` work with any class that derives from this one. It must give
    ``at_size`` beside what ``Sampling`` asks for, and ``axis_map`` where its outputs look at other places than the default's.
    """

    attributes: ClassVar[tuple[str, ...]] = ("output_size", "scale", "alignment", "rescaled")

    def __init__(self, geometry: ConvGeometry, *, margin: int | Sequence[int] = 0) -> None:
        super().__init__(geometry, margin=margin)
        self._output_size: Ints | None = None
        self._scale: Scales | None = None
        self._alignment = "native"
        self.rescaled = False

    @property
    def output_size(self) -> Ints | None:
        """Output size asked for, per spatial axis; None: not asked for."""
        return self._output_size

    @output_size.setter
    def output_size(self, size: int | Sequence[int] | None) -> None:
        if size is not None:
            size = _sizes(size, self.ndim)
            if self._scale is not None:
                raise InputError(f"output_size and scale can't both be set: scale is {self._scale}; set it to None first")
        self._output_size = size

    @property
    def scale(self) -> Scales | None:
        """Output size asked for over the native one, a number or one per spatial axis; None: not asked for."""
        return self._scale

    @scale.setter
    def scale(self, scale: float | Sequence[float] | None) -> None:
        if scale is not None:
            scale = tuple(scale) if isinstance(scale, Sequence) else scale
            values = scale if isinstance(scale, tuple) else (scale,) * self.ndim
            if len(values) != self.ndim or not all(math.isfinite(v) and v >= 1e-3 for v in values):
                raise InputError(f"scale must be one number of at least 0.001, or {self.ndim} (one per axis), found {scale!r}")
            if self._output_size is not None:
                raise InputError(
                    f"output_size and scale can't both be set: output_size is {self._output_size}; set it to None first"
                )
        self._scale = scale

    @property
    def alignment(self) -> str:
        """ "native" or "centred"."""
        return self._alignment

    @alignment.setter
    def alignment(self, alignment: str) -> None:
        if alignment not in get_args(Alignment):
            raise InputError(f"alignment must be 'native' or 'centred', found {alignment!r}")
        self._alignment = alignment

    @property
    def resized(self) -> bool:
        return self._output_size is not None or self._scale is not None or self._alignment != "native"

    def axis_map(self, geometry: ConvGeometry, axis: int, input_size: int, output_size: int) -> AxisMap:
        sizes = tuple(input_size if a == axis else 1 for a in range(geometry.ndim))
        native = geometry.output_size(sizes)[axis]
        found = geometry.axis_map(axis).resized(native, output_size)
        centred = found.centred_origin(input_size, output_size)
        if self.alignment == "centred":
            return replace(found, origin=centred)
        if self.rescaled and not geometry.transposed:  # the offset is measured in the picture, too
            return replace(found, origin=centred + (found.origin - centred) * Fraction(native, output_size))
        return found

    def forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *arguments: Any,
        output_size: int | Sequence[int] | None = None,
        padding_mode: str = "zeros",
        **named: Any,
    ) -> Tensor:
        """The convolution, at the size that ``output_size`` says, or else the attributes. ``padding_mode`` (torch's) is for a
        resized convolution, whose input must then not be padded yet."""
        if output_size is None and not self.resized:
            return super().forward(input, weight, bias, *arguments, **named)
        asked: Ints | None = self._output_size if output_size is None else _sizes(output_size, self.ndim)
        scale = self._scale if output_size is None else None
        call = bind(self.transposed, self.ndim, arguments, named)
        self.check_call(call["dilation"], weight)
        call["padding_mode"] = padding_mode
        return self.at_size(input, weight, bias, call, asked, scale)

    def pads_output(self, size: Sequence[int], least: Sequence[int], stride: Sequence[int]) -> bool:
        """Whether ``size`` is one that torch's transposed layer takes, by adding rows to the ``least`` that it may have."""
        return all(low <= n < low + s for n, low, s in zip(size, least, stride, strict=True))

    @abstractmethod
    def at_size(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, call: ConvArguments, asked: Ints | None, scale: Scales | None
    ) -> Tensor:
        """The convolution of ``call`` (torch's arguments by name, and ``padding_mode``) with ``asked`` outputs per axis; where
        that is None, ``scaled_size(native size, scale)`` of them; where both are, as many as natively."""

    def extra_repr(self) -> str:
        asked = {"output_size": self._output_size, "scale": self._scale}
        shown = [f"{name}={value}" for name, value in asked.items() if value is not None]
        return ", ".join([*shown, *([f"alignment={self._alignment}"] if self._alignment != "native" else [])])


def _sizes(size: int | Sequence[int], ndim: int) -> Ints:
    sizes: tuple[Any, ...] = tuple(size) if isinstance(size, Sequence) else (size,) * ndim
    if len(sizes) != ndim:
        raise InputError(f"output_size must be an int or {ndim} of them (one per spatial axis), found {size!r}")
    if any(isinstance(n, float) or n < 1 for n in sizes):
        raise InputError(f"output_size must be integers of at least 1, found {size!r}; for a ratio set scale")
    return sizes


def scaled_size(native: int, scale: float) -> int:
    """``max(1, round(native * scale))`` in integer arithmetic, symbolic sizes included.

    >>> scaled_size(28, 0.75), scaled_size(5, 0.5), scaled_size(3, 0.1)
    (21, 2, 1)
    """
    ratio = fraction_of(scale)
    p, q = ratio.numerator, ratio.denominator
    even = (p * native // q) % 2  # a half goes to the even neighbour, as in Python's round
    size = (2 * p * native + q - 1 + even) // (2 * q)
    return size if statically_known_true(size >= 1) else largest(1, size)


def fraction_of(scale: float) -> Fraction:
    """The simple fraction that a ratio like 0.7 means."""
    return Fraction(scale).limit_denominator(10**6)


def largest(a: int, b: int) -> int:
    """``max`` that leaves symbolic sizes open."""
    if torch.compiler.is_dynamo_compiling():
        return max(a, b)  # which it knows in every version
    return cast(int, torch.sym_max(a, b))  # pyright: ignore[reportUnknownMemberType]


class ResizableConv(RewrittenConv):
    """Mixin for ``nn.ConvNd``. A resized convolution continues its input itself, further than ``padding`` says."""

    def forward(self, input: Tensor, output_size: int | Sequence[int] | None = None) -> Tensor:
        if output_size is None or isinstance(self, Rerouted):
            return super().forward(input)
        layer = cast(ConvNd, self)
        return _at_size(self, input, layer.weight, layer.bias, output_size)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if isinstance(self, Rerouted) or not self.sampling.resized:
            return super()._conv_forward(input, weight, bias)
        return _at_size(self, input, weight, bias, None)


def _at_size(
    layer: RewrittenConv, input: Tensor, weight: Tensor, bias: Tensor | None, size: int | Sequence[int] | None
) -> Tensor:
    conv = cast(ConvNd, layer)
    arguments = conv.stride, conv.padding, conv.dilation, conv.groups
    return layer.sampling(input, weight, bias, *arguments, output_size=size, padding_mode=conv.padding_mode)


class ResizableConvTranspose(RewrittenConvTranspose):
    """Mixin for ``nn.ConvTransposeNd``. Output sizes that torch's own layer takes are torch's: they add rows."""

    def forward(self, input: Tensor, output_size: int | Sequence[int] | None = None) -> Tensor:
        layer = cast(ConvTransposeNd, self)
        if output_size is None or isinstance(self, Rerouted):
            return super().forward(input, cast(Any, output_size))
        ndim = len(layer.kernel_size)
        size = list(output_size) if isinstance(output_size, Sequence) else [output_size] * ndim
        size = size[2:] if len(size) == ndim + 2 else size
        geometry = ConvGeometry.from_module(layer)
        least = geometry.output_size(tuple(input.shape[-ndim:]))
        least = [n - e for n, e in zip(least, geometry.output_padding, strict=True)]
        if cast(ResizableSampling, self.sampling).pads_output(size, least, geometry.stride):
            return super().forward(input, size)
        arguments = layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
        return self.sampling(input, layer.weight, layer.bias, *arguments, output_size=size)


MIXINS[ResizableSampling] = ResizableConv, ResizableConvTranspose


class AsksForSizes(ScratchConv):
    """Layers from scratch, which can be asked for a size by their own attributes: those of ``layer.sampling``."""

    @property
    def _asked(self) -> ResizableSampling:
        return cast(ResizableSampling, self.sampling)

    @property
    def output_size(self) -> Ints | None:
        """Output size asked for, per spatial axis; None: not asked for."""
        return self._asked.output_size

    @output_size.setter
    def output_size(self, size: int | Sequence[int] | None) -> None:
        self._asked.output_size = size

    @property
    def scale(self) -> Scales | None:
        """Output size asked for over the native one, a number or one per spatial axis; None: not asked for."""
        return self._asked.scale

    @scale.setter
    def scale(self, scale: float | Sequence[float] | None) -> None:
        self._asked.scale = scale

    @property
    def alignment(self) -> str:
        """ "native" or "centred"."""
        return self._asked.alignment

    @alignment.setter
    def alignment(self, alignment: str) -> None:
        self._asked.alignment = alignment
