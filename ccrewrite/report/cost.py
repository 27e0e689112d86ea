"""What a model has to train, and a step of its training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.capture import Inputs


def parameters_of(module: nn.Module) -> dict[str, int]:
    """Numbers of parameters: ``total``, ``trainable`` and ``added`` (those of samplings); shared ones count once."""
    added = {p for m in module.modules() if isinstance(m, Sampling) for p in m.parameters()}
    every = list(module.parameters())
    return {
        "total": sum(p.numel() for p in every),
        "trainable": sum(p.numel() for p in every if p.requires_grad),
        "added": sum(p.numel() for p in added),
    }


def training_step(model: nn.Module, inputs: Inputs) -> list[Tensor] | None:
    """Forward and backward of the mean square of every differentiable output, with respect to the trainable parameters.

    Returns the gradients; no parameter's ``grad`` is touched. None where no output depends on a parameter.
    """
    with torch.enable_grad():
        outputs = [t for t in _tensors(inputs.run(model)) if t.requires_grad]
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not outputs or not parameters:
            return None
        squares = (t.abs().double().square() if t.is_complex() else t.float().square() for t in outputs)
        loss = cast(Tensor, sum(s.mean() for s in squares))
        found = cast("Sequence[Tensor | None]", torch.autograd.grad(loss, parameters, allow_unused=True))
        return [g for g in found if g is not None]


def _tensors(value: object) -> list[Tensor]:
    found: list[object] = tree_leaves(value)
    flat: list[Tensor] = []
    for leaf in found:
        if isinstance(leaf, Tensor):
            flat.append(leaf)
        elif hasattr(leaf, "__dict__"):  # an output object that pytree does not know
            flat += [t for t in tree_leaves(vars(leaf)) if isinstance(t, Tensor)]
    return flat
