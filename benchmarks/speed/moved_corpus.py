"""Networks of other packages, at the sizes that people run, and the fifteen small models of tests/corpus."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from moving import ROOT
from torch import Tensor, nn

sys.path.insert(0, str(ROOT / "tests"))
from corpus.models import MODELS, build
from corpus.torchvision_shim import import_torchvision

Example = tuple[nn.Module, Any]


def resnet18() -> Example:
    import_torchvision()
    from torchvision.models import resnet18  # pyright: ignore[reportMissingImports]

    return resnet18(weights=None), torch.randn(1, 3, 224, 224)


class Main(nn.Module):
    """A network with the first of its outputs alone."""

    def __init__(self, inner: nn.Module, name: str) -> None:
        super().__init__()
        self.inner, self.name = inner, name

    def forward(self, x: Tensor) -> Tensor:
        found = self.inner(x)
        return found[self.name] if isinstance(found, dict) else getattr(found, self.name)


def deeplabv3() -> Example:
    import_torchvision()
    from torchvision.models.segmentation import deeplabv3_resnet50  # pyright: ignore[reportMissingImports]

    return Main(deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21), "out"), torch.randn(1, 3, 256, 256)


def mobilenet_deeplab() -> Example:
    from transformers import MobileNetV2Config, MobileNetV2ForSemanticSegmentation  # pyright: ignore[reportMissingImports]

    config = MobileNetV2Config(depth_multiplier=1.0, output_stride=8, num_labels=21, tf_padding=True)
    return Main(MobileNetV2ForSemanticSegmentation(config), "logits"), torch.randn(1, 3, 256, 256)


def wav2vec2() -> Example:
    from transformers import Wav2Vec2Config  # pyright: ignore[reportMissingImports]
    from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2FeatureEncoder  # pyright: ignore[reportMissingImports]

    encoder = Wav2Vec2FeatureEncoder(Wav2Vec2Config())
    encoder._requires_grad = False  # else it asks its input for a gradient
    return encoder, torch.randn(1, 16000)


def unet(ndim: int, channels: tuple[int, ...], size: int) -> Example:
    from monai.networks.nets import UNet  # pyright: ignore[reportMissingImports]

    model = UNet(ndim, 1, 2, channels=channels, strides=(2,) * (len(channels) - 1), num_res_units=2)
    return model, torch.randn(1, 1, *(size,) * ndim)


NETWORKS: dict[str, Callable[[], Example]] = {
    "ResNet-18, 224x224": resnet18,
    "deeplabv3_resnet50, 256x256": deeplabv3,
    "MobileNetV2-DeepLabV3+, 256x256": mobilenet_deeplab,
    "wav2vec2's feature encoder, 16000 samples": wav2vec2,
    "MONAI U-Net 2-d, 32 to 256 channels, 128x128": functools.partial(unet, 2, (32, 64, 128, 256), 128),
    "MONAI U-Net 3-d, 16 to 128 channels, 48^3": functools.partial(unet, 3, (16, 32, 64, 128), 48),
}
SMALL: dict[str, Callable[[], Example]] = {name: functools.partial(build, name) for name in MODELS}
