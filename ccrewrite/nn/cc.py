"""CC layers: strided and transposed convolutions whose taps are the nodes of a continuous kernel (arXiv 2006.11120).

Along each axis, tap ``t`` contributes ``phi_t(s - t')`` to sample ``s`` of the window, with ``t'`` the tap's own place and

    phi_t(z) = basis(z - shift) + window(z - shift) * residual_t(z - shift)

``basis`` is a cardinal interpolant (1 at 0, 0 at the other integers), so with ``shift`` and ``residual`` at zero the effective
kernel is the weight on its dilated grid. Coordinates are samples of the finer lattice: the input's for a convolution, the
output's for a transposed one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.geometry import ConvGeometry, Ints
from ccrewrite.nn.conv import RewrittenConv, RewrittenConvTranspose
from ccrewrite.nn.interpolation import hat, keys_cubic
from ccrewrite.nn.placement import KeepInside
from ccrewrite.nn.sampling import Sampling

BASES = {"linear": hat, "cubic": keys_cubic}
SUPPORT = 2
"""Half-width of ``phi``, in samples: that of the cubic basis and of the residual's window."""
MAX_SHIFT = 0.5
Layers = tuple[Tensor, Tensor, Tensor, Tensor]
"""Weights and biases of a residual's inner and last layer."""


class Residual(nn.Module):
    """The learned part of ``phi_t`` along one axis: a small sinusoidal network (SIREN, arXiv 2006.09661) of the coordinate,
    ``last . sin(inner . z + b)``, one output per tap. The last layer starts at zero."""

    def __init__(self, taps: int, hidden: int, *, dtype: torch.dtype | None = None, device: Any = None) -> None:
        super().__init__()
        self.inner = nn.Linear(1, hidden, dtype=dtype, device=device)
        self.last = nn.Linear(hidden, taps, dtype=dtype, device=device)
        # Frequencies up to one cycle per two samples: as much as samples one apart can carry.
        nn.init.uniform_(self.inner.weight, -math.pi, math.pi)
        nn.init.uniform_(self.inner.bias, -math.pi, math.pi)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def tensors(self) -> Layers:
        return self.inner.weight, self.inner.bias, self.last.weight, self.last.bias


