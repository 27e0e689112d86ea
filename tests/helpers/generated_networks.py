"""Random networks, one for each seed: what models do with convolutions, in combinations that nobody wrote down."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


@dataclass(frozen=True)
class Generated:
    """A network in float64 and evaluation mode, its inputs, and what is in it, in words."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    made_of: tuple[str, ...]


def network(seed: int) -> Generated:
    """The network of this seed. The same each time, whatever was drawn before."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    ndim = draw.choice((1, 2, 2, 2, 3))
    channels = draw.choice((2, 4, 6))
    made = Maker(draw, ndim, channels)
    blocks = [made.block() for _ in range(draw.randint(2, 4))]
    if set(made.words) <= {"plain", "functional"}:  # perhaps nothing to rewrite
        made.words.append("dilated")
        blocks.append(made.dilated())
    model = Network(blocks, ndim, channels, shared=draw.random() < 0.3)
    size = tuple(draw.randint(9, 13) for _ in range(ndim)) if ndim < 3 else (8, 7, 9)
    x = torch.randn(draw.choice((1, 2)), channels, *size)
    return Generated(model.double().eval(), (x.double(),), tuple(made.words))


class Maker:
    """Blocks that take and give ``channels``; ``words`` has what was made."""

    def __init__(self, draw: random.Random, ndim: int, channels: int) -> None:
        self.draw, self.ndim, self.channels = draw, ndim, channels
        self.words: list[str] = []

    def block(self) -> nn.Module:
        kinds: list[Callable[[], nn.Module]] = [
            self.plain, self.dilated, self.strided, self.up, self.residual, self.branches, self.functional, self.parametrized,
            self.subclass, self.another_method, self.region, self.methods, self.twice, self.mixed,
        ]  # fmt: skip
        halving = (self.strided, self.functional)
        if any(kind.__name__ in self.words for kind in halving):
            kinds = [kind for kind in kinds if kind not in halving]  # else reflections would not fit
        kind = self.draw.choice(kinds)
        self.words.append(kind.__name__)
        return kind()

    def conv(self, **options: Any) -> nn.Module:
        """Kernel size, padding mode and groups drawn; by default of the same output size."""
        kernel = options.pop("kernel_size", self.draw.choice((1, 3, 3, 5) if self.ndim < 3 else (1, 3)))
        dilation = options.pop("dilation", 1)
        extent = dilation * (kernel - 1) + 1
        options.setdefault("padding", self.draw.choice((extent // 2, "same")) if options.get("stride", 1) == 1 else extent // 2)
        options.setdefault("padding_mode", self.draw.choice(PADDING_MODES))
        options.setdefault("groups", self.draw.choice((1, 1, 2, self.channels)))
        kind = options.pop("kind", CONVS[self.ndim - 1])
        bias = self.draw.random() < 0.7
        return kind(self.channels, self.channels, kernel, dilation=dilation, bias=bias, **options)

    def norm(self) -> nn.Module:
        return self.draw.choice((nn.Identity(), (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[self.ndim - 1](self.channels)))

    def plain(self) -> nn.Module:
        return nn.Sequential(self.conv(), self.norm(), self.draw.choice((nn.Tanh(), nn.GELU(), nn.Identity())))

    def dilated(self) -> nn.Module:
        dilation = self.draw.choice((2, 3) if self.ndim < 3 else (2,))
        return nn.Sequential(self.conv(kernel_size=3, dilation=dilation), self.norm(), nn.Tanh())

    def strided(self) -> nn.Module:
        return nn.Sequential(
            self.conv(kernel_size=self.draw.choice((2, 3)), stride=2, padding_mode=self.small_mode()), nn.Tanh()
        )

    def small_mode(self) -> str:
        return self.draw.choice(("zeros", "replicate"))

    def up(self) -> nn.Module:
        kind = TRANSPOSED[self.ndim - 1]
        kernel, extra = self.draw.choice((2, 3, 4)), self.draw.choice((0, 1))
        groups = self.draw.choice((1, self.channels))
        layer = kind(self.channels, self.channels, kernel, stride=2, padding=kernel // 2, output_padding=extra, groups=groups)
        return nn.Sequential(layer, nn.Tanh(), Fit(self.ndim))

    def residual(self) -> nn.Module:
        return Residual(self.conv(kernel_size=3, dilation=2))

    def branches(self) -> nn.Module:
        return Branches([self.conv(), self.conv(kernel_size=3, dilation=2), nn.Identity()])

    def functional(self) -> nn.Module:
        stride, dilation, computed, how = (self.draw.choice(c) for c in ((1, 2), (1, 2), (False, True), Functional.HOWS))
        return Functional(self.ndim, self.channels, stride, dilation, computed, how)  # pyright: ignore[reportArgumentType]

    def parametrized(self) -> nn.Module:
        conv = self.conv(kernel_size=3, dilation=2)
        return parametrizations.weight_norm(conv) if self.draw.random() < 0.6 else parametrizations.orthogonal(conv)

    def subclass(self) -> nn.Module:
        return self.conv(kernel_size=3, dilation=2, groups=1, kind=standardised(self.ndim), padding=2, padding_mode="zeros")

    def another_method(self) -> nn.Module:
        return self.conv(kernel_size=3, dilation=2, groups=1, kind=doubling(self.ndim), padding=2, padding_mode="zeros")

    def region(self) -> nn.Module:
        how = self.draw.choice(("autocast", "no autocast", "grad", "cast"))
        self.words.append(how)
        return Region(self.conv(kernel_size=3, dilation=2), how)

    def methods(self) -> nn.Module:
        return Methods(
            self.conv(kernel_size=3, stride=2, padding=1, padding_mode="zeros"), self.conv(kernel_size=3, dilation=2)
        )

    def twice(self) -> nn.Module:
        conv = self.conv(kernel_size=3, dilation=2)
        return nn.Sequential(conv, nn.Tanh(), conv)

    def mixed(self) -> nn.Module:
        return Mixed(self.conv(kernel_size=3, dilation=2))


class Network(nn.Module):
    """Blocks one after the other, the last of them ``shared`` with a second path; the output pooled and not."""

    def __init__(self, blocks: list[nn.Module], ndim: int, channels: int, shared: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.again = blocks[0] if shared else nn.Identity()
        self.head = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for block in self.blocks:
            x = block(x)
        x = self.again(x)
        return {"scores": self.head(x.flatten(2).mean(-1)), "features": x}


class Fit(nn.Module):
    """The middle of what is too large, so that sizes don't grow."""

    def __init__(self, ndim: int) -> None:
        super().__init__()
        self.ndim = ndim

    def forward(self, x: Tensor) -> Tensor:
        return x[(..., *(slice(0, 12) for _ in range(self.ndim)))]


