"""DCLS layers: convolutions whose taps have learnable positions (arXiv 2112.03740).

    K_eff[s] = sum_t weight_t prod_axis phi(s - p_t),      p_t = dilation * t + offset_t

``s`` runs over the kernel's window, ``t`` over its taps, one axis after the other (row first). ``offset`` starts at zero: the
effective kernel is then the weight on its dilated grid. Positions are kept inside the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.geometry import ConvGeometry, Ints
from ccrewrite.nn.conv import RewrittenConv
from ccrewrite.nn.sampling import Sampling

SHARINGS = ("tap", "group", "out", "in", "full")


class DclsSampling(Sampling):
    """Learnable positions of one convolution's taps.

    Parameter ``offset``, ``(axes, A, B, *kernel_size)``, in samples: for each learnable axis (those with more than one tap) and
    tap, a position for all channels (``sharing="tap"``: A = B = 1), one per group ("group"), output channel ("out"),
    input channel ("in") or pair of them ("full", the paper's). ``sharing="auto"`` is "full" for depthwise, "tap" for others.

    ``reach`` widens the window, in samples at both sides. At 0 no tap leaves the original extent, so a causal convolution stays
    causal and the outermost taps can only move inwards.
    """

    def __init__(
        self,
        geometry: ConvGeometry,
        *,
        sharing: str = "auto",
        reach: int = 0,
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> None:
        if sharing == "auto":
            sharing = "full" if geometry.depthwise else "tap"
        if sharing not in SHARINGS:
            raise InputError(f"sharing must be 'auto' or one of {', '.join(SHARINGS)}, found {sharing!r}")
        if reach < 0:
            raise InputError(f"reach must be at least 0 samples, found {reach}")
        if geometry.transposed:
            raise InputError("DCLS samples the input of a convolution; for a transposed one use a CC layer")
        margin = tuple(reach if k > 1 else 0 for k in geometry.kernel_size)
        super().__init__(geometry.kernel_size, geometry.dilation, transposed=False, margin=margin)
        self.sharing = sharing
        self.axes = tuple(a for a, k in enumerate(geometry.kernel_size) if k > 1)
        g = geometry
        rows = {"group": g.groups, "out": g.out_channels, "full": g.out_channels}.get(sharing, 1)
        columns = g.in_channels // g.groups if sharing in ("in", "full") else 1
        self.offset = nn.Parameter(torch.zeros(len(self.axes), rows, columns, *self.kernel_size, dtype=dtype, device=device))

    @classmethod
    def of(cls, geometry: ConvGeometry, **options: Any) -> Self:
        return cls(geometry, **options)

    def movers(self) -> list[Tensor]:
        return [self.offset]

    def kernel(self, weight: Tensor) -> Tensor:
        return dcls_kernel(weight, self.offset, self.dilation, self.margin, self.axes)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, dilation={self.dilation}, sharing={self.sharing}, margin={self.margin}"


@torch.fx.wrap
def dcls_kernel(weight: Tensor, offset: Tensor, dilation: Ints, margin: Ints, axes: Ints) -> Tensor:
    """Effective kernel, ``(out, in/groups, *window)``. A leaf for ``torch.fx.symbolic_trace``."""
    ndim = weight.ndim - 2
    dtype = torch.promote_types(offset.dtype, torch.float32)
    with torch.autocast(weight.device.type, enabled=False):
        offset = offset.to(dtype).flatten(3)
        rows, columns, taps = offset.shape[1:]
        factors: list[Tensor] = []
        for axis in range(ndim):
            taps_along, spacing, edge = weight.shape[2 + axis], dilation[axis], margin[axis]
            size = spacing * (taps_along - 1) + 1 + 2 * edge
            shape = [-1 if a == axis else 1 for a in range(ndim)]
            start = edge + spacing * torch.arange(taps_along, dtype=dtype, device=weight.device)
            start = start.view(shape).expand(weight.shape[2:]).flatten()
            if axis in axes:
                position = KeepInside.apply(start + offset[axes.index(axis)], 0, size - 1)
            else:
                position = start.expand(rows, columns, taps)
            factors.append(saturating_hat(position, size))
        kernel = _place(weight.flatten(2).to(torch.promote_types(weight.dtype, torch.float32)), factors)
    return kernel.to(weight.dtype)


def saturating_hat(position: Tensor, size: int) -> Tensor:
    """``hat(s - position)`` for the cells ``s = 0 .. size-1``, last; constant outside, so that the border cells hold all of a
    tap that stands on them. Derivatives on the grid are the mean of the one-sided ones, at the borders too."""
    cells = torch.arange(size, dtype=position.dtype, device=position.device)
    distance = (cells - position[..., None]).abs()
    zero = position.new_zeros(())
    if size > 1:
        first = torch.maximum(position, zero)[..., None]
        last = torch.maximum(size - 1 - position, zero)[..., None]
        distance = torch.cat([first, distance[..., 1:-1], last], -1)
    return torch.maximum(1 - distance, zero)


class KeepInside(torch.autograd.Function):
    """``clamp(position, low, high)`` whose gradient stops only what would push further out, so a tap can always come back."""

    @staticmethod
    def forward(ctx: Any, position: Tensor, low: int, high: int) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(position)
        ctx.bounds = low, high
        return position.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        (position,) = ctx.saved_tensors
        low, high = ctx.bounds
        outward = ((position < low) & (gradient > 0)) | ((position > high) & (gradient < 0))
        return gradient.masked_fill(outward, 0), None, None


def _place(weight: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """``sum_t weight[o, i, t] prod_axis factors[axis][a, b, t, s]``: ``(out, in/groups, *window)``."""
    out, inner, taps = weight.shape
    rows, columns = factors[0].shape[:2]
    sizes = [f.shape[-1] for f in factors]
    rest = factors[-1]
    for factor in reversed(factors[1:-1]):
        rest = (factor[..., :, None] * rest[..., None, :]).flatten(-2)
    if rows == columns == 1:
        table = rest if len(factors) == 1 else (factors[0][..., :, None] * rest[..., None, :]).flatten(-2)
        return (weight.reshape(out * inner, taps) @ table[0, 0]).view(out, inner, *sizes)
    weight = weight.view(rows, out // rows, columns, inner // columns, taps).transpose(1, 2)
    if len(factors) == 1:
        kernel = weight.flatten(2, 3).reshape(rows, columns, -1, taps) @ rest
    else:
        left = weight[..., None] * factors[0][:, :, None, None]
        kernel = left.mT @ rest[:, :, None, None]
    kernel = kernel.view(rows, columns, out // rows, inner // columns, *sizes)
    return kernel.transpose(1, 2).reshape(out, inner, *sizes)


class DclsConv1d(RewrittenConv, nn.Conv1d, replaces=nn.Conv1d):
    """A convolution with learnable tap positions; see ``DclsConv2d``."""

    sampling_class = DclsSampling


class DclsConv2d(RewrittenConv, nn.Conv2d, replaces=nn.Conv2d):
    """A convolution whose taps have learnable positions (arXiv 2112.03740; formula in ``ccrewrite.nn.dcls``).

    Input ``(N, C_in, H, W)`` or ``(C_in, H, W)``, output as ``nn.Conv2d``'s. Made from a trained layer, it computes the same:

    >>> conv = nn.Conv2d(3, 8, 3, padding=4, dilation=4)
    >>> layer, x = DclsConv2d.from_conv(conv), torch.randn(1, 3, 9, 9)
    >>> torch.allclose(layer(x), conv(x), atol=1e-5), layer.sampling.offset.shape
    (True, torch.Size([2, 1, 1, 3, 3]))
    """

    sampling_class = DclsSampling


class DclsConv3d(RewrittenConv, nn.Conv3d, replaces=nn.Conv3d):
    """A convolution with learnable tap positions; see ``DclsConv2d``."""

    sampling_class = DclsSampling
