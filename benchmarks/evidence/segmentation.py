"""a. Dilated convolutions -> DCLS in a small DeepLab: digits of many sizes among clutter.

python benchmarks/evidence/segmentation.py   # writes reports/evidence/segmentation.json, .md and .png
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from common import Batch, Claim, run
from torch import Tensor, nn

import ccrewrite
from ccrewrite.demo.canvases import CLASSES, SIZE, canvases
from ccrewrite.demo.network import conv_bn
from ccrewrite.demo.train import evaluate

CROP, CHANNELS = 48, 32
POOLS = {"train": (600, 0, "train"), "validation": (100, 1, "train"), "test": (200, 0, "test")}


class SmallDeepLab(nn.Module):
    """Stride 4, then atrous spatial pyramid pooling with separable convolutions (arXiv 1802.02611), then a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.low = conv_bn(1, 16, 3, stride=2)
        self.features = nn.Sequential(conv_bn(16, CHANNELS, 3, stride=2), conv_bn(CHANNELS, CHANNELS, 3))
        self.pyramid = nn.ModuleList(
            [conv_bn(CHANNELS, CHANNELS, 1)]
            + [
                nn.Sequential(conv_bn(CHANNELS, CHANNELS, 3, dilation=d, groups=CHANNELS), conv_bn(CHANNELS, CHANNELS, 1))
                for d in (2, 4, 6)
            ]
        )
        self.project = conv_bn(4 * CHANNELS, CHANNELS, 1)
        self.decoder = nn.Sequential(conv_bn(CHANNELS + 16, CHANNELS, 3), nn.Conv2d(CHANNELS, CLASSES, 1))

    def forward(self, image: Tensor) -> Tensor:
        low = self.low(image)
        features = self.features(low)
        context = self.project(torch.cat([branch(features) for branch in self.pyramid], 1))
        context = F.interpolate(context, low.shape[2:], mode="bilinear", align_corners=False)
        scores = self.decoder(torch.cat([context, low], 1))
        return F.interpolate(scores, image.shape[2:], mode="bilinear", align_corners=False)


@functools.cache
def pool(split: str) -> Batch:
    """Canvases; those for validation and testing are cropped once. The drawings of the test canvases are in no other."""
    images, labels = canvases(*POOLS[split])  # pyright: ignore[reportArgumentType]
    return (images, labels) if split == "train" else crop(images, labels, torch.Generator().manual_seed(0))


def crop(images: Tensor, labels: Tensor, random: torch.Generator) -> Batch:
    places = torch.randint(0, SIZE - CROP + 1, (len(images), 2), generator=random).tolist()
    cut = [(slice(top, top + CROP), slice(left, left + CROP)) for top, left in places]
    return torch.stack([i[0, a, b] for i, (a, b) in zip(images, cut, strict=True)])[:, None], torch.stack(
        [y[a, b] for y, (a, b) in zip(labels, cut, strict=True)]
    )


def batch(random: torch.Generator, first: bool) -> Batch:
    images, labels = pool("train")
    chosen = torch.randint(0, len(images), (10,), generator=random)
    return crop(images[chosen], labels[chosen], random)


def score(model: nn.Module, split: str) -> dict[str, float]:
    return {"mIoU, %": 100 * evaluate(model, *pool(split)).mIoU}


def dcls(model: nn.Module) -> nn.Module:
    return ccrewrite.rewrite(model, torch.zeros(2, 1, CROP, CROP), kinds=["dilated"]).model


CLAIM = Claim(
    name="segmentation",
    about="Digits of 14 to 28 pixels among strokes, uneven light and noise, crops of 48 x 48; depthwise convolutions of "
    "dilations 2, 4 and 6 on maps of 12 x 12. mIoU of 200 canvases.",
    network=SmallDeepLab,
    batch=batch,
    loss=F.cross_entropy,
    score=score,
    arms={"untouched": lambda m: m, "DCLS": dcls},
    train_steps=500,
    train_rate=1e-2,
    tune_steps=250,
    rates=(3e-3, 1e-2, 3e-2, 1e-1),
)

if __name__ == "__main__":
    run("segmentation", "Dilated convolutions made DCLS in a small DeepLab", [CLAIM])
