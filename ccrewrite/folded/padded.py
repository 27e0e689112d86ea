"""A folded convolution whose pads differ from side to side: torch's own layer, and a pad or a crop beside it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from ccrewrite.folded.cuts import Cut, arguments_of, conv_of_cut, crop_or_pad, described, pads_of
from ccrewrite.folded.scripting import Pad
from ccrewrite.ir.geometry import ConvGeometry, Ints
from ccrewrite.ir.torch_private import ConvNd, ConvTransposeNd, output_padding_of, parameters_of, submodules_of

TORCH_PADS: dict[str, tuple[type[nn.Module], type[nn.Module], type[nn.Module]]] = {
    "zeros": (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    "reflect": (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    "replicate": (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    "circular": (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
}
"""Padding mode -> torch's layers that pad so, by the number of axes less one."""
TORCH = nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d


class Crop(nn.Module):
    """Leaves out samples at the ends of the last axes: ``crops`` are (low, high) of each."""

    def __init__(self, crops: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.crops = tuple(crops)

    def forward(self, input: Tensor) -> Tensor:
        return crop_or_pad(input, self._pads())

    def _pads(self) -> list[tuple[int, int]]:
        return [(-low, -high) for low, high in self.crops]

    def __prepare_scriptable__(self) -> nn.Module:
        return Pad(self._pads(), "zeros")

    def extra_repr(self) -> str:
        return str(self.crops)


class PaddedConv(nn.Sequential):
    """``conv``, exactly ``nn.ConvNd`` with what was cut out of the effective kernel, and before it what it needs of ``border``
    (in another padding mode than zeros), ``crop`` and ``pad``.

    The object is the layer that was there before, so that aliases, hooks and references stay. ``kernel_size``, ``stride`` and
    the rest are the original's, for code that reads them; ``cuts`` says how the kernel lies in that extent.
    """

    cuts: tuple[Cut, ...]
    conv: ConvNd

    @property
    def weight(self) -> Tensor:
        return self.conv.weight

    @property
    def bias(self) -> Tensor | None:
        return self.conv.bias

    def __setattr__(self, name: str, value: Any) -> None:
        """A new weight or bias, of a layer that is pruned say, is ``conv``'s."""
        owner = submodules_of(self).get("conv") if name in ("weight", "bias") else None
        nn.Module.__setattr__(owner or self, name, value)

    def __prepare_scriptable__(self) -> nn.Module:
        return nn.Sequential(OrderedDict(self.named_children())).train(self.training)


class PaddedConvTranspose(PaddedConv):
    """``conv``, exactly ``nn.ConvTransposeNd``, which crops both sides alike, and ``crop`` after it."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None:
            return self._sized(input, output_size)
        for layer in self:
            input = layer(input)
        return input

    def _sized(self, input: Tensor, output_size: list[int]) -> Tensor:
        layer = cast(ConvTransposeNd, self)  # its attributes
        stride, padding, taps = (list(cast(Ints, v)) for v in (layer.stride, layer.padding, layer.kernel_size))
        asked = input, output_size, stride, padding, taps, len(taps), list(layer.dilation)
        call = arguments_of(layer)
        call["output_padding"] = tuple(output_padding_of(cast(ConvTransposeNd, self.conv), *asked))
        return conv_of_cut(input, self.weight, self.bias, call, self.cuts, ())


def make_(conv: ConvNd, kernel: Tensor, cuts: Sequence[Cut], *, extra: bool = True) -> str | None:
    """Make ``conv``, of torch's own class, one with ``kernel``, cut as ``cuts`` say, that pads as it must. In place; the site's
    message. ``extra``: of a transposed one, whether an ``output_padding`` may stay. None, and nothing done, where it has
    submodules, for they would be called too."""
    if submodules_of(conv):
        return None
    if conv.transposed:
        kernel, cuts = _long_enough(conv, kernel, cuts, extra)
    parts = parts_of(conv, nn.Parameter(kernel, requires_grad=conv.weight.requires_grad), cuts, extra=extra)
    own, layer = parameters_of(conv), cast(Any, conv)
    del own["weight"], own["bias"]
    layer.__class__ = PaddedConvTranspose if conv.transposed else PaddedConv
    layer.cuts = tuple(cuts)
    for name, part in parts.items():
        layer.add_module(name, part.train(conv.training))
    return described(kernel, cuts)


def parts_of(conv: ConvNd, weight: nn.Parameter, cuts: Sequence[Cut], *, extra: bool = True) -> dict[str, nn.Module]:
    """Layers that, one after the other, are ``conv`` with ``weight``, cut as ``cuts`` say, by name: torch's own, and crops."""
    g = ConvGeometry.from_module(conv)
    if g.transposed:
        low, high = _crops(g, cuts, extra)
        padding = tuple(map(min, low, high))
        crops = [(a - p, b - p) for a, b, p in zip(low, high, padding, strict=True)]
        own = [_own_extra(e, s, c) if extra else 0 for e, s, c in zip(g.output_padding, g.stride, cuts, strict=True)]
        after = {"crop": Crop(crops)} if any(map(any, crops)) else {}
        return {"conv": _torch_layer(conv, weight, cuts, padding, output_padding=tuple(own)), **after}
    known, rest = pads_of(cuts, g.pads, g.padding_mode)
    crops = [(max(0, -low), max(0, -high)) for low, high in rest]
    zeros = [(max(0, low), max(0, high)) for low, high in rest]
    found: dict[str, nn.Module] = {}
    if any(map(any, known)):
        found["border"] = TORCH_PADS[g.padding_mode][g.ndim - 1](_flat(known))
    if any(map(any, crops)):
        found["crop"] = Crop(crops)
    if any(map(any, zeros)):
        found["pad"] = TORCH_PADS["zeros"][g.ndim - 1](_flat(zeros))
    return {**found, "conv": _torch_layer(conv, weight, cuts, (0,) * g.ndim)}


def _torch_layer(conv: ConvNd, weight: nn.Parameter, cuts: Sequence[Cut], padding: Ints, **more: Ints) -> nn.Module:
    kind: Any = next(kind for kind in TORCH if isinstance(conv, kind))
    size, steps = tuple(weight.shape[2:]), tuple(c.step for c in cuts)
    channels = conv.in_channels, conv.out_channels
    how = {"stride": conv.stride, "padding": padding, "dilation": steps, "groups": conv.groups, **more}
    layer = kind(*channels, size, **how, bias=False, device="meta")
    layer.weight, layer.bias = weight, conv.bias
    return layer


def _crops(g: ConvGeometry, cuts: Sequence[Cut], extra: bool) -> tuple[list[int], list[int]]:
    """How many samples of a transposed convolution with the whole cut kernel are left out at each end of every axis."""
    rest = [e - _own_extra(e, s, c) if extra else e for e, s, c in zip(g.output_padding, g.stride, cuts, strict=True)]
    low = [p - c.before for (p, _), c in zip(g.pads, cuts, strict=True)]
    return low, [p - c.after - e for (_, p), c, e in zip(g.pads, cuts, rest, strict=True)]


def _own_extra(extra: int, stride: int, cut: Cut) -> int:
    """An ``output_padding`` as far as torch takes it."""
    return extra if extra < max(stride, cut.step) else 0


def _long_enough(conv: ConvNd, kernel: Tensor, cuts: Sequence[Cut], extra: bool) -> tuple[Tensor, tuple[Cut, ...]]:
    """A transposed convolution's kernel with zeros at the ends that its outputs exceed: so nothing is added to them later."""
    low, high = _crops(ConvGeometry.from_module(conv), cuts, extra)
    grown = [(max(0, -(a // c.step)), max(0, -(b // c.step))) for a, b, c in zip(low, high, cuts, strict=True)]
    longer = tuple(Cut(c.before - a * c.step, c.after - b * c.step, c.step) for c, (a, b) in zip(cuts, grown, strict=True))
    return crop_or_pad(kernel, grown).contiguous(), longer


def _flat(pads: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """As torch takes them: the last axis first."""
    return tuple(n for pair in reversed(pads) for n in pair)
