"""Continuing the spatial axes of a tensor, or cropping them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from ccrewrite.families.resizable import largest


def pad(x: Tensor, pads: Sequence[tuple[int, int]], mode: str = "zeros") -> Tensor:
    """``F.pad`` of the spatial axes by (low, high) pairs; negative ones crop."""
    if all(statically_known_true(n == 0) for pair in pads for n in pair):
        return x
    return F.pad(x, [n for pair in reversed(pads) for n in pair], mode="constant" if mode == "zeros" else mode)


def extend(x: Tensor, axis: int, mode: str, low: int, high: int) -> Tensor:
    """``x`` continued by ``low`` and ``high`` samples along ``axis`` (counted from the end) as torch's padding ``mode`` says,
    by more than its length where need be."""
    size = x.shape[axis]
    source = torch.arange(-low, size + high, device=x.device)
    if mode == "circular":
        source = source % size
    elif mode == "replicate":
        source = source.clamp(0, size - 1)
    else:
        source = (size - 1) - ((source % largest(1, 2 * size - 2)) - (size - 1)).abs()
    return x.index_select(axis, source)
