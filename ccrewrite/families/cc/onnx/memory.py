"""What a CC layer takes in memory when a file runs it, estimated: ``memory_of``."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ccrewrite.families.cc.onnx.axis import Axis
from ccrewrite.families.cc.onnx.bands import BLOCK, block_of
from ccrewrite.ir.geometry import Ints

CELL = 24
"""Bytes for each cell of the matrices while they are filled: int64 indices before and after they are clipped, and floats."""
FLOAT = 4
"""Bytes of a number in the networks: float32, whatever the type of the data."""


def memory_of(axes: Sequence[Axis], data: Ints, native: Ints, asked: Ints, hidden: Sequence[int | None], itemsize: int) -> int:
    """Bytes at the most, of resampling ``axes`` one after the other.

    ``data``: the shape of what is resampled first, (batch, channels, *sizes); ``native`` and ``asked``: output sizes;
    ``hidden``: widths of the networks, None where nothing was learned; ``itemsize``: of the data, in bytes.
    """
    shape, most = list(data), 0
    for a, (axis, width) in enumerate(zip(axes, hidden, strict=True)):
        before, rest = math.prod(shape), math.prod(shape) // max(1, shape[a + 2])
        rows, columns, blocks, places = _matrices(axis, native[a], asked[a], interleaved=axis.transposed and width is not None)
        cells, made = blocks * rows * columns, rest * blocks * rows
        networks = FLOAT * 2 * places * (width or 1)  # what a layer of them reads, and what it gives
        moved = itemsize * (2 * before + rest * blocks * columns + 2 * made)  # twice: the axis in its place, and the last one
        most = max(most, networks + CELL * cells + moved)  # runtimes keep what was freed, and it rarely fits again
        shape[a + 2] = asked[a] if axis.transposed else asked[a] * axis.taps
    return most


def _matrices(axis: Axis, native: int, asked: int, *, interleaved: bool) -> tuple[int, int, int, int]:
    """Of ``bands.applied``: rows and columns of each matrix, how many there are, and the places at which the kernel is asked
    for its weights."""
    stretch = max(native, asked)
    width = 2 * (axis.profile.twice_support * stretch // (2 * asked) + 1) + 2
    if interleaved:
        samples = (native * (BLOCK - 1) // asked + axis.span + width) // axis.stride + 2
        apart = axis.taps if axis.profile.extent else 1  # else all taps look at the same place
        return BLOCK, samples * axis.taps, -(-asked // BLOCK), asked * apart * width
    outputs, together = block_of(axis)
    if axis.transposed:
        return outputs, native * (outputs - 1) // asked + width + 1, -(-asked // outputs), asked * width
    apart = native if axis.rescaled else stretch
    read = (axis.stride * native * (outputs - 1) + axis.dilation * apart * (together - 1)) // asked + width + 1
    return outputs * together, read, -(-asked // outputs) * (axis.taps // together), asked * axis.taps * width
