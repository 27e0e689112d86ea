"""Rewritten models moved off their start, and how far two models' outputs are apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ccrewrite.families.adopt import RewrittenConv
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.capture import Inputs
from ccrewrite.passes.verify import compare_outputs, outputs_of


def move_(model: nn.Module, scale: float = 0.3) -> nn.Module:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Sampling):
                for p in module.movers() or module.parameters():
                    p += scale * torch.randn_like(p)
    return model


def worst(a: nn.Module, b: nn.Module, inputs: Any) -> float:
    """The largest difference of their outputs, relative to the largest output."""
    given = Inputs.of(inputs)
    return max(c.max_rel_error for c in compare_outputs(outputs_of(a, given), outputs_of(b, given)))


def ours(model: nn.Module) -> list[str]:
    """The paths of all that is learnable geometry."""
    return [n for n, m in model.named_modules() if isinstance(m, (Sampling, RewrittenConv))]
