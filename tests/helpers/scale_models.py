"""Small models of the families whose internal sizes hang together in different ways; each builder gives model and inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Example = tuple[nn.Module, Tensor]
MODELS: dict[str, Callable[[], Example]] = {}
CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
UPS: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def example(builder: Callable[[], Example]) -> Callable[[], Example]:
    MODELS[builder.__name__] = builder
    return builder


class Residual(nn.Module):
    """A basic ResNet block; strided ones have a strided 1x1 shortcut."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outs)
        self.conv2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outs)
        self.downsample = nn.Conv2d(ins, outs, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.downsample(x))


class ResNet(nn.Module):
    def __init__(self, pooled: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Residual(8, 8, 1))
        self.layer2 = nn.Sequential(Residual(8, 16, 2), Residual(16, 16, 1))
        self.layer3 = nn.Sequential(Residual(16, 16, 2))
        self.layer4 = nn.Sequential(Residual(16, 24, 2))
        self.pool = nn.AdaptiveAvgPool2d(1) if pooled else nn.Identity()
        self.fc = nn.Linear(24 if pooled else 24 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.pool(x), 1))


@example
def resnet() -> Example:
    return ResNet(), torch.randn(2, 3, 96, 96)


@example
def flattened() -> Example:
    return ResNet(pooled=False), torch.randn(2, 3, 64, 64)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.dwconv(x).permute(0, 2, 3, 1)))
        return x + y.permute(0, 3, 1, 2)


@example
def convnext() -> Example:
    stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), LayerNorm2d(8))
    down = [nn.Sequential(LayerNorm2d(c), nn.Conv2d(c, 2 * c, 2, 2)) for c in (8, 16)]
    parts = (stem, ConvNeXtBlock(8), down[0], ConvNeXtBlock(16), down[1], ConvNeXtBlock(32))
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)), torch.randn(1, 3, 64, 64)


