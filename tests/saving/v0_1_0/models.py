"""Small models in plain torch, whose weights are the same on every machine: the originals of what 0.1.0 wrote beside this file.

The files depend on every name, shape and value here: change nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations


def numbers(shape: Any, place: int) -> Tensor:
    """Scattered multiples of 2**-12 in [-1, 1), without a generator or rounding."""
    size = torch.Size(shape)
    i = torch.arange(size.numel(), dtype=torch.int64) + 100 * place
    return ((31 * i * i + 17 * i + 7) % 8191 - 4096).double().reshape(size) / 4096


def filled(model: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Every tensor of ``model`` given values, in evaluation mode."""
    model.to(dtype)
    with torch.no_grad():
        for place, (name, tensor) in enumerate(model.state_dict().items()):
            if tensor.is_floating_point():
                values = numbers(tensor.shape, place)
                tensor.copy_(1 + values / 2 if name.endswith(("running_var", "original0")) else values / 2)
    return model.eval()


class Standardised(nn.Conv1d):
    """Weight standardisation, by a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2), keepdim=True)) / (w.std((1, 2), keepdim=True) + 1e-5)
        return F.conv1d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Causal(nn.Conv1d):
    """Pads on the left, then torch's own forward."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.dilation[0] * (self.kernel_size[0] - 1), 0)))


class Functional(nn.Module):
    """Functional convolutions: of a parameter, of a buffer, of a computed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(4, 4, 3))
        self.mixed = nn.Parameter(torch.empty(4, 4, 3))
        self.register_buffer("blur", torch.empty(4, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv1d(x, self.kernel, dilation=2, padding=2)
        x = F.conv_transpose1d(x, self.blur, stride=2, groups=4)  # pyright: ignore[reportArgumentType]
        return F.conv1d(x, weight=self.mixed.tanh(), stride=3)


class Normed(nn.Module):
    """Parametrized weights."""

    def __init__(self) -> None:
        super().__init__()
        self.dilated = parametrizations.weight_norm(nn.Conv1d(4, 4, 3, dilation=2, padding=2))
        self.up = parametrizations.weight_norm(nn.ConvTranspose1d(4, 4, 4, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.dilated(x))


class Shared(nn.Module):
    """One weight at two dilations, and a layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 2, 3, padding=2, dilation=2)
        self.b = nn.Conv2d(2, 2, 3, padding=3, dilation=3)
        self.b.weight = self.a.weight
        self.again = self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.b(self.a(x)))


def layers() -> nn.Module:
    """Layers of every kind, in two dimensions."""
    return filled(
        nn.Sequential(
            OrderedDict(
                stem=nn.Conv2d(2, 6, 3, stride=2, padding=1),
                norm=nn.BatchNorm2d(6),
                tap=nn.Conv2d(6, 6, 3, padding=2, dilation=2),
                out=nn.Conv2d(6, 6, 3, padding=3, dilation=3, bias=False),
                depthwise=nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6),
                first=nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=2),
                second=nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=2),
                point=nn.Conv2d(6, 6, 1),
                up=nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1),
                linear=nn.Conv2d(4, 4, 3, stride=2),
                mlp=nn.Conv2d(4, 3, 2, stride=2),
            )
        )
    )


def sized() -> nn.Module:
    """Down, across and up again: sizes inside are free."""
    return filled(
        nn.Sequential(
            OrderedDict(
                down=nn.Conv2d(2, 4, 3, stride=2, padding=1),
                across=nn.Conv2d(4, 4, 3, padding=2, dilation=2),
                up=nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1),
            )
        )
    )


def pooled() -> nn.Module:
    """Functional calls whose sizes are free."""
    return filled(nn.Sequential(Functional(), nn.AdaptiveAvgPool1d(3)))


def functional() -> nn.Module:
    """Functional calls in a host, and classes with forwards of their own."""
    return filled(nn.Sequential(Functional(), Standardised(4, 4, 3, stride=2), Causal(4, 4, 3, dilation=2)))


def graph() -> nn.Module:
    return filled(fx.symbolic_trace(nn.Sequential(nn.Conv1d(4, 4, 3, dilation=2), Functional())))


def normed() -> nn.Module:
    return filled(Normed())


def shared() -> nn.Module:
    return filled(Shared())


