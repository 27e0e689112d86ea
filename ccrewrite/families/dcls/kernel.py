"""The effective kernel of a DCLS layer: its weights, placed on a dense window.

K[s] = sum_t weight_t prod_axis phi(s_axis - p_t,axis)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from ccrewrite.families.dcls.grid import Grid, alike, positions_alike, widths_alike
from ccrewrite.families.dcls.place import placed
from ccrewrite.families.regions import REGIONS, Region


@torch.fx.wrap
def dcls_kernel(weight: Tensor, offset: Tensor, widening: Tensor | None, grid: Grid) -> Tensor:
    """Effective kernel, ``(out, in/groups, *window)``, from ``weight`` ``(out, in/groups, *taps)``.

    ``offset`` and ``widening`` are ``(learned axes, A, B, *taps)`` with ``A`` a divisor of ``out`` and ``B`` of ``in/groups``.
    Built in at least float32, autocast or not; the result has the weight's dtype. A leaf for ``torch.fx.symbolic_trace``.
    """
    dtype = torch.float64 if torch.float64 in (weight.dtype, offset.dtype) else torch.float32
    device_type = "cpu" if weight.is_meta else weight.device.type  # autocast knows no meta device
    with torch.autocast(device_type, enabled=False):
        together = alike([axis for axis in grid.axes if axis.size > 1])  # of one cell nothing is to be interpolated
        positions = positions_alike(together, weight.shape[2:], offset.to(dtype))
        widths = widths_alike(together, grid, None if widening is None else widening.to(dtype))
        kinds = tuple(grid.interpolation if k.moves else "linear" for k in together)
        sizes = tuple(k.size for k in together)
        out, inner = weight.shape[:2]
        rows, columns, taps = positions[0].shape[1:]
        grouped = weight.to(dtype).reshape(rows, out // rows, columns, inner // columns, taps).transpose(1, 2).flatten(2, 3)
        kernel = placed(grouped, kinds, sizes, positions, widths)
        kernel = kernel.view(rows, columns, out // rows, inner // columns, *grid.window).transpose(1, 2)
    return kernel.reshape(out, inner, *grid.window).to(weight.dtype)


def _positions(tensors: Sequence[Tensor], constants: str, numbers: Sequence[int]) -> Tensor:
    """The positions on all axes: ``(axes, A, B, prod(taps))``."""
    (offset,) = tensors
    return torch.stack(Grid.from_text(constants).positions(offset.shape[3:], offset))


def _positions_like(tensors: Sequence[Tensor], constants: str, numbers: Sequence[int]) -> Tensor:
    (offset,) = tensors
    return offset.new_empty(len(Grid.from_text(constants).axes), *offset.shape[1:3], math.prod(offset.shape[3:]))


def _kernel(tensors: Sequence[Tensor], constants: str, numbers: Sequence[int]) -> Tensor:
    weight, offset, widening = (*tensors, None)[:3]
    return dcls_kernel(cast(Tensor, weight), cast(Tensor, offset), widening, Grid.from_text(constants))


def _kernel_like(tensors: Sequence[Tensor], constants: str, numbers: Sequence[int]) -> Tensor:
    weight = tensors[0]
    return weight.new_empty(*weight.shape[:2], *Grid.from_text(constants).window)


REGIONS["dcls_positions"] = Region(_positions, _positions_like)
REGIONS["dcls_kernel"] = Region(_kernel, _kernel_like)
