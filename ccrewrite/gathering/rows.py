"""Depthwise sums of gathered samples: each channel's input where its samples are, times their coefficients, added up.

    out[c, y] = sum_k coefficient[c, k] x[c, y + cell_k(c)]

Samples are gathered from windows that run over whole rows, so that the innermost loop is long and contiguous on small maps too.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ccrewrite.gathering.corners import Pads, gather, pad, row_strides, span, stored

TOGETHER = 4
"""Samples that are added before they join the sum: chains of additions that don't wait for each other."""


def sum_of_cells(input: Tensor, weight: Tensor, cells: Tensor, dilation: Sequence[int], pads: Pads) -> Tensor:
    """The depthwise convolution with ``weight`` ``(out, 1, *kernel_size)`` that visits each filter's ``cells`` ``(out, K)``
    alone: flat indices, or the number of a filter's cells for none. ``out`` may be a multiple of the input channels."""
    sizes, count = weight.shape[2:], weight[0].numel()
    window = [(k - 1) * d + 1 for k, d in zip(sizes, dilation, strict=True)]
    rows = Rows(input, window, pads)
    cells = F.pad(cells.long(), (0, -cells.shape[1] % TOGETHER), value=count)
    wide = torch.promote_types(weight.dtype, torch.float32)
    coefficients = F.pad(weight.flatten(1).to(wide), (0, 1)).gather(1, cells)
    places = [cells % count // within % k * d for within, k, d in zip(row_strides(sizes), sizes, dilation, strict=True)]
    index = functools.reduce(operator.add, (place * stride for place, stride in zip(places, rows.strides, strict=True)))
    together = (torch.unflatten(x, 1, (-1, TOGETHER)).unbind(2) for x in (coefficients, index))
    return rows.sum(*map(stored, together)).to(input.dtype).contiguous()


class _Row(NamedTuple):
    """One axis but the first, in elements: ``width`` of a row, of which the first ``margin`` are zeros; ``begin``, where its
    first window starts; ``outputs``, how many windows it has."""

    width: int
    margin: int
    begin: int
    outputs: int

    @classmethod
    def of(cls, samples: int, window: int, low: int, high: int) -> _Row:
        outputs = samples + low + high - window + 1
        # What follows a row is zero up to the next row's samples, so one margin between them serves both.
        width = max(samples + low, samples + high, outputs)
        return cls(width, width - samples, width - samples - low, outputs)


class Rows:
    """Data ``(N, C, *size)``, padded, as ``windows`` ``(N, C, starts, elements)`` that run through all rows."""

    def __init__(self, x: Tensor, window: Sequence[int], pads: Pads) -> None:
        x = pad(x, [(min(low, 0), min(high, 0)) for low, high in pads])  # a negative number crops
        (first, last), *others = [(max(low, 0), max(high, 0)) for low, high in pads]
        self.rows = [_Row.of(n, w, *pair) for n, w, pair in zip(x.shape[3:], window[1:], others, strict=True)]
        self.outputs = x.shape[2] + first + last - window[0] + 1
        # What windows read past the last row is of no use, but must be there: at most two rows more.
        padded = pad(x, [(first, last + 2), *((row.margin, 0) for row in self.rows)]).contiguous()
        self.strides = row_strides(padded.shape[2:])
        self.elements = self.outputs * self.strides[0]
        start = sum(row.begin * stride for row, stride in zip(self.rows, self.strides[1:], strict=True))
        shape = *x.shape[:2], span(window, self.strides), self.elements
        self.windows = padded.as_strided(shape, (padded.stride(0), padded.stride(1), 1, 1), start)

    def sum(self, coefficients: Sequence[Tensor], index: Sequence[Tensor]) -> Tensor:
        """The samples at each ``index`` ``(out, n)``, times its coefficient, over all of them: ``(N, out, *outputs)``."""
        out, channels = len(index[0]), self.windows.shape[1]
        channel = torch.arange(out, device=self.windows.device)[:, None] // (out // channels)
        total: Tensor | None = None
        for start, coefficient in zip(index, coefficients, strict=True):
            term = gather(self.windows, [None, channel, start]) * coefficient[..., None]
            total = term if total is None else total + term
        assert total is not None
        return self._cropped(total.sum(2))

    def spread(self, y: Tensor) -> Tensor:
        """``(N, C, *outputs)`` -> ``(N, C, 1, elements)``, zero where no output is."""
        widths = [(0, row.width - row.outputs) for row in self.rows]
        return stored([pad(y, [(0, 0), *widths]).flatten(2)])[0][:, :, None]

    def _cropped(self, out: Tensor) -> Tensor:
        """``(N, C, elements)`` -> ``(N, C, *outputs)``"""
        out = out.view(*out.shape[:2], self.outputs, *(row.width for row in self.rows))
        for axis, row in enumerate(self.rows, 3):
            out = out.narrow(axis, 0, row.outputs)
        return out