def large() -> nn.Module:
    """Large kernels, to be made sparse."""
    return filled(
        nn.Sequential(
            OrderedDict(
                gaussian=nn.Conv2d(2, 2, 7, padding=3, groups=2),
                triangle=nn.Conv2d(2, 2, 7, padding=3),
                linear=nn.Conv2d(2, 3, 7, stride=2, bias=False),
                dilated=nn.Conv2d(3, 2, 3, padding=2, dilation=2),
            )
        )
    )


def volume() -> nn.Module:
    return filled(nn.Sequential(nn.Conv3d(1, 2, 3, stride=(1, 2, 2)), nn.Conv3d(2, 2, 2, dilation=2)))


def root() -> nn.Module:
    """The model is the layer."""
    return filled(nn.Conv1d(2, 3, 5, dilation=2))


def spectra() -> nn.Module:
    """Layers with an axis of one tap and stride 1."""
    return filled(nn.Sequential(nn.Conv2d(1, 2, (4, 1), stride=(2, 1)), nn.ConvTranspose2d(2, 1, (1, 3), stride=(1, 2))))


def bfloat16() -> nn.Module:
    return filled(nn.Sequential(nn.Conv1d(2, 4, 3, stride=2), nn.Conv1d(4, 2, 3, dilation=2)), torch.bfloat16)


INPUTS: dict[str, tuple[int, ...]] = {
    "layers": (1, 2, 17, 16),
    "sized": (1, 2, 16, 20),
    "pooled": (2, 4, 21),
    "functional": (2, 4, 21),
    "graph": (2, 4, 21),
    "normed": (2, 4, 21),
    "shared": (1, 2, 11, 12),
    "large": (1, 2, 13, 14),
    "volume": (1, 1, 5, 9, 8),
    "root": (2, 21),
    "spectra": (1, 1, 9, 5),
    "bfloat16": (1, 2, 21),
}
"""Factory -> shape of its input."""


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A model and its input."""
    factory: Callable[[], nn.Module] = globals()[name]
    model = factory()
    return model, numbers(INPUTS[name], 50).to(next(model.parameters()).dtype)


# What config.toml and options.toml name


def classifier() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(
        OrderedDict(
            down=nn.Conv2d(1, 4, 3, stride=2, padding=1),
            norm=nn.BatchNorm2d(4),
            relu=nn.ReLU(),
            across=nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4),
            up=nn.ConvTranspose2d(4, 3, 4, stride=2, padding=1),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
        )
    )
    return filled(model), numbers((1, 1, 12, 12), 50).double()


def batches() -> list[tuple[Tensor, Tensor]]:
    """For training, three of four pictures."""
    return [(numbers((4, 1, 12, 12), 60 + n), torch.arange(4) % 3) for n in range(3)]


def validation() -> list[tuple[Tensor, Tensor]]:
    return [(numbers((4, 1, 12, 12), 70), torch.arange(4) % 3)]


def pairs() -> list[tuple[Tensor, Tensor]]:
    """Inputs of ``large``, and what it should give."""
    return [(numbers((1, 2, 13, 14), 80 + n), numbers((1, 2, 4, 4), 90 + n)) for n in range(2)]


def loss(scores: Tensor, classes: Tensor) -> Tensor:
    return F.cross_entropy(scores, classes)


def options() -> tuple[nn.Module, Tensor]:
    """One site for each rule of options.toml, one for its default, and one left out."""
    model = nn.Sequential(
        OrderedDict(
            large=nn.Conv2d(2, 2, 7, padding=3),
            near=nn.Conv2d(2, 4, 3, padding=2, dilation=2),
            far=nn.Conv2d(4, 4, 3, padding=3, dilation=3),
            down=nn.Conv2d(4, 4, 3, stride=2, padding=1),
            paper=nn.Conv2d(4, 4, 2, stride=2),
            up=nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1),
            head=nn.ConvTranspose2d(4, 2, 2, stride=2),
        )
    )
    return filled(model), numbers((1, 2, 16, 16), 50)


class Forms(nn.Module):
    """Sites that can take several forms when compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.far = nn.Conv2d(4, 4, 3, dilation=4, padding=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.far(x)


def forms() -> tuple[nn.Module, Tensor]:
    return filled(Forms(), torch.float32), numbers((1, 4, 12, 12), 50).float()