class CCSampling(Sampling):
    """Continuous kernel of one convolution: a shift and a residual per axis over the nodes that the weight gives.

    Parameters: ``shift`` (ndim,), in samples of the finer lattice, kept within +-0.5; ``residual``, one ``Residual`` per axis.
    ``basis`` is "cubic" (Keys) or "linear". The residual's inner layers learn once its last layer has moved.
    """

    def __init__(
        self,
        geometry: ConvGeometry,
        *,
        basis: str = "cubic",
        hidden: int = 16,
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> None:
        if basis not in BASES:
            raise InputError(f"basis must be one of {', '.join(BASES)}, found {basis!r}")
        if hidden < 1:
            raise InputError(f"hidden must be at least 1, found {hidden}")
        margin = (SUPPORT,) * geometry.ndim
        super().__init__(geometry.kernel_size, geometry.dilation, transposed=geometry.transposed, margin=margin)
        self.basis = basis
        self.shift = nn.Parameter(torch.zeros(self.ndim, dtype=dtype, device=device))
        self.residual = nn.ModuleList(Residual(k, hidden, dtype=dtype, device=device) for k in self.kernel_size)

    @classmethod
    def of(cls, geometry: ConvGeometry, **options: Any) -> Self:
        return cls(geometry, **options)

    def movers(self) -> list[Tensor]:
        return [self.shift, *(p for r in self.residual for p in cast(Residual, r).tensors()[2:])]

    def kernel(self, weight: Tensor) -> Tensor:
        residuals = tuple(cast(Residual, r).tensors() for r in self.residual)
        return cc_kernel(weight, self.shift, residuals, self.dilation, self.basis)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, dilation={self.dilation}, basis={self.basis}, transposed={self.transposed}"


def phi(coordinate: Tensor, basis: str, layers: Layers) -> Tensor:
    """``basis(z) + window(z) * residual(z)`` for coordinates ``(..., taps)``, in samples; same shape."""
    inner, inner_bias, last, last_bias = (p.to(coordinate.dtype) for p in layers)
    residual = (torch.sin(coordinate[..., None] * inner[:, 0] + inner_bias) * last).sum(-1) + last_bias
    taper = torch.cos(coordinate.clamp(-SUPPORT, SUPPORT) * (math.pi / (2 * SUPPORT))) ** 2
    return BASES[basis](coordinate) + taper * residual


@torch.fx.wrap
def cc_kernel(weight: Tensor, shift: Tensor, residuals: Sequence[Layers], dilation: Ints, basis: str) -> Tensor:
    """Effective kernel, ``(*weight.shape[:2], *window)``, one banded matrix product per axis.

    Coordinates in at least float32, autocast or not. A leaf for ``torch.fx.symbolic_trace``.
    """
    dtype = torch.promote_types(shift.dtype, torch.float32)
    device_type = "cpu" if weight.is_meta else weight.device.type  # autocast knows no meta device
    with torch.autocast(device_type, enabled=False):
        kernel = weight.to(torch.promote_types(weight.dtype, torch.float32))
        for axis, spacing in enumerate(dilation):
            taps = weight.shape[2 + axis]
            cells = torch.arange(spacing * (taps - 1) + 1 + 2 * SUPPORT, dtype=dtype, device=weight.device) - SUPPORT
            places = spacing * torch.arange(taps, dtype=dtype, device=weight.device)
            moved = KeepInside.apply(shift[axis].to(dtype), -MAX_SHIFT, MAX_SHIFT)
            along = phi(cells[:, None] - places - moved, basis, residuals[axis]).to(kernel.dtype)
            kernel = (kernel.movedim(2 + axis, -1) @ along.mT).movedim(-1, 2 + axis)
    return kernel.to(weight.dtype)


class CCConv1d(RewrittenConv, nn.Conv1d, replaces=nn.Conv1d):
    """A strided convolution with a continuous kernel; see ``CCConv2d``."""

    sampling_class = CCSampling


class CCConv2d(RewrittenConv, nn.Conv2d, replaces=nn.Conv2d):
    """A strided convolution whose taps are the nodes of a continuous kernel (arXiv 2006.11120; formula in ``ccrewrite.nn.cc``).

    Input ``(N, C_in, H, W)`` or ``(C_in, H, W)``, output as ``nn.Conv2d``'s. Made from a trained layer, it computes the same:

    >>> conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    >>> layer, x = CCConv2d.from_conv(conv), torch.randn(1, 3, 9, 9)
    >>> torch.allclose(layer(x), conv(x), atol=1e-5), sorted(dict(layer.sampling.named_parameters()))[-1]
    (True, 'shift')
    """

    sampling_class = CCSampling


class CCConv3d(RewrittenConv, nn.Conv3d, replaces=nn.Conv3d):
    """A strided convolution with a continuous kernel; see ``CCConv2d``."""

    sampling_class = CCSampling


class CCConvTranspose1d(RewrittenConvTranspose, nn.ConvTranspose1d, replaces=nn.ConvTranspose1d):
    """A transposed convolution with a continuous kernel; see ``CCConvTranspose2d``."""

    sampling_class = CCSampling


class CCConvTranspose2d(RewrittenConvTranspose, nn.ConvTranspose2d, replaces=nn.ConvTranspose2d):
    """A transposed convolution whose taps are the nodes of a continuous kernel on the output's lattice (arXiv 2006.11120).

    Input ``(N, C_in, H, W)`` or ``(C_in, H, W)``; output and ``output_size`` as ``nn.ConvTranspose2d``'s.

    >>> conv = nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1)
    >>> layer, x = CCConvTranspose2d.from_conv(conv), torch.randn(1, 4, 5, 5)
    >>> torch.allclose(layer(x), conv(x), atol=1e-5)
    True
    """

    sampling_class = CCSampling


class CCConvTranspose3d(RewrittenConvTranspose, nn.ConvTranspose3d, replaces=nn.ConvTranspose3d):
    """A transposed convolution with a continuous kernel; see ``CCConvTranspose2d``."""

    sampling_class = CCSampling
