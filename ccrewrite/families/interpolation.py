"""Interpolation kernels phi: how much of a tap at a continuous position lands on each sample of the grid.

Positions, distances and widths are in samples. On the grid the piecewise forms have kinks; there the derivative is the mean of
the two one-sided ones, so that a tap on a sample feels both neighbours.

The DCLS forms are normalised over the window's cells ``s = 0 .. size-1`` (arXiv 2306.00817, eq. 3 to 5):

    linear     max(0, 1 - |s - p|)                    (sums to 1 by itself)
    triangle   max(0, h - |s - p|) / sum               half-width h >= 1
    gaussian   exp(-(s - p)^2 / (2 sigma^2)) / sum     standard deviation sigma > 0
"""

from __future__ import annotations

import math
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from ccrewrite.ir.typed import Context, TensorFunction

Interpolation = Literal["linear", "gaussian", "triangle"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)
MIN_WIDTH = {"gaussian": 0.01, "triangle": 1.0}
"""Below them a gaussian is a nearest-neighbour step in any dtype, and a triangle no longer reaches the next sample."""
SCRATCH_WIDTH = {"gaussian": 0.5, "triangle": 1.0}
"""The widths that the reference's ``gauss`` and ``max`` start from (|SIG| + 0.27 with SIG = 0.23, and 1 + |SIG| with SIG =
0)."""


def sharp_width(interpolation: str, dtype: torch.dtype) -> float:
    """The width at which a tap on a sample leaves the neighbours alone: at most 2^-21 of it in float32 (and the half types,
    whose kernels are built in float32), 2^-44 in float64. A triangle of half-width 1 is the linear form.

    >>> round(sharp_width("gaussian", torch.float32), 3), sharp_width("triangle", torch.float32)
    (0.185, 1.0)
    """
    if interpolation != "gaussian":
        return 1.0
    bits = 44 if dtype == torch.float64 else 21
    return 1 / math.sqrt(2 * bits * math.log(2))


def interpolate(kind: str, position: Tensor, width: Tensor | None, size: int, ndim: int = 1) -> Tensor:
    """``phi(s - position)`` for the cells ``s = 0 .. size-1``, last: ``(..., size)`` for positions and widths ``(...)``.

    Positions must lie in ``[0, size-1]``. Gaussian tails are cut where a product of ``ndim`` of them and a small weight could
    become subnormal (arithmetic on subnormal numbers is many times slower).

    >>> interpolate("linear", torch.tensor(0.25), None, 3)
    tensor([0.7500, 0.2500, 0.0000])
    >>> interpolate("gaussian", torch.tensor(1.0), torch.tensor(0.5), 3)
    tensor([0.1065, 0.7870, 0.1065])
    """
    return _profile(kind, position, width, size, ndim)[0]


def _profile(kind: str, position: Tensor, width: Tensor | None, size: int, ndim: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """(phi, distance, sum before normalisation)."""
    distance = torch.arange(size, dtype=position.dtype, device=position.device) - position[..., None]
    if kind == "linear":
        return (1 - distance.abs()).clamp_min(0), distance, None
    assert width is not None
    if kind == "triangle":
        bump = (width[..., None] - distance.abs()).clamp_min(0)
    else:
        # Relative to the nearest sample, so that the sum is never 0 however sharp.
        nearest = (position - position.round()).detach()[..., None]
        exponent = (nearest + distance) * (nearest - distance) * (0.5 / width.square())[..., None]
        floor = math.log(torch.finfo(position.dtype).tiny) / (ndim + 1)
        bump = exponent.masked_fill(exponent < floor, -math.inf).exp()
    total = bump.sum(-1, keepdim=True)
    return bump / total, distance, total


def interpolate_backward(
    kind: str, position: Tensor, width: Tensor | None, gradient: Tensor, ndim: int = 1
) -> tuple[Tensor, Tensor | None]:
    """Gradients for ``position`` and ``width`` from the one for ``interpolate``'s result; itself differentiable.

    At kinks the mean of the one-sided derivatives. A tap can't leave the window, so at its borders the linear form's outer
    derivative is zero and the mean half the inner one.
    """
    if kind == "linear":
        # The two samples around a tap share it; on a sample, the mean over its two neighbours (at a border: over itself and
        # one).
        below, above = (position.ceil() - 1).clamp_min(0), (position.floor() + 1).clamp_max(gradient.shape[-1] - 1)
        shared = torch.where(position == position.floor(), 0.5, 1.0).to(gradient.dtype)
        rise = gradient.gather(-1, above[..., None].long()) - gradient.gather(-1, below[..., None].long())
        return rise[..., 0] * shared, None
    assert width is not None
    phi, distance, total = _profile(kind, position, width, gradient.shape[-1], ndim)
    assert total is not None
    # phi = n / sum(n), so d phi = (dn - phi sum(dn)) / sum(n).
    gradient = gradient - (gradient * phi).sum(-1, keepdim=True)
    if kind == "gaussian":
        towards = gradient * phi * distance
        inverse = width.reciprocal()
        return towards.sum(-1) * inverse.square(), (towards * distance).sum(-1) * inverse.pow(3)
    # The sign of 0 is 0: the mean of both sides, at the tip (distance 0) and at the feet (distance = width) alike.
    covered = gradient * ((width[..., None] - distance.abs()).sign() + 1) * (0.5 / total)
    return (covered * distance.sign()).sum(-1), covered.sum(-1)


def hat(distance: Tensor) -> Tensor:
    """Linear interpolation, ``max(0, 1 - |distance|)``; same shape and dtype as ``distance``, in samples.

    The derivative at -1, 0, 1 is 1/2, 0, -1/2 (the central one; ``relu`` would give zeros and freeze the layer).

    >>> hat(torch.tensor([-1.0, -0.25, 0.0, 2.0]))
    tensor([0.0000, 0.7500, 1.0000, 0.0000])
    """
    return torch.maximum(1 - distance.abs(), distance.new_zeros(()))


def keys_cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution (a = -1/2), the C1 cardinal interpolant of third order (Keys 1981, eq. 15).

    >>> keys_cubic(torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0]))
    tensor([ 1.0000,  0.5625,  0.0000, -0.0625,  0.0000])
    """
    x = distance.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


class _Kept(Context, Protocol):
    bounds: tuple[float, float]


class KeepInside(TensorFunction):
    """``clamp(value, low, high)`` whose gradient stops only what would push further out, so a tap can always come back."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, low: float, high: float) -> Tensor:
        return value.clamp(low, high)

    @staticmethod
    def setup_context(ctx: _Kept, inputs: tuple[Tensor, float, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.bounds = inputs[1:]

    @staticmethod
    def backward(ctx: _Kept, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (value,) = ctx.saved_tensors
        low, high = ctx.bounds
        # Descent moves against the gradient: of what is too low a positive one pushes further down.
        outward = (value - value.clamp(low, high)) * gradient < 0
        return gradient.masked_fill(outward, 0), None, None
