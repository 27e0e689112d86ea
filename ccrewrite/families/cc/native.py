"""A CC layer off its start at its native size: its effective kernel, and cheaper ways to the same outputs.

    out(y) = sum_t w_t sum_j F_1[t_1, j_1 - s_1 y_1] F_2[t_2, j_2 - s_2 y_2] ... x_j          F[t, c] = phi_t(c - d t)

The kernel is separable, tap by tap. So instead of convolving with a window of K + 4 cells, an axis of the input can be brought
to the places of its taps by one product with a banded matrix, and a convolution of stride K with the untouched weight does the
rest. A transposed layer puts its weighted samples side by side, stride K, and is brought to its output after. For a pointwise
layer of two axes the window has 25 times the multiplications; but resampling moves more data. ``cheapest`` decides, axis by
axis.

Leaves for ``torch.fx.symbolic_trace``; to be called by their module's name.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import has_static_value

from ccrewrite.families.cc import filtered, toeplitz
from ccrewrite.families.cc.factors import factors
from ccrewrite.families.cc.padding import pad
from ccrewrite.families.cc.profile import Along, continuous, factor
from ccrewrite.ir.geometry import ConvArguments, ConvGeometry, Ints
from ccrewrite.ir.operators import CONVOLUTIONS, TRANSPOSED, full_precision

NOMINAL_SIZE = 64
"""Samples of an axis, for the choice of form, where its size is symbolic."""
PER_SAMPLE = 150
"""What writing a resampled value and reading it costs, in multiplications."""


@torch.fx.wrap
def cc_kernel(
    weight: Tensor, alongs: tuple[Along, ...], dilation: Ints, margin: Ints, axes: Sequence[int] | None = None
) -> Tensor:
    """Effective kernel, ``(*weight.shape[:2], *window)``, one banded matrix product per axis (of ``axes``; None: all).

    Coordinates in at least float32, autocast or not.
    """
    axes = range(len(alongs)) if axes is None else axes
    with full_precision(weight.device):
        kernel = weight.to(torch.promote_types(weight.dtype, torch.float32))
        found = factors(alongs, tuple(weight.shape[2:]), dilation, margin, axes)
        for axis in axes:
            kernel = (kernel.movedim(2 + axis, -1) @ found[axis].to(kernel.dtype)).movedim(-1, 2 + axis)
    return kernel.to(weight.dtype)


Form = Literal["plain", "window", "taps", "filter"]
"""How one axis is computed: as the convolution has it; by a kernel that is wider; brought to the places of its taps; or, where
all taps share ``phi``, filtered, and the plain convolution does the rest."""


class Banded(NamedTuple):
    """A product with a banded matrix along one axis: the arguments of ``toeplitz.at_taps`` and ``from_taps``."""

    factor: Tensor
    stride: int
    low: int
    outputs: int


class PlannedAxis(NamedTuple):
    """What is done along one axis: the banded product, if any, and what is left to do by the convolution. In samples."""

    banded: Banded | None
    low: int
    high: int
    stride: int
    dilation: int
    output_padding: int


@torch.fx.wrap
def cc_native(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alongs: tuple[Along, ...],
    margin: Ints,
    call: ConvArguments,
) -> Tensor:
    """The convolution of ``call`` (torch's arguments), in its cheapest form."""
    ndim, transposed = len(alongs), "output_padding" in call
    g = ConvGeometry.from_call("conv_transpose" if transposed else "conv", weight.shape, call)
    sizes = tuple(input.shape[-ndim:])
    outputs = g.output_size(sizes)
    if filtered.takes(input, weight, alongs, g) and filtered.pays(
        input, g, cost_of_others=cheapest_cost(alongs, g, margin, sizes)
    ):
        with full_precision(weight.device):
            found = factors(alongs, g.kernel_size, g.dilation, margin, range(ndim))
        values = [found[a].to(weight.dtype) for a in range(ndim)]
        out = filtered.filtered_conv(input if input.dim() > ndim + 1 else input[None], weight, bias, values, g, margin)
        return out if input.dim() > ndim + 1 else out[0]
    forms = _forms(alongs, g, margin, sizes)
    kernel = cc_kernel(weight, alongs, g.dilation, margin, [a for a in range(ndim) if forms[a] == "window"])
    with full_precision(weight.device):
        plan = [_planned(g, a, forms[a], alongs[a], margin[a], sizes[a], outputs[a], weight.device) for a in range(ndim)]
    return (_run_transposed if transposed else _run)(input, kernel, bias, plan, g.groups)


def _forms(alongs: Sequence[Along], geometry: ConvGeometry, margin: Ints, sizes: Sequence[int]) -> list[Form]:
    learned = continuous(alongs)
    shared = [a for a in learned if alongs[a].shared]
    chosen = cheapest(geometry, margin, sizes, learned, shared)
    forms: list[Form] = ["window" if a in learned else "plain" for a in range(geometry.ndim)]
    for a in chosen:
        forms[a] = "filter" if a in shared and _filtered(geometry, a) else "taps"
    return forms


def _filtered(geometry: ConvGeometry, axis: int) -> bool:
    """Whether filtering an axis gives fewer values than its taps' places have."""
    return geometry.stride[axis] < geometry.kernel_size[axis]


def _planned(
    g: ConvGeometry, axis: int, form: Form, along: Along, margin: int, size: int, outputs: int, device: torch.device
) -> PlannedAxis:
    low, high = g.pads[axis]
    stride, dilation, extra = g.stride[axis], g.dilation[axis], g.output_padding[axis]
    if form == "plain":
        return PlannedAxis(None, low, high, stride, dilation, extra)
    if form == "window":
        return PlannedAxis(None, low + margin, high + margin, stride, 1, extra)
    if form == "taps":
        values = factor(along, g.kernel_size[axis], dilation, margin, device)
        return PlannedAxis(Banded(values, stride, low + margin, outputs), 0, 0, g.kernel_size[axis], 1, 0)
    values = factor(along.one_tap(), 1, 1, margin, device)
    if not g.transposed:  # as far as the convolution pads: beyond its ends, the filtered input is not zero
        outputs = low + size + high
    return PlannedAxis(Banded(values, 1, low + margin, outputs), 0, 0, stride, dilation, 0)


def _run(input: Tensor, kernel: Tensor, bias: Tensor | None, plan: Sequence[PlannedAxis], groups: int) -> Tensor:
    ndim = len(plan)
    for a in reversed(range(ndim)):
        banded = plan[a].banded
        if banded is not None:
            banded = banded._replace(factor=banded.factor.to(input.dtype))
            input = toeplitz.at_taps(input, a - ndim, *banded)
    pads, padding = [(axis.low, axis.high) for axis in plan], [axis.low for axis in plan]
    if any(low != high for low, high in pads):
        input, padding = pad(input, pads), [0] * ndim
    stride, dilation = [axis.stride for axis in plan], [axis.dilation for axis in plan]
    return CONVOLUTIONS[ndim - 1](input, kernel, bias, stride, padding, dilation, groups)


def _run_transposed(input: Tensor, kernel: Tensor, bias: Tensor | None, plan: Sequence[PlannedAxis], groups: int) -> Tensor:
    ndim, later = len(plan), any(axis.banded is not None for axis in plan)
    stride, dilation = [axis.stride for axis in plan], [axis.dilation for axis in plan]
    padding, extra = [axis.low for axis in plan], [axis.output_padding for axis in plan]
    out = TRANSPOSED[ndim - 1](input, kernel, None if later else bias, stride, padding, extra, groups, dilation)
    for a, axis in enumerate(plan):
        if axis.banded is not None:
            banded = axis.banded._replace(factor=axis.banded.factor.to(out.dtype))
            out = toeplitz.from_taps(out, a - ndim, *banded)
    return out + bias.view(-1, *(1,) * ndim) if later and bias is not None else out


def cheapest_cost(alongs: Sequence[Along], geometry: ConvGeometry, margin: Ints, sizes: Ints) -> int:
    """What ``cheapest`` costs, for one picture of a known size."""
    learned = tuple(continuous(alongs))
    return _kept_cost(geometry, margin, sizes, learned, tuple(a for a in learned if alongs[a].shared))


@functools.lru_cache(maxsize=1024)
def _kept_cost(geometry: ConvGeometry, margin: Ints, sizes: Ints, learned: Ints, shared: Ints) -> int:
    return _cheapest(geometry, margin, sizes, learned, shared)[1]


def cheapest(
    geometry: ConvGeometry,
    margin: Ints,
    sizes: Sequence[int],
    learned: Sequence[int] | None = None,
    shared: Sequence[int] = (),
) -> tuple[int, ...]:
    """Of the axes ``learned`` (None: all) those to resample; along the others the convolution has the window. ``shared``: those
    that can be filtered.

    By multiplications, those of a convolution of volumes counted twice, for they take longer, plus ``PER_SAMPLE`` for every
    sample that resampling writes (calibrated by benchmarks/speed/cc_speed.py, on a CPU). An output padding that only the
    dilation allows leaves no choice: the window has no dilation.
    """
    return _cheapest(geometry, margin, sizes, learned, shared)[0]


def _cheapest(
    geometry: ConvGeometry, margin: Ints, sizes: Sequence[int], learned: Sequence[int] | None, shared: Sequence[int]
) -> tuple[tuple[int, ...], int]:
    g, axes = geometry, range(geometry.ndim)
    learned = axes if learned is None else learned
    sizes = [n if has_static_value(n) else NOMINAL_SIZE for n in sizes]
    outputs = [max(1, n) for n in g.output_size(sizes)]
    # A plain axis has its taps alone; an output padding that only the dilation allows is no matter there.
    window = [g.extent[a] + 2 * margin[a] if a in learned else g.kernel_size[a] for a in axes]
    forced = [a for a in learned if g.transposed and g.output_padding[a] >= g.stride[a]]
    # A transposed layer is the adjoint of a convolution from its outputs to its inputs.
    fine, coarse = (outputs, sizes) if g.transposed else (sizes, outputs)
    channels = g.out_channels if g.transposed else g.in_channels

    def cost(chosen: tuple[int, ...]) -> int:
        kernel = math.prod([g.kernel_size[a] if a in chosen else window[a] for a in axes])
        total = g.in_channels * g.out_channels // g.groups * kernel * math.prod(coarse) * (2 if g.ndim == 3 else 1)
        lattice = list(fine)
        for a in reversed(chosen):
            if not (a in shared and _filtered(g, a)):
                lattice[a] = coarse[a] * g.kernel_size[a]
            read = fine[a] if coarse[a] <= 2 * toeplitz.BLOCK else toeplitz.BLOCK * g.stride[a] + window[a]
            total += channels * math.prod(lattice) * (read + PER_SAMPLE)
        return total

    # Of equals the last axis, whose product needs no transposing.
    subsets = [c[::-1] for n in range(len(learned) + 1) for c in itertools.combinations(learned[::-1], n)]
    every = [c for c in subsets if all(a in c for a in forced)]
    costs = [cost(chosen) for chosen in every]
    return every[costs.index(min(costs))], min(costs)
