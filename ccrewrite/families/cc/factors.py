"""What every tap contributes to the cells of the window, for all axes of a layer at once.

``profile.factor`` is some thirty small operators for each axis, and as many in its backward: in eager mode they take longer
than many a convolution. Axes that are alike are computed together here, with a backward of their own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ccrewrite.families import regions
from ccrewrite.families.cc.profile import MAX_SHIFT, SUPPORT, Along, factor
from ccrewrite.families.look import readable
from ccrewrite.ir.geometry import Ints
from ccrewrite.ir.typed import Context, TensorsFunction, from_numpy

Array = npt.NDArray[np.floating]


def factors(alongs: Sequence[Along], taps: Ints, dilation: Ints, margin: Ints, axes: Sequence[int]) -> dict[int, Tensor]:
    """``profile.factor`` of each of ``axes``, by axis: ``(taps, cells)``."""
    found: dict[int, Tensor] = {}
    alike = [a for a in axes if _takes(alongs[a])]
    shapes = {a: (taps[a], dilation[a], margin[a], alongs[a].layers[0].shape) for a in alike}
    for shape, group in itertools.groupby(sorted(alike, key=lambda a: shapes[a][:3]), key=lambda a: shapes[a]):
        together = list(group)
        layers = [tensor for a in together for tensor in alongs[a].layers]
        shift = alongs[together[0]].shift
        index = tuple(alongs[a].shift_index for a in together)
        found |= zip(together, _Factors.apply(index, *shape[1:3], shift, *layers), strict=True)
    for a in (a for a in axes if a not in found):
        device = next(tensor.device for tensor in (*alongs[a].layers, alongs[a].shift) if tensor is not None)
        found[a] = factor(alongs[a], taps[a], dilation[a], margin[a], device)
    return found


def _takes(along: Along) -> bool:
    if regions.called(along.opaque):
        return False
    small = along.basis == "cubic" and len(along.layers) == 4 and not along.extent and not along.within
    return small and along.shift is not None and along.shift.device.type == "cpu" and readable([along.shift])


class _Kept(Context, Protocol):
    near: _Near
    index: Ints
    spacing: int
    margin: int


class _Factors(TensorsFunction):
    """Of axes with as many taps, as far apart, in windows with the same margin."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: _Kept, index: Ints, spacing: int, margin: int, shift: Tensor, *layers: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(shift, *layers)
        ctx.near = near = _Near(index, shift, layers)
        ctx.index, ctx.spacing, ctx.margin = index, spacing, margin
        return from_numpy(_placed(near.values(), spacing, margin)).unbind()

    @staticmethod
    def backward(ctx: _Kept, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        shift, *layers = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative will be wanted: by operators that have one
            found = _differentiable(ctx, gradients, shift, layers)
        else:
            arrived = _taken(np.stack([gradient.numpy() for gradient in gradients]), ctx.near.taps, ctx.spacing, ctx.margin)
            each = zip(ctx.near.backward(arrived), (shift, *layers), strict=True)
            found = [from_numpy(gradient).to(like.dtype) for gradient, like in each]
        return None, None, None, *found


class _Near:
    """The profiles ``(axes, taps, near)`` at the samples nearest to every tap, as ``profile`` has them. In numpy, for which so
    few numbers are a matter of microseconds."""

    def __init__(self, index: Ints, shift: Tensor, layers: Sequence[Tensor]) -> None:
        dtype = torch.promote_types(shift.dtype, torch.float32)
        self.shift, *arrays = (tensor.detach().to(dtype).numpy() for tensor in (shift, *layers))
        self.index = list(index)
        inner, self.offset, self.last, self.bias = (np.stack(arrays[i::4]) for i in range(4))
        self.taps, self.frequency = self.last.shape[1], inner[:, :, 0]
        near = np.arange(-SUPPORT, SUPPORT + 1, dtype=self.shift.dtype)
        self.place = near - self.shift[self.index].clip(-MAX_SHIFT, MAX_SHIFT)[:, None]
        phase = self.place[:, :, None] * self.frequency[:, None] + self.offset[:, None]
        self.sine, self.cosine = np.sin(phase), np.cos(phase)
        self.learned = self.last @ self.sine.swapaxes(1, 2) + self.bias[:, :, None]
        self.angle = self.place.clip(-SUPPORT, SUPPORT) * (math.pi / (2 * SUPPORT))
        self.window = np.cos(self.angle) ** 2

    def values(self) -> Array:
        x = np.abs(self.place)
        cubic = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))
        return cubic[:, None] + self.window[:, None] * self.learned

    def backward(self, gradient: Array) -> list[Array]:
        """For shift and layers, from the one for the values."""
        windowed = gradient * self.window[:, None]
        of_phase = (windowed.swapaxes(1, 2) @ self.last) * self.cosine
        x = np.abs(self.place)
        cubic = np.where(x < 1, (4.5 * x - 5) * x, np.where(x < 2, (-1.5 * x + 5) * x - 4, 0)) * np.sign(self.place)
        window = -math.pi / (2 * SUPPORT) * np.sin(2 * self.angle)
        of_place = (of_phase * self.frequency[:, None]).sum(2)
        of_place += gradient.sum(1) * cubic + (gradient * self.learned).sum(1) * window
        d_shift = np.zeros_like(self.shift)
        d_shift[self.index] = -of_place.sum(1)
        # What would push it further out is left away, as in `KeepInside`.
        d_shift[(self.shift - self.shift.clip(-MAX_SHIFT, MAX_SHIFT)) * d_shift < 0] = 0
        inner = (of_phase * self.place[:, :, None]).sum(1)[:, :, None]
        every = inner, of_phase.sum(1), windowed @ self.sine, windowed.sum(2)
        return [d_shift, *(of_axis for axis in zip(*every, strict=True) for of_axis in axis)]


def _placed(values: Array, spacing: int, margin: int) -> Array:
    """``(axes, taps, near)`` in the window: ``(axes, taps, cells)``."""
    axes, taps, near = values.shape
    full = np.zeros((axes, taps, spacing * (taps - 1) + near), values.dtype)
    for tap in range(taps):
        full[:, tap, spacing * tap : spacing * tap + near] = values[:, tap]
    beyond = SUPPORT - margin
    return np.ascontiguousarray(full[:, :, beyond : full.shape[2] - beyond])


def _taken(gradient: Array, taps: int, spacing: int, margin: int) -> Array:
    """The adjoint."""
    beyond, near = SUPPORT - margin, 2 * SUPPORT + 1
    full = np.pad(gradient, ((0, 0), (0, 0), (beyond, beyond))) if beyond else gradient
    return np.stack([full[:, tap, spacing * tap : spacing * tap + near] for tap in range(taps)], 1)


def _differentiable(ctx: _Kept, gradients: Sequence[Tensor], shift: Tensor, layers: Sequence[Tensor]) -> list[Tensor | None]:
    found: list[Tensor] = []
    for i, index in enumerate(ctx.index):
        along = Along("cubic", index, shift, tuple(layers[4 * i : 4 * i + 4]), spacing=ctx.spacing)
        found.append(factor(along, ctx.near.taps, ctx.spacing, ctx.margin, shift.device))
    tensors, wants = [shift, *layers], ctx.needs_input_grad[3:]
    wanted = [tensor for tensor, want in zip(tensors, wants, strict=True) if want]
    given = iter(torch.autograd.grad(found, wanted, list(gradients), create_graph=True, allow_unused=True))
    return [next(given) if want else None for want in wants]
