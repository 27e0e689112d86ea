"""Tasks of which it is known whether geometry pays."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import ccrewrite
from ccrewrite.families.sites import named_samplings

Batches = list[tuple[Tensor, Tensor]]


def signals(count: int, length: int = 48, seed: int = 1) -> Tensor:
    """Smooth noise, ``(count, 1, length)``: a tap feels where to go."""
    noise = torch.randn(count, 1, length + 8, generator=torch.Generator().manual_seed(seed))
    return nn.functional.avg_pool1d(noise, 5, 1)[..., 2 : length + 2] * 3


class Student(nn.Module):
    """Two dilated convolutions, and one whose output goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 2, 3, dilation=3, padding=3)
        self.second = nn.Conv1d(2, 1, 3, dilation=4, padding=4)
        self.idle = nn.Conv1d(1, 1, 3, dilation=2, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) + 0 * self.idle(x).detach()


def student() -> Student:
    torch.manual_seed(3)
    return Student()


def displaced(model: nn.Module, x: Tensor, by: float = 0.8) -> Batches:
    """Batches whose targets a copy of ``model`` gives whose geometry is elsewhere: no weights on the grid reach them."""
    teacher = ccrewrite.rewrite(model, x[:4], verify=False).model
    with torch.no_grad():
        for sampling in named_samplings(teacher).values():
            for parameter in sampling.parameters():
                parameter.add_(by)
        return [(part, teacher(part)) for part in x.split(8)]


def shifted(model: nn.Module, x: Tensor) -> Batches:
    """Batches whose targets ``model`` itself gives, but for a constant: biases learn that, geometry has nothing to add."""
    with torch.no_grad():
        return [(part, model(part) + 0.7) for part in x.split(8)]
