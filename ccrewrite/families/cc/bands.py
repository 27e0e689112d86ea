"""Resampling one axis by a banded matrix (``resample``); where outputs look is said by ``resampling.py``.

Whatever the fraction, each row's sum is that of the native kernel: what is missing is added in the shape of the interpolant
(never divided by a sum that can be zero). Places are integers; only a fraction within one sample becomes a float.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import has_static_value

from ccrewrite.families.cc.profile import Along, gain, profile
from ccrewrite.families.cc.resampling import Resampling
from ccrewrite.families.look import readable
from ccrewrite.ir.operators import full_precision

LONG = 512
"""An axis of more samples is resampled block by block: a matrix of all its outputs would be mostly zeros."""


class Block(NamedTuple):
    """The outputs ``start .. stop-1``, which read the samples ``first .. last-1``."""

    start: int
    stop: int
    first: int
    last: int


def resample(x: Tensor, axis: int, resampling: Resampling, along: Along) -> Tensor:
    """``x`` with ``axis`` (counted from the end) resampled: ``size -> outputs * taps`` samples, and where ``resampling`` is
    interleaved ``size * taps -> outputs``."""
    blocks = _blocks(resampling)
    if len(blocks) == 1:
        return _apply(_matrix(resampling, along, blocks[0], x), x, axis)
    width = 1 if resampling.interleaved is None else resampling.taps
    parts = (x.narrow(axis, b.first * width, (b.last - b.first) * width) for b in blocks)
    return torch.cat(
        [_apply(_matrix(resampling, along, b, x), part, axis) for b, part in zip(blocks, parts, strict=True)], axis
    )


def product(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """``matrix`` applied to ``axis`` of ``x``, counted from the end."""
    if axis == -1:
        return x @ matrix.mT
    return torch.unflatten(matrix @ x.flatten(axis + 1), -1, x.shape[axis + 1 :])


def _apply(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    if all(has_static_value(n) for n in x.shape):
        return product(matrix, x, axis)
    # One product per row of the batch: joining rows, as `@` does, compares symbolic sizes.
    x = x.movedim(axis, -1)
    return (x @ matrix.mT.expand(*x.shape[:-2], -1, -1)).movedim(-1, axis)


def _blocks(resampling: Resampling) -> list[Block]:
    r = resampling
    whole = Block(0, r.outputs, 0, r.size)
    if not (has_static_value(r.outputs) and has_static_value(r.size) and r.size > LONG):
        return [whole]
    count = -(-r.size // (LONG // 2))
    outputs = -(-r.outputs // count)
    blocks: list[Block] = []
    for start in range(0, r.outputs, outputs):
        stop = min(start + outputs, r.outputs)
        low, high = (end + r.low for end in r.ends(start, stop))
        if r.interleaved is not None:
            stride, dilation = r.interleaved
            low, high = -(-(low - dilation * (r.taps - 1)) // stride), high // stride
        first = min(max(low, 0), r.size - 1)
        blocks.append(Block(start, stop, first, min(max(high + 1, first + 1), r.size)))
    return blocks if len(blocks) > 1 else [whole]


def _matrix(resampling: Resampling, along: Along, block: Block, x: Tensor) -> Tensor:
    """``R`` or ``A`` of ``resampling.py``: the rows of the block's outputs, the columns of the samples that they read."""
    if not along.layers and readable([x]):
        return _fixed_matrix(resampling, along.basis, along.dtype, block, x.dtype, x.device)
    with full_precision(x.device):
        return _built_matrix(resampling, along, block, x.device).to(x.dtype)


@functools.lru_cache(maxsize=64)
def _fixed_matrix(
    resampling: Resampling, basis: str, exact: torch.dtype, block: Block, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The matrix of the bare interpolant, which depends on nothing that is learned: kept from call to call."""
    with torch.inference_mode(False), torch.no_grad(), full_precision(device):
        along = Along(basis, 0, torch.zeros(1, dtype=exact, device=device), ())
        return _built_matrix(resampling, along, block, device).to(dtype)


def _built_matrix(resampling: Resampling, along: Along, block: Block, device: torch.device) -> Tensor:
    taps, lattice, values = _band(resampling, along, block, device)
    samples, size = lattice + resampling.low, block.last - block.first
    if resampling.interleaved is not None:  # of the lattice's samples, tap t has every one that it is put on
        stride, dilation = resampling.interleaved
        ahead = samples - dilation * taps
        samples = torch.div(ahead, stride, rounding_mode="floor")
        values = values * (samples * stride == ahead)
    values = values * ((samples >= block.first) & (samples < block.last))
    columns = (samples - block.first).clamp(0, size - 1)
    if resampling.interleaved is not None:
        columns, values, size = (columns * resampling.taps + taps).flatten(1), values.flatten(1), size * resampling.taps
    return values.new_zeros(values.shape[0], size).scatter_add(1, columns, values)


def _band(resampling: Resampling, along: Along, block: Block, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """What each output reads: (taps, lattice samples, their weights), of shapes ``(r, 1)``, ``(r, n)`` and ``(r, n)`` for ``r =
    outputs * taps``, interleaved ``(1, taps, 1)``, ``(r, 1, n)`` and ``(r, taps, n)`` for ``r = outputs``."""
    r = resampling
    if r.interleaved is not None:
        taps = torch.arange(r.taps, device=device)[None]
        numerators = r.per_output * torch.arange(block.start, block.stop, device=device)[:, None] + r.first
    else:
        rows = torch.arange(block.start * r.taps, block.stop * r.taps, device=device)
        outputs, taps = torch.div(rows, r.taps, rounding_mode="floor"), rows % r.taps
        numerators = r.per_output * outputs + r.per_tap * taps + r.first
    below = torch.div(numerators, 2 * r.asked, rounding_mode="floor")
    fraction = (numerators - below * 2 * r.asked).to(along.dtype) / (2 * r.asked)
    near = torch.arange(-r.reach, r.reach + 2, device=device)
    distance = (near.to(along.dtype) - fraction[..., None]) * r.asked / r.stretch
    # A transposed layer's outputs are at -distance from their places on the lattice.
    values, bump = profile(distance if r.interleaved is None else -distance, taps, along)
    bump = bump / bump.sum(-1, keepdim=True)
    if along.layers:
        values = values * r.asked / r.stretch
        bump = values + (gain(taps, along)[..., None] - values.sum(-1, keepdim=True)) * bump
    return taps[..., None], below[..., None] + near, bump