class Residual(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.conv(x))


class Branches(nn.Module):
    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([branch(x) for branch in self.branches]).mean(0)


class Functional(nn.Module):
    """Calls F.convNd in a method, with a weight of its own, or (``computed``) one that it computes. The method can be called by
    itself, too. ``how`` it comes to the function: by name, or as something that it keeps, or as a method that it keeps."""

    HOWS = ("name", "attribute", "method")

    def __init__(self, ndim: int, channels: int, stride: int, dilation: int, computed: bool, how: str) -> None:
        super().__init__()
        self.how = how
        if how == "attribute":
            self.call = (F.conv1d, F.conv2d, F.conv3d)[ndim - 1]
        elif how == "method":
            self.kept = self.convolved
        self.weight = nn.Parameter(torch.randn(channels, channels, *(3,) * ndim) / (channels * 3**ndim) ** 0.5)
        self.ndim, self.stride, self.dilation, self.computed = ndim, stride, dilation, computed

    def encode(self, x: Tensor) -> Tensor:
        return self.kept(x) if self.how == "method" else self.convolved(x)

    def convolved(self, x: Tensor) -> Tensor:
        weight = self.weight * 2 if self.computed else self.weight
        call = self.call if self.how == "attribute" else (F.conv1d, F.conv2d, F.conv3d)[self.ndim - 1]
        return call(x, weight, stride=self.stride, dilation=self.dilation, padding=self.dilation)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.encode(x))


class Region(nn.Module):
    """A convolution inside of a context, or cast to float32 and back."""

    def __init__(self, conv: nn.Module, how: str) -> None:
        super().__init__()
        self.conv, self.how = conv, how

    def forward(self, x: Tensor) -> Tensor:
        if "autocast" in self.how:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.how == "autocast"):
                return self.conv(x).to(x.dtype)
        if self.how == "grad":
            with torch.enable_grad():
                return self.conv(x)
        return self.conv(x.float().to(x.dtype))


class Methods(nn.Module):
    """A forward of two methods, which can be called by themselves."""

    def __init__(self, down: nn.Module, refine: nn.Module) -> None:
        super().__init__()
        self.down, self.refine = down, refine

    def encode(self, x: Tensor) -> Tensor:
        return torch.tanh(self.down(x))

    def decode(self, x: Tensor, size: torch.Size) -> Tensor:
        return self.refine(F.interpolate(x, size=size[2:]))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x), x.shape)


class Mixed(nn.Module):
    """A convolution in float32 in a network of float64; ``Network.double`` doesn't reach it."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def _apply(self, fn: Any, recurse: bool = True) -> Mixed:
        super()._apply(fn, recurse)
        return super()._apply(lambda t: t.float() if t.is_floating_point() else t, recurse)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x.float()).to(x.dtype)


def standardised(ndim: int) -> type[nn.Module]:
    """A subclass with a forward of its own, which standardises its weight."""
    kind = CONVS[ndim - 1]

    def forward(self: Any, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(list(range(1, ndim + 2)), keepdim=True)
        return self._conv_forward(x, weight, self.bias)

    return type(f"Standardised{ndim}d", (kind,), {"forward": forward, "__module__": __name__})  # pyright: ignore[reportReturnType]


def doubling(ndim: int) -> type[nn.Module]:
    """A subclass with torch's forward, and another method that convolves by itself."""
    kind, call = CONVS[ndim - 1], (F.conv1d, F.conv2d, F.conv3d)[ndim - 1]

    def doubled(self: Any, x: Tensor) -> Tensor:
        return 2 * call(x, self.weight, self.bias, self.stride, self.padding, self.dilation)

    return type(f"Doubling{ndim}d", (kind,), {"doubled": doubled, "__module__": __name__})  # pyright: ignore[reportReturnType]
