"""A folded convolution whose pads differ from side to side: torch's layers pad both sides alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from ccrewrite.folded.cuts import Cut, conv_of_cut, described, pads_of
from ccrewrite.folded.scripting import Pad, Unscriptable
from ccrewrite.ir.geometry import ConvArguments, ConvGeometry, Ints, Padding
from ccrewrite.ir.torch_private import ConvNd, ConvTransposeNd, output_padding_of

TORCH = nn.Conv1d, nn.Conv2d, nn.Conv3d


class PaddedConv(nn.Module):
    """Mixin for ``nn.ConvNd``: a fixed kernel whose pads differ from side to side.

    ``weight`` is what was cut out of the effective kernel. ``kernel_size``, ``stride``, ``padding``, ``dilation`` and the rest
    are the original's, for code that reads them; ``cuts`` says how the kernel lies in that extent.
    """

    cuts: tuple[Cut, ...]

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer = cast(ConvNd, self)
        call, pads = _arguments(layer), ConvGeometry.from_module(layer).pads
        return conv_of_cut(input, weight, bias, call, self.cuts, pads, layer.padding_mode)

    def __prepare_scriptable__(self) -> nn.Module:
        """For torch.jit.script, torch's own layers: two pads and a convolution that shares the weight."""
        layer = cast(ConvNd, self)
        g = ConvGeometry.from_module(layer)
        torch_class: Any = next(kind for kind in TORCH if isinstance(self, kind))
        known, rest = pads_of(self.cuts, g.pads, layer.padding_mode)
        conv: Any = torch_class(
            g.in_channels,
            g.out_channels,
            tuple(layer.weight.shape[2:]),
            g.stride,
            0,
            tuple(c.step for c in self.cuts),
            g.groups,
            device="meta",
        )
        conv.weight, conv.bias = layer.weight, layer.bias
        return nn.Sequential(Pad(known, layer.padding_mode), Pad(rest, "zeros"), conv).train(layer.training)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, cuts={tuple(tuple(c) for c in self.cuts)}"


class PaddedConvTranspose(Unscriptable, PaddedConv):
    """The same for ``nn.ConvTransposeNd``."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        layer = cast(ConvTransposeNd, self)
        extra: Sequence[int] = layer.output_padding
        if output_size is not None:
            stride, padding, taps = (list(cast(Ints, v)) for v in (layer.stride, layer.padding, layer.kernel_size))
            extra = output_padding_of(layer, input, output_size, stride, padding, taps, len(taps), list(layer.dilation))
        call = _arguments(layer)
        call["output_padding"] = tuple(extra)
        return conv_of_cut(input, layer.weight, layer.bias, call, self.cuts, ())


def _arguments(layer: ConvNd) -> ConvArguments:
    return {"stride": layer.stride, "padding": cast(Padding, layer.padding), "dilation": layer.dilation, "groups": layer.groups}


class PaddedConv1d(PaddedConv, nn.Conv1d):
    """See ``PaddedConv``."""


class PaddedConv2d(PaddedConv, nn.Conv2d):
    """See ``PaddedConv``."""


class PaddedConv3d(PaddedConv, nn.Conv3d):
    """See ``PaddedConv``."""


class PaddedConvTranspose1d(PaddedConvTranspose, nn.ConvTranspose1d):
    """See ``PaddedConv``."""


class PaddedConvTranspose2d(PaddedConvTranspose, nn.ConvTranspose2d):
    """See ``PaddedConv``."""


class PaddedConvTranspose3d(PaddedConvTranspose, nn.ConvTranspose3d):
    """See ``PaddedConv``."""


PADDED: dict[type, type[PaddedConv]] = {
    nn.Conv1d: PaddedConv1d,
    nn.Conv2d: PaddedConv2d,
    nn.Conv3d: PaddedConv3d,
    nn.ConvTranspose1d: PaddedConvTranspose1d,
    nn.ConvTranspose2d: PaddedConvTranspose2d,
    nn.ConvTranspose3d: PaddedConvTranspose3d,
}
"""torch's layer -> the padded one."""


def make_(conv: ConvNd, cuts: tuple[Cut, ...]) -> str:
    """Make ``conv``, of torch's own class, whose weight has been cut, one that pads as the cuts need. In place; the site's
    message."""
    conv.__class__ = cast(type[ConvNd], PADDED[type(conv)])
    cast(PaddedConv, conv).cuts = cuts
    return described(conv.weight, cuts)
