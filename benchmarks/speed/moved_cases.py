"""Layers and networks at the sizes that people train: what moved geometry costs is measured on them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Layer(NamedTuple):
    """One convolution of ``ndim`` axes and inputs of ``size`` samples along each."""

    ndim: int
    channels: tuple[int, int]
    kernel: int
    size: int
    dilation: int = 1
    stride: int = 1
    groups: int = 1
    transposed: bool = False

    def build(self) -> tuple[nn.Module, Tensor]:
        extra = self.kernel - self.stride
        options: dict[str, Any] = {"stride": self.stride, "groups": self.groups, "dilation": self.dilation}
        if self.transposed:
            padding, output_padding = (extra + 1) // 2, extra % 2
            layer = TRANSPOSED[self.ndim - 1](
                *self.channels, self.kernel, padding=padding, output_padding=output_padding, **options
            )
        else:
            layer = CONV[self.ndim - 1](*self.channels, self.kernel, padding=self.dilation * (self.kernel - 1) // 2, **options)
        return layer, torch.randn(1, self.channels[0], *(self.size,) * self.ndim)


SHARED = {
    "1-d k2 d16, 64 -> 128, 4000": Layer(1, (64, 128), 2, 4000, 16),
    "1-d k2 d512, 64 -> 128, 4000": Layer(1, (64, 128), 2, 4000, 512),
    "1-d k3 d8, 128, 4000": Layer(1, (128, 128), 3, 4000, 8),
    "1-d k3 d128, 128, 4000": Layer(1, (128, 128), 3, 4000, 128),
    "1-d k7 d5, 64, 2048": Layer(1, (64, 64), 7, 2048, 5),
    "1-d k11 d5, 128, 256": Layer(1, (128, 128), 11, 256, 5),
    "2-d k3 d2, 64, 64x64": Layer(2, (64, 64), 3, 64, 2),
    "2-d k3 d12, 64, 64x64": Layer(2, (64, 64), 3, 64, 12),
    "2-d k3 d2, 256, 32x32": Layer(2, (256, 256), 3, 32, 2),
    "2-d k3 d4, 512, 32x32": Layer(2, (512, 512), 3, 32, 4),
    "2-d k3 d12, 2048 -> 256, 32x32": Layer(2, (2048, 256), 3, 32, 12),
    "3-d k3 d2, 64, 16x16x16": Layer(3, (64, 64), 3, 16, 2),
}
DEPTHWISE = {
    "1-d depthwise k3 d8, 128, 4000": Layer(1, (128, 128), 3, 4000, 8, groups=128),
    "1-d depthwise k3 d128, 512, 3000": Layer(1, (512, 512), 3, 3000, 128, groups=512),
    "2-d depthwise k3 d2, 384, 32x32": Layer(2, (384, 384), 3, 32, 2, groups=384),
    "2-d depthwise k3 d4, 960, 32x32": Layer(2, (960, 960), 3, 32, 4, groups=960),
    "2-d depthwise k3 d12, 96, 56x56": Layer(2, (96, 96), 3, 56, 12, groups=96),
}
CONTINUOUS = {
    "CC k3 s2, 64 -> 128, 56x56": Layer(2, (64, 128), 3, 56, stride=2),
    "CC k3 s2, 256 -> 512, 14x14": Layer(2, (256, 512), 3, 14, stride=2),
    "CC k1 s2, 256 -> 512, 64x64": Layer(2, (256, 512), 1, 64, stride=2),
    "CC k2 s2, 192 -> 384, 28x28": Layer(2, (192, 384), 2, 28, stride=2),
    "CC transposed k3 s2, 32 -> 2, 24^3": Layer(3, (32, 2), 3, 24, stride=2, transposed=True),
    "CC transposed k2 s2, 64 -> 32, 12^3": Layer(3, (64, 32), 2, 12, stride=2, transposed=True),
}


class WaveNet(nn.Module):
    """Gated causal convolutions of growing dilation (arXiv 1609.03499), 64 -> 128 channels."""

    def __init__(self, channels: int = 64, layers: int = 9) -> None:
        super().__init__()
        self.start = nn.Conv1d(1, channels, 1)
        self.dilated = nn.ModuleList(nn.Conv1d(channels, 2 * channels, 2, dilation=2**i) for i in range(layers))
        self.residual = nn.ModuleList(nn.Conv1d(channels, channels, 1) for _ in range(layers))
        self.skip = nn.ModuleList(nn.Conv1d(channels, channels, 1) for _ in range(layers))
        self.end = nn.Conv1d(channels, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.start(x), torch.zeros(())
        dilated: Any
        for dilated, residual, skip in zip(self.dilated, self.residual, self.skip, strict=True):
            signal, gate = dilated(F.pad(x, (dilated.dilation[0], 0))).chunk(2, 1)
            hidden = signal.tanh() * gate.sigmoid()
            x, total = x + residual(hidden), total + skip(hidden)
        return self.end(total.relu())


class Causal(nn.Conv1d):
    """Pads in a forward of its own, as TCNs do."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (self.dilation[0] * (self.kernel_size[0] - 1), 0)))


