"""A DeepLab head whose taps learn where to look: digits on canvases, segmented.

On the trained encoder that ships with the package, a head of dilated convolutions side by side (ASPP) is trained. Then these
become DCLS layers, and both heads are fine-tuned with the same batches, so that the difference is the geometry's.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ccrewrite
from ccrewrite.demo.canvases import CLASSES, canvases
from ccrewrite.demo.network import conv_bn, segmenter


class DeepLab(nn.Module):
    """An encoder of stride 4, dilated convolutions side by side, classes for each pixel."""

    def __init__(self, encoder: nn.Module, channels: int = 64) -> None:
        super().__init__()
        self.encoder = encoder
        self.aspp = nn.ModuleList(
            nn.Sequential(conv_bn(channels, channels, 3, dilation=d, groups=channels), conv_bn(channels, channels, 1))
            for d in (2, 4, 6)
        )
        self.head = nn.Conv2d(3 * channels, CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.classify(self.encoder(image))

    def classify(self, features: Tensor) -> Tensor:
        scores = self.head(torch.cat([branch(features) for branch in self.aspp], dim=1))
        return F.interpolate(scores, scale_factor=4, mode="bilinear")


def train(model: DeepLab, features: Tensor, labels: Tensor, steps: int) -> None:
    """The head alone, on features that are computed once."""
    optimizer = torch.optim.AdamW(ccrewrite.training.param_groups(model, lr=1e-2))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [g["lr"] for g in optimizer.param_groups], steps)
    order = torch.Generator().manual_seed(1)
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(features), (16,), generator=order)
        loss = F.cross_entropy(model.classify(features[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: DeepLab, features: Tensor, labels: Tensor) -> float:
    """Of the pixels of digits."""
    found = torch.cat([model.classify(batch).argmax(1) for batch in features.split(50)])
    return float((found == labels)[labels != CLASSES - 1].float().mean())


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    trained = segmenter()
    encoder = nn.Sequential(trained.stem, trained.down1, trained.down2).requires_grad_(False)
    images, labels = canvases(500, seed=0, split="train")
    test_images, test_labels = canvases(150, seed=0, split="test")
    features, test_features = encoder(images), encoder(test_images)

    model = DeepLab(encoder).eval()
    train(model, features, labels, steps=200)
    result: Any = ccrewrite.rewrite(model, images[:2], kinds=["dilated"])
    print(result.summary())
    untouched = copy.deepcopy(model)
    for name, network in (("original", untouched), ("rewritten", result.model)):
        before = accuracy(network, test_features, test_labels)
        train(network, features, labels, steps=150)
        after = accuracy(network, test_features, test_labels)
        print(f"{name}: {before:.3f} of the digits' pixels right, {after:.3f} fine-tuned")

    moved = [branch[0][0].sampling.offset.detach().abs().mean() for branch in result.model.aspp]
    print("taps moved, in samples, by layer:", ", ".join(f"{m:.2f}" for m in moved))
    folded = ccrewrite.fold(result, images[:2])
    print("folded to plain layers:", ", ".join(site.name for site in folded), "| outputs the same:", folded.check.ok)


if __name__ == "__main__":
    main()
