"""A gradual network (arXiv 2006.11120): built of CC layers whose feature maps shrink by a small factor at each layer.

    python examples/gradual.py                   # trains on scikit-learn's digits; about a minute

A network of strided convolutions halves its maps a few times, between layers that keep them. Here every layer takes part: each
makes its maps 0.76 times as large, so that eight of them go from 32x32 to 4x4. The factor can be changed after training.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from ccrewrite.nn import CCConv2d
from ccrewrite.report.metrics import accuracy

CHANNELS = (12, 16, 20, 24, 28, 32, 40, 48)


class Gradual(nn.Sequential):
    """Convolutions of stride 1, each asked for ``factor`` times the size of its input."""

    def __init__(self, factor: float, channels: tuple[int, ...] = CHANNELS, classes: int = 10) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in zip((1, *channels), channels, strict=False):
            layers += [
                CCConv2d(inputs, outputs, 3, padding=1, alignment="centred", bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], classes))
        self.shrink(factor)

    def shrink(self, factor: float) -> Gradual:
        """Ask every layer for ``factor`` times the size of its input, from now on."""
        for module in self:
            if isinstance(module, CCConv2d):
                module.scale = factor
        return self

    def sizes(self, image: Tensor) -> list[int]:
        """Heights of the feature maps, first to last."""
        found = []
        for module in self:
            image = module(image)
            if isinstance(module, CCConv2d):
                found.append(image.shape[-2])
        return found


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(training, test) drawings on 32x32 pixels, and their classes."""
    pixels, classes = load_digits(return_X_y=True)
    images = F.interpolate(torch.tensor(pixels).view(-1, 1, 8, 8).float() / 16, (32, 32), mode="bicubic")
    labels = torch.tensor(classes)
    return (images[:1400], labels[:1400]), (images[1400:], labels[1400:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    (images, labels), test = digits()
    model = Gradual(0.76)
    print("feature maps:", " -> ".join(map(str, [32, *model.eval().sizes(images[:1])])))
    steps = arguments.epochs * (len(images) // 50)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
    model.train()
    for step in range(steps):
        chosen = torch.randint(len(images), (50,))
        loss = F.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 28 == 27:
            print(f"step {step + 1} of {steps}: loss {loss.item():.3f}")
    model.eval()
    with torch.no_grad():
        for factor in (0.76, 0.73, 0.79):
            model.shrink(factor)
            print(f"factor {factor}: test accuracy {accuracy(model, [test]):.3f}, last map {model.sizes(images[:1])[-1]}")


if __name__ == "__main__":
    main()
