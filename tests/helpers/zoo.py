"""Small models with the habits of real ones, by name: ``build(name)`` gives a model in training mode, as users have them, and
its inputs. No layer starts at zero, so an output depends on every convolution that runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils._pytree import tree_map_only

Built = tuple[nn.Module, Any]


class Standardised(nn.Conv2d):
    """Weight standardisation, by a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Causal(nn.Conv1d):
    """Pads on the left, then torch's own forward; an extra argument."""

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        return super().forward(F.pad(x, (self.dilation[0] * (self.kernel_size[0] - 1), 0))) * gain


class Masked(nn.Conv2d):
    """A masked weight, through ``_conv_forward``."""

    mask: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        mask = torch.ones(self.kernel_size)
        mask[-1] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.mask, self.bias)


class Scaled(nn.Conv2d):
    """Changes ``_conv_forward`` alone."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight * 0.5, bias)


class Renamed(nn.Conv2d):
    """A subclass that adds nothing but a name and a method."""

    def fan_in(self) -> int:
        return self.weight[0].numel()


class Functional(nn.Module):
    """Functional convolutions: of a parameter, of a buffer, of a computed weight."""

    blur: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 4, 3) / 3)
        self.mixed = nn.Parameter(torch.randn(4, 4, 3) / 3)
        self.register_buffer("blur", torch.rand(4, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv1d(x, self.kernel, dilation=2, padding=2)
        x = F.conv_transpose1d(x, self.blur, stride=2, groups=4)
        return F.conv1d(x, weight=self.mixed.tanh(), stride=3)


class Dictionary(nn.Module):
    """Keyword arguments in, a dictionary out; a batch norm and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 4, stride=4)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.up = nn.ConvTranspose2d(4, 2, 4, stride=4)

    def forward(self, pixels: Tensor, *, scale: float = 1.0) -> dict[str, Any]:
        low = self.drop(self.norm(self.down(pixels)))
        return {"mask": self.up(low, output_size=pixels.shape[2:]), "features": (low * scale, low.mean())}


class Reused(nn.Module):
    """One convolution called three times on two sizes, and registered under three names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.again = self.conv
        self.stages = nn.ModuleList([nn.Conv2d(4, 4, 3, stride=2), self.conv])

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.conv(x))
        return self.stages[1](self.stages[0](x))


class Tied(nn.Module):
    """Two modules with one weight, at two dilations."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.b = nn.Conv2d(4, 4, 3, padding=3, dilation=3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class Normed(nn.Module):
    """Parametrised weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_normed = parametrizations.weight_norm(nn.Conv1d(4, 4, 3, dilation=2, padding=2))
        self.spectral = parametrizations.spectral_norm(nn.Conv1d(4, 4, 3, stride=2))
        self.up = parametrizations.weight_norm(nn.ConvTranspose1d(4, 4, 4, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.spectral(self.weight_normed(x)))


class OldNormed(nn.Module):
    """Weights normed by the hooks that torch had first."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.weight_normed = nn.utils.weight_norm(nn.Conv1d(4, 4, 3, dilation=2, padding=2))
        self.spectral = nn.utils.spectral_norm(nn.Conv1d(4, 4, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        return self.spectral(self.weight_normed(x))


class ReadsValues(nn.Module):
    """Control flow that depends on values: export refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, dilation=2)
        self.never = nn.Conv2d(4, 4, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.never(x) if x.abs().sum() < 0 else self.conv(x)


class ReadsGeometry(nn.Module):
    """Pads by what it reads off the convolution, as SAME padding does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        (k, _), (s, _), w = self.conv.kernel_size, self.conv.stride, self.conv.weight
        pad = max((-(-x.shape[2] // s) - 1) * s + k - x.shape[2], 0)
        return self.conv(F.pad(x, (pad // 2, pad - pad // 2) * 2).to(w.dtype))


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8),
        nn.Conv2d(8, 8, 1),
        nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1),
    )


def volumes() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 4, 3, stride=(1, 2, 2)), nn.Conv3d(4, 4, 2, dilation=2), nn.ConvTranspose3d(4, 2, 2, stride=2)
    )


def subclasses() -> nn.Module:
    return nn.Sequential(
        Standardised(4, 4, 3, stride=2),
        Masked(4, 4, 3, padding=2, dilation=2),
        Scaled(4, 4, 3, padding=2, dilation=2),
        Renamed(4, 4, 2, stride=2),
    )


def causal() -> nn.Module:
    return nn.Sequential(Causal(4, 4, 3), Causal(4, 4, 3, dilation=2), Causal(4, 4, 2, dilation=4))


def pictures() -> Tensor:
    return torch.randn(2, 4, 17, 17)


def signals() -> Tensor:
    return torch.randn(2, 4, 21)


ZOO: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "plain": (plain, pictures),
    "volumes": (volumes, lambda: torch.randn(1, 2, 5, 9, 8)),
    "subclasses": (subclasses, pictures),
    "causal": (causal, signals),
    "functional": (lambda: nn.Sequential(nn.Conv1d(4, 4, 3), Functional()), signals),
    "dictionary": (Dictionary, lambda: {"pixels": torch.randn(1, 3, 18, 18), "scale": 2.0}),
    "reused": (Reused, pictures),
    "tied": (Tied, pictures),
    "normed": (Normed, signals),
    "old_normed": (OldNormed, signals),
    "reads_values": (ReadsValues, pictures),
    "reads_geometry": (ReadsGeometry, pictures),
    "one_layer": (lambda: nn.Conv1d(4, 4, 5, dilation=2), lambda: torch.randn(4, 21)),
}
REFUSED_BY_EXPORT = {"reads_values"}


def build(name: str, dtype: torch.dtype = torch.float32) -> Built:
    torch.manual_seed(0)
    factory, inputs = ZOO[name]
    return factory().to(dtype), tree_map_only(Tensor, lambda t: t.to(dtype), inputs())


def run(model: nn.Module, inputs: Any) -> Any:
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs) if isinstance(inputs, tuple) else model(inputs)