class UNet(nn.Module):
    """Two levels; skips are concatenated or added."""

    def __init__(self, ndim: int, add: bool) -> None:
        super().__init__()
        conv, up, self.add = CONVS[ndim], UPS[ndim], add
        both = 1 if add else 2
        self.enc0 = conv(1, 4, 3, padding=1)
        self.down1 = conv(4, 8, 3, stride=2, padding=1)
        self.down2 = conv(8, 8, 3, stride=2, padding=1)
        self.up2 = up(8, 8, 2, stride=2)
        self.dec2 = conv(8 * both, 8, 3, padding=1)
        self.up1 = up(8, 4, 4, stride=2, padding=1)
        self.head = conv(4 * both, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x0 = F.relu(self.enc0(x))
        x1 = F.relu(self.down1(x0))
        x2 = F.relu(self.down2(x1))
        y1 = F.relu(self.dec2(self.join(self.up2(x2), x1)))
        return self.head(self.join(self.up1(y1), x0))

    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        return x + skip if self.add else torch.cat([skip, x], 1)


@example
def unet_cat_2d() -> Example:
    return UNet(2, add=False), torch.randn(1, 1, 32, 40)


@example
def unet_add_2d() -> Example:
    return UNet(2, add=True), torch.randn(1, 1, 32, 40)


@example
def unet_cat_3d() -> Example:
    return UNet(3, add=False), torch.randn(1, 1, 16, 16, 12)


@example
def unet_add_3d() -> Example:
    return UNet(3, add=True), torch.randn(1, 1, 16, 16, 12)


class Downsampler(nn.Module):
    """ERFNet's: a strided convolution beside a max pool."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(ins, outs - ins, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(outs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(torch.cat([self.conv(x), F.max_pool2d(x, 2, 2)], 1)))


@example
def erfnet() -> Example:
    """A strided stem first: its size is free, and the downsamplers follow it."""
    up: dict[str, Any] = {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}
    layers = [nn.Conv2d(3, 4, 3, 2, 1), Downsampler(4, 8), Downsampler(8, 16), nn.ConvTranspose2d(16, 8, **up), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(8, 4, **up), nn.ConvTranspose2d(4, 5, 2, 2)), torch.randn(1, 3, 64, 64)


@example
def vocoder() -> Example:
    layers: list[nn.Module] = [nn.Conv1d(10, 16, 7, padding=3)]
    for ins, outs, factor in ((16, 8, 4), (8, 8, 4), (8, 4, 2)):
        layers += [nn.LeakyReLU(0.1), nn.ConvTranspose1d(ins, outs, 2 * factor, factor, factor // 2)]
        layers += [nn.Conv1d(outs, outs, 3, padding=2, dilation=2)]
    return nn.Sequential(*layers, nn.Conv1d(4, 1, 7, padding=3), nn.Tanh()), torch.randn(1, 10, 12)


class ViT(nn.Module):
    """Strided stem, patch embedding, learned position embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.patch = nn.Conv2d(8, 16, 4, stride=4)
        self.position = nn.Parameter(torch.randn(1, 16, 16) / 10)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(self.stem(x)).flatten(2).transpose(1, 2) + self.position
        return self.head((x + self.attention(x, x, x)[0]).mean(1))


@example
def vit() -> Example:
    return ViT(), torch.randn(1, 3, 32, 32)


class SqueezeExcite(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(dim, 4, 1), nn.ReLU(), nn.Conv2d(4, dim, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class Inverted(nn.Module):
    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        wide = 2 * ins
        self.keeps = stride == 1 and ins == outs
        self.body = nn.Sequential(
            *(nn.Conv2d(ins, wide, 1), nn.BatchNorm2d(wide), nn.ReLU6()),
            *(nn.Conv2d(wide, wide, 3, stride, 1, groups=wide), nn.BatchNorm2d(wide), nn.ReLU6(), SqueezeExcite(wide)),
            *(nn.Conv2d(wide, outs, 1), nn.BatchNorm2d(outs)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.keeps else self.body(x)


@example
def mobilenet() -> Example:
    blocks = [Inverted(8, 8, 1), Inverted(8, 16, 2), Inverted(16, 16, 1), Inverted(16, 24, 2)]
    stem = nn.Conv2d(3, 8, 3, 2, 1)
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5)), torch.randn(1, 3, 64, 64)


class Windows(nn.Module):
    """Patches in windows of 4 x 4, as Swin's: only multiples of the window fit."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 2, stride=2)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        n, c, h, w = x.shape
        windows = x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1)
        return self.head(self.norm(windows).mean((1, 2, 3, 4)))


@example
def windows() -> Example:
    return Windows(), torch.randn(1, 3, 32, 32)


class Numbers(nn.Module):
    """Code that makes numbers of sizes: TF's "same" padding, as computed in many a forward; interpolation to ``int(...)``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.conv = nn.Conv2d(8, 8, 3)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(self.same(x, 2))
        y = y + self.conv(self.same(y, 1))
        z = F.interpolate(self.down(y), size=(int(y.shape[2]), int(y.shape[3])), mode="bilinear")
        return F.interpolate(self.head(y + z), size=x.shape[2:])

    @staticmethod
    def same(x: Tensor, stride: int) -> Tensor:
        pads: list[int] = []
        for size in (int(x.shape[-1]), int(x.shape[-2])):
            total = max((-(-size // stride) - 1) * stride + 3 - size, 0)
            pads += [total // 2, total - total // 2]
        return F.pad(x, pads)


@example
def numbers() -> Example:
    return Numbers(), torch.randn(1, 3, 64, 48)


class Asking(nn.Module):
    """Code that asks whether sizes are equal, and can do with either answer."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, 4, 3, 2, 1)
        self.coarse = nn.Conv2d(3, 4, 5, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        fine, coarse = self.fine(x), self.coarse(x)
        if fine.shape != coarse.shape:
            coarse = F.interpolate(coarse, size=fine.shape[2:])
        return (fine + coarse).mean((2, 3))


@example
def asking() -> Example:
    return Asking(), torch.randn(1, 3, 32, 32)


class Insisting(Asking):
    """Code that asks whether sizes are equal, and can't do otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        fine, coarse = self.fine(x), self.coarse(x)
        if fine.shape != coarse.shape:
            raise ValueError("maps must be equally large")
        return fine.mean((2, 3)) + coarse.mean((2, 3))


@example
def insisting() -> Example:
    return Insisting(), torch.randn(1, 3, 32, 32)


class Repeated(nn.Module):
    """One strided convolution at two sizes, between others."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 3, 2, 1)
        self.down = nn.Conv2d(3, 3, 3, 2, 1)
        self.last = nn.Conv2d(3, 4, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.down(self.down(self.stem(x)))).mean((2, 3))


@example
def repeated() -> Example:
    return Repeated(), torch.randn(1, 3, 32, 32)


class Cropped(nn.Module):
    """A decoder that makes more than it needs, and cuts: only what is too short shows."""

    def __init__(self) -> None:
        super().__init__()
        self.up1 = nn.ConvTranspose1d(4, 4, 4, 2)
        self.up2 = nn.ConvTranspose1d(4, 1, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up2(self.up1(x))[..., : 4 * x.shape[-1]]


@example
def cropped() -> Example:
    return Cropped(), torch.randn(1, 4, 16)


@example
def normed() -> Example:
    """Each axis may be 1, but not both at once: a norm over one sample is refused."""
    layers = [nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.InstanceNorm2d(4), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers), torch.randn(1, 1, 8, 8)
