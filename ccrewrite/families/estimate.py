"""A static guess at how long a convolution takes, for a choice between ways to evaluate it.

The constants are of one machine (``benchmarks/speed/lowering_cpu.py``): ratios of such guesses mean something, seconds hardly.
"""

from __future__ import annotations

import math

from ccrewrite.ir.calls import CallShapes
from ccrewrite.ir.geometry import Ints

MULTIPLY = 0.012e-9, 0.036e-9
"""Seconds of one multiplication in a matrix product or dense convolution: forward; forward and backward."""
DEPTHWISE = 0.04e-9, 1.2e-9
"""The same in a depthwise convolution, whose backward runs far from the machine's peak (channels last for the forward)."""
CONSTRUCTED = 0.3e-9, 1.0e-9
"""One cell of an effective kernel."""


def positions(call: CallShapes, transposed: bool) -> int:
    """At how many places, all pictures of the batch together, a convolution's taps are laid out: the output's samples, of a
    transposed one the input's."""
    ndim = len(call.weight) - 2
    batch = call.input[0] if len(call.input) == ndim + 2 else 1
    stride = (1,) * ndim if transposed else call.arguments["stride"]
    return batch * math.prod(max(1, n // s) for n, s in zip(call.input[-ndim:], stride, strict=True))


def dense_seconds(call: CallShapes, window: Ints, transposed: bool, training: bool) -> float:
    """Building an effective kernel of size ``window``, and convolving with it."""
    first, second = call.weight[:2]
    cells = first * second * math.prod(window)
    each = (DEPTHWISE if second == 1 else MULTIPLY)[training]
    return cells * (positions(call, transposed) * each + CONSTRUCTED[training])


def plain_seconds(call: CallShapes, taps: Ints, transposed: bool, training: bool) -> float:
    """The convolution of so many ``taps`` an axis alone: no kernel is built."""
    first, second = call.weight[:2]
    each = (DEPTHWISE if second == 1 else MULTIPLY)[training]
    return first * second * math.prod(taps) * positions(call, transposed) * each
