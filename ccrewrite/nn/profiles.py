"""The continuous kernel along one axis: what tap ``t`` contributes at a distance ``z`` from its place, in samples.

    phi_t(z) = basis(z - shift) + window(z - shift) * residual_t(z - shift)

``basis`` is a cardinal interpolant (1 at 0, 0 at the other integers). The residual is a small sinusoidal network (SIREN, arXiv
2006.09661) of the distance; ``window`` is ``cos^2(pi z / 4)`` within two samples.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ccrewrite.nn.interpolation import hat, keys_cubic
from ccrewrite.nn.placement import KeepInside

BASES = {"linear": hat, "cubic": keys_cubic}
SUPPORT = 2
"""Half-width of ``phi``, in samples: that of the cubic basis and of the residual's window."""
MAX_SHIFT = 0.5


class Along(NamedTuple):
    """The continuous kernel of one axis, as tensors."""

    basis: str
    axis: int
    shift: Tensor
    """Of all axes, (ndim,), in samples."""
    layers: tuple[Tensor, ...]
    """Weights and biases of the residual's inner and last layer; empty: neither residual nor shift."""

    @property
    def dtype(self) -> torch.dtype:
        """Coordinates and values: at least float32."""
        return torch.promote_types(self.shift.dtype, torch.float32)

    @property
    def twice_support(self) -> int:
        """Twice the distance from a tap's place beyond which it contributes nothing, whatever its shift."""
        return round(2 * (SUPPORT + MAX_SHIFT))


def profile(distance: Tensor, taps: Tensor, along: Along) -> tuple[Tensor, Tensor]:
    """(``phi_t``, the interpolant alone) at distances ``(..., n)``, for the taps whose indices are ``(...)``, broadcast."""
    if not along.layers:
        bump = BASES[along.basis](distance)
        return bump, bump
    z = distance - KeepInside.apply(along.shift[along.axis].to(distance.dtype), -MAX_SHIFT, MAX_SHIFT)
    bump = BASES[along.basis](z)
    inner, inner_bias, last, last_bias = (p.to(distance.dtype) for p in along.layers)
    hidden = torch.sin(z[..., None] * inner[:, 0] + inner_bias)
    residual = (hidden * last[taps][..., None, :]).sum(-1) + last_bias[taps][..., None]
    taper = torch.cos(z.clamp(-SUPPORT, SUPPORT) * (math.pi / (2 * SUPPORT))) ** 2
    return bump + taper * residual, bump


def gain(taps: Tensor, along: Along) -> Tensor:
    """What each tap adds up to natively, on the integer lattice: of ``taps``' shape."""
    half = -(-along.twice_support // 2)
    values, _ = profile(torch.arange(-half, half + 1, dtype=along.dtype, device=taps.device), taps, along)
    return values.sum(-1)


def full_precision(device: torch.device) -> torch.autocast:
    """Kernels and matrices are built without autocast (which knows no meta device)."""
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)
