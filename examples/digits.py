"""What the fine-tuning examples share: scikit-learn's handwritten digits, and a small trained network to rewrite."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def digits() -> tuple[TensorDataset, TensorDataset]:
    """(training, test) drawings on 16x16 pixels, and their classes."""
    pixels, classes = load_digits(return_X_y=True)
    images = F.interpolate(torch.tensor(pixels).view(-1, 1, 8, 8).float() / 16, (16, 16), mode="bilinear")
    labels = torch.tensor(classes)
    return TensorDataset(images[:1400], labels[:1400]), TensorDataset(images[1400:], labels[1400:])


def network() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    layers += [nn.Conv2d(16, 16, 3, padding=2, dilation=2), nn.BatchNorm2d(16), nn.ReLU()]
    layers += [nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def trained() -> nn.Sequential:
    """The network after three epochs."""
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(3):
        for images, labels in DataLoader(digits()[0], batch_size=50, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    images, labels = digits()[1].tensors
    outputs: Tensor = model.eval()(images)
    return (outputs.argmax(1) == labels).float().mean().item()