class TCN(nn.Module):
    """Residual causal convolutions (arXiv 1803.01271), 128 channels."""

    def __init__(self, channels: int = 128, layers: int = 6) -> None:
        super().__init__()
        self.start = nn.Conv1d(16, channels, 1)
        self.blocks = nn.ModuleList(Causal(channels, channels, 3, dilation=2**i) for i in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        for block in self.blocks:
            x = x + block(x).relu()
        return x


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.dilated = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=d * (kernel - 1) // 2) for d in (1, 3, 5)
        )
        self.plain = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for dilated, plain in zip(self.dilated, self.plain, strict=True):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, 0.1)), 0.1))
        return x


class HiFiGan(nn.Module):
    """The generator of arXiv 2010.05646, 256 channels."""

    def __init__(self, channels: int = 256) -> None:
        super().__init__()
        self.start = nn.Conv1d(80, channels, 7, padding=3)
        self.up, self.residual = nn.ModuleList(), nn.ModuleList()
        for kernel, stride in ((16, 8), (16, 8), (4, 2), (4, 2)):
            self.up.append(nn.ConvTranspose1d(channels, channels // 2, kernel, stride, (kernel - stride) // 2))
            channels //= 2
            self.residual.append(nn.ModuleList(ResidualBlock(channels, k) for k in (3, 7, 11)))
        self.end = nn.Conv1d(channels, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        blocks: Any
        for up, blocks in zip(self.up, self.residual, strict=True):
            x = up(F.leaky_relu(x, 0.1))
            x = torch.stack([block(x) for block in blocks]).mean(0)
        return self.end(F.leaky_relu(x)).tanh()


class UNet(nn.Module):
    """Strided down, transposed up, with skips; 32 to 256 channels."""

    def __init__(self, ndim: int = 2, channels: tuple[int, ...] = (32, 64, 128, 256)) -> None:
        super().__init__()
        conv, transposed = CONV[ndim - 1], TRANSPOSED[ndim - 1]
        pairs = list(itertools.pairwise(channels))
        self.start = conv(1, channels[0], 3, padding=1)
        self.down = nn.ModuleList(conv(a, b, 3, stride=2, padding=1) for a, b in pairs)
        self.up = nn.ModuleList(transposed(b, a, 2, stride=2) for a, b in reversed(pairs))
        self.join = nn.ModuleList(conv(2 * a, a, 3, padding=1) for a, _ in reversed(pairs))
        self.end = conv(channels[0], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.start(x).relu(), []
        for down in self.down:
            skips.append(x)
            x = down(x).relu()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat((up(x), skips.pop()), 1)).relu()
        return self.end(x)


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "WaveNet, 64 -> 128 channels, 4000 samples": lambda: (WaveNet(), torch.randn(1, 1, 4000)),
    "TCN, 128 channels, 4000 samples": lambda: (TCN(), torch.randn(1, 16, 4000)),
    "HiFi-GAN, 256 channels, 32 frames": lambda: (HiFiGan(), torch.randn(1, 80, 32)),
    "U-Net 2-d, 32 to 256 channels, 128x128": lambda: (UNet(), torch.randn(1, 1, 128, 128)),
    "U-Net 3-d, 16 to 64 channels, 48^3": lambda: (UNet(3, (16, 32, 64)), torch.randn(1, 1, 48, 48, 48)),
}
