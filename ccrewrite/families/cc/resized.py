"""The convolution of a CC layer at another size: planned axis by axis, then run. What is resampled where: ``resampling.py``.

A leaf for ``torch.fx.symbolic_trace``; to be called by its module's name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import has_static_value, statically_known_true

from ccrewrite.errors import InputError
from ccrewrite.families.cc.bands import resample
from ccrewrite.families.cc.native import cc_kernel
from ccrewrite.families.cc.padding import extend, pad
from ccrewrite.families.cc.profile import Along, continuous
from ccrewrite.families.cc.resampling import Resampling, ResizedAxis
from ccrewrite.families.resizable import Scales, largest
from ccrewrite.ir.geometry import ConvArguments, ConvGeometry, Ints
from ccrewrite.ir.operators import CONVOLUTIONS, TRANSPOSED

Form = Literal["taps", "grid", "dense"]
"""How a convolution's axis is resampled: ``ResizedAxis.by_taps`` (any kernel), ``on_grid`` or ``from_dense`` (untouched)."""
Pair = tuple[int, int]
"""Samples at the low and the high end of an axis; negative ones are cropped."""


class PlannedAxis(NamedTuple):
    """What is done along one axis, in this order."""

    continued: Pair
    """The input is continued, as the padding mode says."""
    before: Resampling | None
    """The input is resampled."""
    pads: Pair
    """Zeros are added; then the convolution, with these:"""
    stride: int
    dilation: int
    output_padding: int = 0
    after: Resampling | None = None
    """The convolution's outputs are resampled."""

    @property
    def resized(self) -> bool:
        """Whether this axis is another than the convolution's own."""
        return self.before is not None or self.after is not None


@torch.fx.wrap
def cc_resized(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alongs: tuple[Along, ...],
    margin: Ints,
    call: ConvArguments,
    asked: Ints | None,
    scale: Scales | None,
    alignment: str,
    rescaled: bool,
    still: bool,
) -> Tensor:
    """The convolution of ``call`` (torch's arguments, and ``padding_mode``) with ``asked`` outputs per axis, or ``scale`` times
    as many as natively.

    Axes that keep their size keep their stride. ``still``: nothing has moved, so that every axis is as good as plain.
    """
    ndim, transposed, mode = len(alongs), "output_padding" in call, call.get("padding_mode", "zeros")
    geometry = ConvGeometry.from_call("conv_transpose" if transposed else "conv", weight.shape, call)
    sizes = tuple(input.shape[-ndim:])
    _require_outputs(geometry, sizes)
    axes = [
        ResizedAxis.of(
            geometry,
            a,
            sizes[a],
            asked[a] if asked is not None else None,
            scale[a] if isinstance(scale, tuple) else scale,
            twice_support=alongs[a].twice_support,
            centred=alignment == "centred",
            rescaled=rescaled,
        )
        for a in range(ndim)
    ]
    if still:
        alongs, margin = tuple(along._replace(layers=()) for along in alongs), (0,) * ndim
    learned = continuous(alongs)
    changed = [a for a in range(ndim) if _changes(axes[a], geometry.output_padding[a], a not in learned)]
    kept = [a for a in range(ndim) if a not in changed]
    forms = {} if transposed else _forms(axes, changed, geometry, still)
    plan: list[PlannedAxis] = []
    for a in range(ndim):
        if a in kept:
            plan.append(_kept(geometry, a, margin[a], mode, a not in learned))
        elif transposed:
            plan.append(_resized_transposed(axes[a], a not in learned))
        else:
            plan.append(_resized(axes[a], forms[a], mode))
    windows = [a for a in kept if a in learned]
    kernel = cc_kernel(weight, alongs, geometry.dilation, margin, windows) if windows else weight
    return _run(plan, input, kernel, bias, alongs, geometry, mode)


def _require_outputs(geometry: ConvGeometry, sizes: Ints) -> None:
    native = geometry.output_size(sizes)
    if any(statically_known_true(n < 1) for n in native):
        raise InputError(f"input of {sizes} samples is too small for {geometry.describe()}: its native output size is {native}")


def _changes(axis: ResizedAxis, output_padding: int, plain: bool) -> bool:
    if not statically_known_true(axis.asked == axis.native):
        return True
    if axis.centred and not statically_known_true(axis.off_centre == 0):
        return True
    # An output padding that only the dilation allows: the window has none.
    return axis.transposed and not plain and output_padding >= axis.stride


def _kept(geometry: ConvGeometry, axis: int, margin: int, mode: str, plain: bool) -> PlannedAxis:
    """As the convolution has it, with the weight (``plain``) or the window that exceeds its extent by ``margin``."""
    low, high = geometry.pads[axis]
    continued = (low, high) if mode != "zeros" else (0, 0)
    low, high = (0, 0) if mode != "zeros" else (low, high)
    return PlannedAxis(
        continued=continued,
        before=None,
        pads=(low + margin, high + margin),
        stride=geometry.stride[axis],
        dilation=geometry.dilation[axis] if plain else 1,
        output_padding=geometry.output_padding[axis],
    )


