"""A small network with every kind of site, before and after the rewrite."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import ccrewrite


def pictures(count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 12, 12, generator=torch.Generator().manual_seed(seed))


def network(classes: int = 3, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2, padding=1),
        nn.BatchNorm2d(6) if norm else nn.GroupNorm(2, 6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6),
        nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1),
        nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, classes),
    )


_REWRITTEN: dict[str, nn.Module] = {}


def rewritten(original: nn.Module) -> nn.Module:
    """A copy of its own for every call; equal networks are rewritten once."""
    dtype = next(original.parameters()).dtype
    key = f"{original} {dtype}"
    if key not in _REWRITTEN:
        _REWRITTEN[key] = ccrewrite.rewrite(original, pictures().to(dtype)).model
    return copy.deepcopy(_REWRITTEN[key])
