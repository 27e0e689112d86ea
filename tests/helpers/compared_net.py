"""A model with every kind of site, and its geometry moved as training would."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ccrewrite
from ccrewrite.report import Comparison, compare
from ccrewrite.report.budget import trade


class Net(nn.Module):
    """Every kind of site: dilated, depthwise, grouped, strided, transposed, one called twice, a functional one, plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=2)
        self.dilated = nn.Conv2d(12, 12, 3, padding=4, dilation=4, bias=False)
        self.depthwise = nn.Conv2d(12, 12, 5, padding=4, dilation=2, groups=12)
        self.kernel = nn.Parameter(torch.randn(12, 6, 3, 3) / 8)
        self.up = nn.ConvTranspose2d(12, 8, 4, stride=2, padding=1, groups=4)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.down(F.relu(self.stem(x))))
        y = self.dilated(F.relu(self.dilated(x)))
        x = x + y if torch.is_grad_enabled() else x.add_(y)  # a convolution's input, changed after it
        x = self.depthwise(x).relu_()
        x = F.conv2d(x, self.kernel, stride=1, padding=2, dilation=2, groups=2)
        x = self.up(x)
        return {"map": x, "classes": self.head(x.mean((2, 3)))}


@dataclass(frozen=True)
class Compared:
    original: nn.Module
    untouched: nn.Module
    moved: nn.Module
    input: Tensor
    comparison: Comparison


@torch.no_grad()
def move_(model: nn.Module) -> None:
    """Move every added geometry as training would."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, ccrewrite.nn.Sampling):
            for mover in module.movers():
                mover.normal_(0, 0.2)


def compared() -> Compared:
    """A comparison, slow next to what is looked at in it: tests share one (the fixture of this name)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(0)
        model, x = Net(), torch.randn(2, 3, 20, 24)
        untouched, moved = (ccrewrite.rewrite(model, x).model for _ in range(2))
        move_(moved)
        scores = iter((1.0, 0.0))
        table = trade(untouched, x, {"smaller": {"down": 0.5}}, lambda m: next(scores), repeats=2)
        extras = {"batches": (1, 3), "scale_groups": True, "trade": table}
        comparison = compare(model, untouched, x, variants={"trained": moved}, quick=True, command="make test", **extras)
    finally:
        torch.set_num_threads(threads)
    return Compared(model, untouched, moved, x, comparison)
