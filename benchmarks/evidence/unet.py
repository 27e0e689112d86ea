"""e. Strided and transposed convolutions -> CC in a U-Net: other input sizes, scale ensembles, shifts.

python benchmarks/evidence/unet.py           # writes reports/evidence/unet.json, .md and .png
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from common import Batch, Claim, run
from segmentation import CROP, pool
from segmentation import batch as crops
from torch import Tensor, nn

import ccrewrite
from ccrewrite.demo.canvases import CLASSES
from ccrewrite.demo.network import conv_bn
from ccrewrite.demo.train import evaluate
from ccrewrite.report.metrics import resize_images

SIZES = (32, 40, 48, 64)
WEIGHTS = torch.tensor([1.0] * (CLASSES - 1) + [0.2])  # background: most of the pixels
ROOMS = (CROP - 8, CROP, CROP + 8)


class UNet(nn.Module):
    """Three strided convolutions down, three transposed ones up; only the first and the last see the input's own size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 5, 2, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.down1 = conv_bn(16, 32, 3, stride=2)
        self.down2 = conv_bn(32, 48, 3, stride=2)
        self.middle = conv_bn(48, 48, 3)
        self.up2 = nn.ConvTranspose2d(48, 32, 4, stride=2, padding=1)
        self.mix2 = conv_bn(64, 32, 3)
        self.up1 = nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1)
        self.mix1 = conv_bn(32, 16, 3)
        self.head = nn.ConvTranspose2d(16, CLASSES, 4, stride=2, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        stem = self.stem(image)
        down = self.down1(stem)
        middle = self.middle(self.down2(down))
        up = self.mix2(torch.cat([F.relu(self.up2(middle)), down], 1))
        return self.head(self.mix1(torch.cat([F.relu(self.up1(up)), stem], 1)))


class Resized(nn.Module):
    """The untouched network at any input size: images are brought to ``room`` pixels, its own size, and its scores back."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.room = model, CROP

    def forward(self, image: Tensor) -> Tensor:
        return resize_images(self.model(resize_images(image, self.room)), image.shape[-1])


class AnySize(nn.Module):
    """The rewritten network at any input size: its stem samples the image, its head writes the scores, and inside it is as if
    the image had ``room`` pixels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self.room = CROP
        for layer in (self.model.stem[0], self.model.head):
            layer.sampling.rescaled = True

    def forward(self, image: Tensor) -> Tensor:
        self.model.stem[0].sampling.output_size = self.room // 2
        self.model.head.sampling.output_size = image.shape[-1]
        return self.model(image)


def cc(model: nn.Module) -> nn.Module:
    return AnySize(ccrewrite.rewrite(model, torch.zeros(2, 1, CROP, CROP)).model)


class Ensemble(nn.Module):
    """Class probabilities, averaged over inner sizes."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, image: Tensor) -> Tensor:
        found = []
        for self.model.room in ROOMS:
            found.append(self.model(image).softmax(1))
        self.model.room = CROP
        return torch.stack(found).mean(0).log()


def consistency(model: nn.Module, images: Tensor, size: int = 40, pairs: int = 3) -> float:
    """Share of the pixels, seen in two crops shifted against each other, that are put into the same class in both."""
    random, same = torch.Generator().manual_seed(0), list[float]()
    room = images.shape[-1] - size
    for _ in range(pairs):
        places = torch.randint(0, room + 1, (2, 2), generator=random)
        whole = torch.full((2, len(images), *images.shape[2:]), -1)
        for seen, (top, left) in zip(whole, places.tolist(), strict=True):
            cut = (..., slice(top, top + size), slice(left, left + size))
            seen[cut] = torch.cat([model(part[cut]).argmax(1) for part in images.split(100)])
        both = (whole >= 0).all(0)
        same.append(float((whole[0] == whole[1])[both].float().mean()))
    return sum(same) / pairs


def at_size(images: Tensor, labels: Tensor, size: int) -> Batch:
    wanted = F.interpolate(labels[:, None].float(), (size, size), mode="nearest-exact")[:, 0].long()
    return resize_images(images, size), wanted


def batch(random: torch.Generator, first: bool) -> Batch:
    images, labels = crops(random, first)
    size = CROP if first else SIZES[int(torch.randint(0, len(SIZES), (), generator=random))]
    return at_size(images, labels, size)


@torch.no_grad()
def score(model: nn.Module, split: str) -> dict[str, float]:
    images, labels = pool(split)
    sizes = {f"mIoU at {size}": 100 * evaluate(model, *at_size(images, labels, size)).mIoU for size in SIZES}
    return {
        "mIoU, mean": sum(sizes.values()) / len(sizes),
        **sizes,
        "mIoU, ensemble": 100 * evaluate(Ensemble(model), images, labels).mIoU,
        "shift consistency": 100 * consistency(model, images),
    }


CLAIM = Claim(
    name="unet",
    about="Digits as in the segmentation task; trained on 48 x 48 pixels, fine-tuned on images of all sizes. The untouched "
    "network gets images resized to 48 pixels; its scores are resized back. Ensemble: as if for 40, 48 and 56 pixels.",
    network=UNet,
    batch=batch,
    loss=lambda scores, labels: F.cross_entropy(scores, labels, weight=WEIGHTS),
    score=score,
    arms={"untouched": Resized, "CC": cc},
    train_steps=900,
    train_rate=1e-2,
    tune_steps=250,
    rates=(3e-3, 1e-2, 3e-2, 1e-1),
)

if __name__ == "__main__":
    run("unet", "Strided and transposed convolutions made CC in a U-Net", [CLAIM])
