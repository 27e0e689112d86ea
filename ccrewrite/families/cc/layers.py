"""CC layers: strided and transposed convolutions with a continuous kernel and any output size (arXiv 2006.11120)."""

from __future__ import annotations

from typing import Any, Self, cast

from torch import nn

from ccrewrite.families.cc.sampling import CCSampling, continuous_axes
from ccrewrite.families.resizable import AsksForSizes, ResizableConv, ResizableConvTranspose
from ccrewrite.families.scratch import refuse_adapters
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.torch_private import ConvNd

OPTIONS = ("kernel", "basis", "hidden", "reach", "alignment", "axes", "sharing")


class CCLayer(AsksForSizes):
    """What the CC layers of all dimensions have in common; use ``CCConv2d`` and its like.

    ``output_size``, ``scale`` and ``alignment`` are those of ``layer.sampling`` (``CCSampling``).
    """

    sampling: CCSampling
    sampling_class = CCSampling

    def __init__(self, *arguments: Any, **named: Any) -> None:
        refuse_adapters(cast(nn.Module, self))
        options = {name: named.pop(name) for name in OPTIONS if name in named}
        super().__init__(*arguments, **named)
        conv = cast(ConvNd, self)
        options |= {"dtype": conv.weight.dtype, "device": conv.weight.device}
        sampling = CCSampling(ConvGeometry.from_module(conv), **_with_axes(conv, options))
        self.sampling = sampling  # pyright: ignore[reportIncompatibleVariableOverride]

    @classmethod
    def from_conv(cls, conv: nn.Module, **options: Any) -> Self:
        return super().from_conv(conv, **(_with_axes(conv, options) if isinstance(conv, ConvNd) else options))


def _with_axes(conv: ConvNd, options: dict[str, Any]) -> dict[str, Any]:
    """The sampling's options; where they don't say the axes, those that are worth it."""
    return {"axes": continuous_axes(ConvGeometry.from_module(conv), options.get("kernel", "nodes")), **options}


class CCConv(CCLayer, ResizableConv):  # pyright: ignore[reportIncompatibleVariableOverride]
    """The convolutions; use ``CCConv1d``, ``CCConv2d``, ``CCConv3d``."""


class CCConvTranspose(CCLayer, ResizableConvTranspose):  # pyright: ignore[reportIncompatibleVariableOverride]
    """The transposed convolutions; use ``CCConvTranspose1d``, ``CCConvTranspose2d``, ``CCConvTranspose3d``."""


class CCConv1d(CCConv, nn.Conv1d, replaces=nn.Conv1d):
    """A strided convolution with a continuous kernel; see ``CCConv2d``. Input ``(N, C_in, L)`` or ``(C_in, L)``.

    >>> import torch
    >>> CCConv1d(3, 8, 3, stride=2)(torch.randn(1, 3, 9), output_size=(6,)).shape
    torch.Size([1, 8, 6])
    """


class CCConv2d(CCConv, nn.Conv2d, replaces=nn.Conv2d):
    """A strided convolution whose taps are the nodes of a continuous kernel (arXiv 2006.11120; formulas in
    ``ccrewrite.families.cc.profile`` and ``ccrewrite.families.cc.resampling``).

    Input ``(N, C_in, H, W)`` or ``(C_in, H, W)``, output as ``nn.Conv2d``'s. From scratch, arguments are those of ``nn.Conv2d``
    and, by name, of ``CCSampling`` (``kernel="mlp"`` for the paper's own filter, a network of the coordinates). Made from a
    trained layer, it computes the same:

    >>> import torch
    >>> conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    >>> layer, x = CCConv2d.from_conv(conv), torch.randn(1, 3, 9, 9)
    >>> torch.allclose(layer(x), conv(x), atol=1e-5), sorted(dict(layer.sampling.named_parameters()))[-1]
    (True, 'shift')

    Another size of the output, for one call or for all, per axis and not only by whole factors:

    >>> layer(x, output_size=(4, 7)).shape
    torch.Size([1, 8, 4, 7])
    >>> layer.scale = 1.4
    >>> layer(x).shape
    torch.Size([1, 8, 7, 7])
    """


class CCConv3d(CCConv, nn.Conv3d, replaces=nn.Conv3d):
    """A strided convolution with a continuous kernel; see ``CCConv2d``. Input ``(N, C_in, D, H, W)`` or ``(C_in, D, H, W)``.

    >>> import torch
    >>> CCConv3d(3, 8, 3, stride=2)(torch.randn(1, 3, 9, 9, 9), output_size=(4, 5, 6)).shape
    torch.Size([1, 8, 4, 5, 6])
    """


class CCConvTranspose1d(CCConvTranspose, nn.ConvTranspose1d, replaces=nn.ConvTranspose1d):
    """A transposed convolution with a continuous kernel; see ``CCConvTranspose2d``. Input ``(N, C_in, L)`` or ``(C_in, L)``.

    >>> import torch
    >>> CCConvTranspose1d(3, 8, 4, stride=2)(torch.randn(1, 3, 9), output_size=(20,)).shape
    torch.Size([1, 8, 20])
    """


class CCConvTranspose2d(CCConvTranspose, nn.ConvTranspose2d, replaces=nn.ConvTranspose2d):
    """A transposed convolution whose taps are the nodes of a continuous kernel on the output's lattice (arXiv 2006.11120).

    Input ``(N, C_in, H, W)`` or ``(C_in, H, W)``, output as ``nn.ConvTranspose2d``'s. The sizes that ``nn.ConvTranspose2d``
    takes for ``output_size`` are its own (they add rows); any other resizes the output, as ``layer.output_size`` does:

    >>> import torch
    >>> conv = nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1)
    >>> layer, x = CCConvTranspose2d.from_conv(conv), torch.randn(1, 4, 5, 5)
    >>> torch.allclose(layer(x), conv(x), atol=1e-5), layer(x, output_size=(7, 13)).shape
    (True, torch.Size([1, 2, 7, 13]))
    """


class CCConvTranspose3d(CCConvTranspose, nn.ConvTranspose3d, replaces=nn.ConvTranspose3d):
    """A transposed convolution with a continuous kernel; see ``CCConvTranspose2d``.

    Input ``(N, C_in, D, H, W)`` or ``(C_in, D, H, W)``.

    >>> import torch
    >>> CCConvTranspose3d(3, 8, 4, stride=2)(torch.randn(1, 3, 9, 9, 9), output_size=(20, 18, 17)).shape
    torch.Size([1, 8, 20, 18, 17])
    """
