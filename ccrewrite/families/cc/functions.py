"""What a CC layer computes, as functions: its effective kernel, and its convolution at another size.

Leaves for ``torch.fx.symbolic_trace``; to be called by their module's name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import has_static_value, statically_known_true

from ccrewrite.errors import InputError
from ccrewrite.families.cc.profile import Along, factor
from ccrewrite.families.cc.resample import Line, extend, pad, resample
from ccrewrite.families.resizable import Scales, largest
from ccrewrite.ir.geometry import ConvGeometry, Ints
from ccrewrite.ir.operators import CONVOLUTIONS, TRANSPOSED, full_precision


@torch.fx.wrap
def cc_kernel(
    weight: Tensor, alongs: tuple[Along, ...], dilation: Ints, margin: Ints, axes: Sequence[int] | None = None
) -> Tensor:
    """Effective kernel, ``(*weight.shape[:2], *window)``, one banded matrix product per axis (of ``axes``; None: all).

    Coordinates in at least float32, autocast or not. A leaf for ``torch.fx.symbolic_trace``.
    """
    with full_precision(weight.device):
        kernel = weight.to(torch.promote_types(weight.dtype, torch.float32))
        for axis in range(len(alongs)) if axes is None else axes:
            values = factor(alongs[axis], weight.shape[2 + axis], dilation[axis], margin[axis], weight.device)
            kernel = (kernel.movedim(2 + axis, -1) @ values.to(kernel.dtype)).movedim(-1, 2 + axis)
    return kernel.to(weight.dtype)


@torch.fx.wrap
def cc_resized(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alongs: tuple[Along, ...],
    margin: Ints,
    call: dict[str, Any],
    asked: Ints | None,
    scale: Scales | None,
    alignment: str,
    rescaled: bool,
    still: bool,
) -> Tensor:
    """The convolution of ``call`` (torch's arguments, and ``padding_mode``) at another size. A leaf for
    ``torch.fx.symbolic_trace``, which has no shapes.

    Axes that keep their size keep their stride; ``still``: on them the kernel is the weight itself.
    """
    ndim, transposed = len(alongs), "output_padding" in call
    taps = tuple(weight.shape[2:])
    geometry = ConvGeometry.from_call("conv_transpose" if transposed else "conv", weight.shape, call)
    sizes = tuple(input.shape[-ndim:])
    if any(statically_known_true(n < 1) for n in geometry.output_size(sizes)):
        raise InputError(
            f"input of {sizes} samples is too small for {geometry.describe()}: its native output size is "
            f"{geometry.output_size(sizes)}"
        )
    if still:
        alongs = tuple(along._replace(layers=()) for along in alongs)
    lines: list[Line] = []
    for a in range(ndim):
        ratio = scale[a] if isinstance(scale, tuple) else scale
        size = None if asked is None else asked[a]
        grid = {"centred": alignment == "centred", "rescaled": rescaled}
        lines.append(Line.of(geometry, a, sizes[a], size, ratio, alongs[a], **grid))
    changed = [a for a, line in enumerate(lines) if _changes(line, alignment, still, geometry.output_padding[a])]
    kept = [a for a in range(ndim) if a not in changed]
    kernel = weight if still or not kept else cc_kernel(weight, alongs, geometry.dilation, margin, kept)
    if still:
        margin = (0,) * ndim
    # Per axis, what is left to do by the convolution itself: as on the axes that keep their size.
    stride, dilation = list(geometry.stride), [d if still else 1 for d in geometry.dilation]
    pads = [(low + m, high + m) for (low, high), m in zip(geometry.pads, margin, strict=True)]
    if transposed:
        extra = list(geometry.output_padding)
        for a in changed:
            pads[a], extra[a] = (0, 0), 0
            if still:
                lines[a] = lines[a].output()
            else:
                stride[a] = taps[a]
        function = TRANSPOSED[ndim - 1]
        out = function(input, kernel, None, stride, [low for low, _ in pads], extra, geometry.groups, dilation)
        for a in changed:
            out = resample(out, a - ndim, lines[a], alongs[a])
        return out if bias is None else out + bias.view(-1, *(1,) * ndim)
    mode = call["padding_mode"]
    forms = _forms(lines, changed, geometry, still)
    for a in changed:
        line = lines[a]
        if mode != "zeros":
            first, last = line.ends(0, line.asked)
            low, high = largest(0, -first), largest(0, last + 1 - line.size)
            input = extend(input, a - ndim, mode, low, high)
            line = line.extended(low, high)
        if forms[a] == "dense":
            lines[a] = line.dense()
            before = lines[a].low - line.low  # window 0 starts at sample -low of the lattice
            pads[a] = (before, lines[a].size + geometry.extent[a] - 1 - line.size - before)
            stride[a] = 1
            continue
        pads[a] = (0, 0)
        if forms[a] == "grid":
            line = line.grid(stride[a], geometry.dilation[a])
        else:
            stride[a], dilation[a] = taps[a], 1
        input = resample(input, a - ndim, line, alongs[a])
    if mode != "zeros":
        input = pad(input, [(0, 0) if a in changed else pair for a, pair in enumerate(geometry.pads)], mode)
        pads = [pads[a] if a in changed else (margin[a], margin[a]) for a in range(ndim)]
    dense = [a for a in changed if forms[a] == "dense"]
    out = CONVOLUTIONS[ndim - 1](
        pad(input, pads), kernel, bias if not dense else None, stride, [0] * ndim, dilation, geometry.groups
    )
    for a in dense:
        out = resample(out, a - ndim, lines[a], alongs[a])
    return out + bias.view(-1, *(1,) * ndim) if dense and bias is not None else out


def _forms(lines: list[Line], changed: list[int], geometry: ConvGeometry, still: bool) -> dict[int, str]:
    """How each axis that changes is computed: "taps" (any kernel), "grid" or "dense" (``Line``; the bare interpolant)."""
    forms = dict.fromkeys(changed, "taps")
    if not still:
        return forms
    candidates: list[int] = []
    for a in changed:
        line, s, d = lines[a], geometry.stride[a], geometry.dilation[a]
        if statically_known_true(line.node == 2 * d * line.native):
            if statically_known_true(line.grid(s, d).rows <= line.taps * line.rows):
                forms[a] = "grid"
        elif (
            has_static_value(line.asked)
            and has_static_value(line.size)
            and statically_known_true(line.node == 2 * d * line.asked)
        ):
            candidates.append(a)
    if candidates:
        # Multiplications, those of a resampling counted thrice: so much longer they take (benchmarks/cc_speed.py).
        inner, outer = geometry.in_channels, geometry.out_channels
        before = after = 0
        wide, dense = [line.size for line in lines], [line.asked for line in lines]
        for a in candidates:
            windows = lines[a].dense().size
            wide[a] = lines[a].asked * lines[a].taps
            before += math.prod(wide) * lines[a].size
            dense[a] = windows
        narrow = list(dense)
        for a in candidates:
            narrow[a] = lines[a].asked
            after += math.prod(narrow) * dense[a]
        products = outer * inner // geometry.groups * math.prod(geometry.kernel_size)
        by_taps = 3 * inner * before + products * math.prod(line.asked for line in lines)
        by_dense = 3 * outer * after + products * math.prod(dense)
        forms.update(dict.fromkeys(candidates, "dense" if by_dense < by_taps else "taps"))
    return forms


def _changes(line: Line, alignment: str, still: bool, output_padding: int) -> bool:
    if not statically_known_true(line.asked == line.native):
        return True
    if alignment == "centred" and not statically_known_true(line.centre == 0):
        return True
    # An output padding that only the dilation allows: the window has none.
    return line.spread is not None and not still and output_padding >= line.spread[0]
