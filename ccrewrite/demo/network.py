"""The demo's network: strided encoder, dilated context, transposed decoder. Plain torch, nothing of ccrewrite in it."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccrewrite.demo.canvases import CLASSES, SIZE
from ccrewrite.ir.tensor_files import load_file

WEIGHTS = Path(__file__).with_name("segmenter.safetensors")


def conv_bn(inputs: int, outputs: int, kernel_size: int, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Sequential:
    padding = dilation * (kernel_size // 2)
    convolution = nn.Conv2d(inputs, outputs, kernel_size, stride, padding, dilation, groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class DigitSegmenter(nn.Module):
    """Class scores of every pixel: ``(N, 1, H, W)`` to ``(N, 11, H, W)``; H and W are multiples of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(1, 16, 3)
        self.down1 = conv_bn(16, 32, 3, stride=2)
        self.down2 = conv_bn(32, 64, 3, stride=2)
        self.context1 = conv_bn(64, 64, 3, dilation=2)
        self.context2 = conv_bn(64, 64, 3, dilation=4)
        self.context3 = nn.Sequential(conv_bn(64, 64, 5, dilation=2, groups=64), conv_bn(64, 64, 1))
        self.up1 = nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1)
        self.up2 = nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1)
        self.head = nn.Conv2d(16, CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        full = self.stem(image)
        half = self.down1(full)
        features = self.down2(half)
        for context in (self.context1, self.context2, self.context3):
            features = features + context(features)
        features = F.relu(self.up1(features) + half)
        features = F.relu(self.up2(features) + full)
        return self.head(features)


def segmenter(pretrained: bool = True) -> DigitSegmenter:
    """The network in eval mode, with the weights that the package ships (``python -m ccrewrite.demo.train`` makes them)
    or untrained.

    >>> segmenter()(example_inputs()).shape
    torch.Size([1, 11, 64, 64])
    """
    model = DigitSegmenter()
    if pretrained:
        model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


def example_inputs() -> Tensor:
    """One canvas-shaped input, ``(1, 1, 64, 64)`` float32."""
    return torch.rand(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
