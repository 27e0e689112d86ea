"""``DclsConv1d``, ``DclsConv2d`` and ``DclsConv3d``: torch's layers with learnable tap positions, new or made from one.

The positions themselves are in ``ccrewrite.families.dcls.sampling``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.types import Device

from ccrewrite.errors import InputError
from ccrewrite.families.dcls.sampling import DclsSampling
from ccrewrite.families.scratch import ScratchConv, refuse_adapters
from ccrewrite.ir.geometry import ConvGeometry, per_axis
from ccrewrite.ir.options import check_options
from ccrewrite.ir.torch_private import ConvNd


class DclsConv(ScratchConv):
    """What the DCLS layers of all dimensions have in common; use ``DclsConv1d``, ``DclsConv2d``, ``DclsConv3d``."""

    sampling: DclsSampling
    sampling_class = DclsSampling
    weight_init = "kaiming"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        elements: int | None = None,
        window: int | Sequence[int] | None = None,
        weight_init: Literal["kaiming", "trunc_normal"] = "kaiming",
        **options: Any,
    ) -> None:
        refuse_adapters(self)
        ndim = int(self.torch_class.__name__[-2])
        check_options(type(self).__name__, DclsConv, {"weight_init": weight_init})
        self.weight_init = weight_init
        if (elements is None) != (window is None) or (elements is None) == (kernel_size is None):
            raise InputError(
                f"{type(self).__name__} takes either kernel_size (taps on a grid) or elements and window (taps placed freely); "
                f"found kernel_size={kernel_size}, elements={elements}, window={window}"
            )
        size = per_axis(
            window if kernel_size is None else kernel_size, ndim, "window" if kernel_size is None else "kernel_size"
        )
        # On the meta device: with `elements` the weight has another shape than torch would give it.
        super().__init__(in_channels, out_channels, size, stride, padding, dilation, groups, bias, padding_mode, "meta", dtype)
        conv = cast(ConvNd, self)
        factory: dict[str, Any] = {"device": device or torch.get_default_device(), "dtype": conv.weight.dtype}
        sampling = DclsSampling(ConvGeometry.from_module(conv), elements=elements, **options, **factory)
        conv.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *sampling.taps, **factory))
        if conv.bias is not None:
            conv.bias = nn.Parameter(torch.empty(out_channels, **factory))
        self.sampling = sampling  # pyright: ignore[reportIncompatibleVariableOverride]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias anew, and the positions as ``DclsSampling.reset_parameters`` does."""
        conv = cast(ConvNd, self)
        ConvNd.reset_parameters(conv)
        if self.weight_init == "trunc_normal":
            nn.init.trunc_normal_(conv.weight, std=0.02)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        sampling = self._modules.get("sampling")
        if sampling is not None:  # torch's own constructor calls this before there is one
            cast(DclsSampling, sampling).reset_parameters()


class DclsConv1d(DclsConv, nn.Conv1d, replaces=nn.Conv1d):
    """A 1-d convolution with learnable tap positions; arguments as ``DclsConv2d``'s.

    Input ``(N, C_in, L)`` or ``(C_in, L)``, output as ``nn.Conv1d``'s.

    >>> delays = DclsConv1d(4, 4, elements=2, window=31, padding="same", interpolation="gaussian", position_init="uniform")
    >>> delays(torch.randn(1, 4, 50)).shape, delays.sampling.positions().shape
    (torch.Size([1, 4, 50]), torch.Size([1, 1, 1, 2]))
    """


class DclsConv2d(DclsConv, nn.Conv2d, replaces=nn.Conv2d):
    """A 2-d convolution whose taps have learnable positions (arXiv 2112.03740; formula in ``sampling.py``).

    From scratch, either ``elements`` taps placed freely in a ``window`` (the papers' layer), or a grid of ``kernel_size`` taps
    with a ``dilation``. ``weight`` is ``(out, in/groups, elements)`` or ``(out, in/groups, *kernel_size)``; taps placed freely
    along some ``axes`` only are ``(out, in/groups, elements, *window along the others)``. ``weight_init`` is "kaiming" (torch's
    and the reference's) or "trunc_normal" (standard deviation 0.02 and zero bias, ConvNeXt's). The other arguments are those of
    ``nn.Conv2d`` (``padding="same"`` too) and, by name, of ``DclsSampling``.

    Input ``(N, C_in, H, W)`` or ``(C_in, H, W)``, output as ``nn.Conv2d``'s for a kernel of the window's size.

    >>> layer = DclsConv2d(16, 16, padding="same", groups=16, elements=34, window=17)
    >>> layer(torch.randn(1, 16, 32, 32)).shape, layer.weight.shape, layer.sampling.offset.shape
    (torch.Size([1, 16, 32, 32]), torch.Size([16, 1, 34]), torch.Size([2, 16, 1, 34]))

    Made from a trained layer, it computes the same:

    >>> conv = nn.Conv2d(3, 8, 3, padding=4, dilation=4)
    >>> layer, x = DclsConv2d.from_conv(conv), torch.randn(1, 3, 9, 9)
    >>> torch.allclose(layer(x), conv(x), atol=1e-5), layer.sampling.offset.shape
    (True, torch.Size([2, 1, 1, 3, 3]))
    """


class DclsConv3d(DclsConv, nn.Conv3d, replaces=nn.Conv3d):
    """A 3-d convolution with learnable tap positions; arguments as ``DclsConv2d``'s.

    Input ``(N, C_in, D, H, W)`` or ``(C_in, D, H, W)``, output as ``nn.Conv3d``'s. Taps that move in time alone:

    >>> layer = DclsConv3d(2, 4, padding="same", elements=3, window=(9, 3, 3), axes=(0,))
    >>> layer.weight.shape, layer(torch.randn(1, 2, 9, 8, 8)).shape
    (torch.Size([4, 2, 3, 3, 3]), torch.Size([1, 4, 9, 8, 8]))
    """
