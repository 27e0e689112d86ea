"""Geometry off its start: what benchmarks of speed measure."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ccrewrite.nn import Sampling

ROOT = Path(__file__).parents[2]


@torch.no_grad()
def move_(model: nn.Module, std: float = 0.1) -> None:
    """Every offset, shift and last layer of a residual a normal draw: what training does to the costs, not to the errors."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, Sampling):
            for mover in module.movers():
                mover.copy_((torch.randn(mover.shape, generator=generator) * std).to(mover))