def _resized(axis: ResizedAxis, form: Form, mode: str) -> PlannedAxis:
    taps = axis.by_taps()
    continued = (0, 0)
    if mode != "zeros":  # as far as the outermost taps read
        first, last = taps.ends(0, axis.asked)
        continued = (largest(0, -first), largest(0, last + 1 - axis.size))
    if form == "taps":
        return PlannedAxis(continued, taps.continued(*continued), (0, 0), stride=axis.taps, dilation=1)
    if form == "grid":
        before = axis.on_grid().continued(*continued)
        return PlannedAxis(continued, before, (0, 0), axis.stride, axis.dilation)
    after = axis.from_dense()
    low = after.low - continued[0]  # from the first window's start to the input's
    extent = axis.dilation * (axis.taps - 1) + 1
    high = after.size + extent - 1 - (axis.size + sum(continued)) - low
    return PlannedAxis(continued, None, (low, high), stride=1, dilation=axis.dilation, after=after)


def _resized_transposed(axis: ResizedAxis, plain: bool) -> PlannedAxis:
    if plain:
        return PlannedAxis((0, 0), None, (0, 0), axis.stride, axis.dilation, after=axis.from_native())
    return PlannedAxis((0, 0), None, (0, 0), stride=axis.taps, dilation=1, after=axis.from_taps())


def _forms(axes: Sequence[ResizedAxis], changed: Sequence[int], geometry: ConvGeometry, still: bool) -> dict[int, Form]:
    """The cheapest form of each axis that changes."""
    forms: dict[int, Form] = dict.fromkeys(changed, "taps")
    if not still:
        return forms
    candidates: list[int] = []
    for a in changed:
        axis = axes[a]
        if statically_known_true(axis.apart == axis.native):
            if statically_known_true(axis.on_grid().outputs <= axis.taps * axis.asked):
                forms[a] = "grid"
        elif has_static_value(axis.asked) and has_static_value(axis.size) and statically_known_true(axis.apart == axis.asked):
            candidates.append(a)
    if candidates and _dense_pays(axes, candidates, geometry):
        forms.update(dict.fromkeys(candidates, "dense"))
    return forms


def _dense_pays(axes: Sequence[ResizedAxis], candidates: Sequence[int], geometry: ConvGeometry) -> bool:
    """Whether the form "dense" takes fewer multiplications than "taps" on these axes. Those of a resampling count thrice: so
    much longer they take (benchmarks/speed/cc_speed.py)."""
    products = geometry.out_channels * geometry.in_channels // geometry.groups * math.prod(geometry.kernel_size)
    sizes = [axis.size for axis in axes]
    before = 0
    for a in candidates:  # the input is resampled axis after axis
        sizes[a] = axes[a].asked * axes[a].taps
        before += math.prod(sizes) * axes[a].size
    by_taps = 3 * geometry.in_channels * before + products * math.prod(axis.asked for axis in axes)
    windows: Mapping[int, int] = {a: axes[a].from_dense().size for a in candidates}
    sizes = [windows.get(a, axis.asked) for a, axis in enumerate(axes)]
    by_dense, after = products * math.prod(sizes), 0
    for a in candidates:  # the outputs are
        sizes[a] = axes[a].asked
        after += math.prod(sizes) * windows[a]
    return by_dense + 3 * geometry.out_channels * after < by_taps


def _run(
    plan: Sequence[PlannedAxis],
    input: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    alongs: tuple[Along, ...],
    geometry: ConvGeometry,
    mode: str,
) -> Tensor:
    ndim = geometry.ndim
    for a, axis in enumerate(plan):
        if axis.resized and mode != "zeros":
            input = extend(input, a - ndim, mode, *axis.continued)
        if axis.before is not None:
            input = resample(input, a - ndim, axis.before, alongs[a])
    if mode != "zeros":
        input = pad(input, [(0, 0) if axis.resized else axis.continued for axis in plan], mode)
    stride, dilation = [axis.stride for axis in plan], [axis.dilation for axis in plan]
    later = any(axis.after is not None for axis in plan)
    first_bias = None if later else bias
    if geometry.transposed:
        padding, extra = [axis.pads[0] for axis in plan], [axis.output_padding for axis in plan]
        function = TRANSPOSED[ndim - 1]
        out = function(input, kernel, first_bias, stride, padding, extra, geometry.groups, dilation)
    else:
        padded = pad(input, [axis.pads for axis in plan])
        out = CONVOLUTIONS[ndim - 1](padded, kernel, first_bias, stride, [0] * ndim, dilation, geometry.groups)
    for a, axis in enumerate(plan):
        if axis.after is not None:
            out = resample(out, a - ndim, axis.after, alongs[a])
    return out + bias.view(-1, *(1,) * ndim) if later and bias is not None else out
