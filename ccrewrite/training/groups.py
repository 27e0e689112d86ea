"""Parameter groups for optimizers."""

from __future__ import annotations

from typing import Any

from torch import nn

from ccrewrite.errors import InputError
from ccrewrite.families.dcls.sampling import DclsSampling
from ccrewrite.families.sampling import Sampling


def param_groups(
    model: nn.Module, lr: float, weight_decay: float = 0.0, *, position_lr_scale: float = 5.0, decay_vectors: bool = False
) -> list[dict[str, Any]]:
    """The trainable parameters of any model as optimizer groups, each parameter once (shared ones too).

    - "weights": ``lr``, ``weight_decay``;
    - "vectors" (biases, norm scales; with ``decay_vectors`` they are among the weights): ``lr``, no decay;
    - "positions" (``offset`` and ``widening`` of DCLS layers): ``position_lr_scale * lr``, no decay, for decay would pull taps
      back to where they started. 5 is the authors' scale (arXiv 2112.03740, appendix; 100 in their spiking nets);
    - "geometry" (what CC layers add): ``lr``, no decay.

    Learning-rate schedulers of torch keep the ratio. Groups without parameters are left out. Raises ``InputError`` where
    nothing is trainable or a rate is negative.

    >>> from ccrewrite.nn import DclsConv2d
    >>> model = nn.Sequential(DclsConv2d(3, 8, 3, dilation=2), nn.BatchNorm2d(8))
    >>> [(g["name"], g["lr"], g["weight_decay"]) for g in param_groups(model, lr=0.1, weight_decay=0.05)]
    [('weights', 0.1, 0.05), ('vectors', 0.1, 0.0), ('positions', 0.5, 0.0)]
    """
    for name, value in (("lr", lr), ("weight_decay", weight_decay), ("position_lr_scale", position_lr_scale)):
        if value < 0:
            raise InputError(f"{name} must be at least 0, found {value}")
    samplings = [m for m in model.modules() if isinstance(m, Sampling)]
    positions = {id(p) for s in samplings if isinstance(s, DclsSampling) for p in s.parameters()}
    geometry = {id(p) for s in samplings for p in s.parameters()} - positions
    groups: dict[str, dict[str, Any]] = {
        "weights": {"lr": lr, "weight_decay": weight_decay},
        "vectors": {"lr": lr, "weight_decay": 0.0},
        "positions": {"lr": position_lr_scale * lr, "weight_decay": 0.0},
        "geometry": {"lr": lr, "weight_decay": 0.0},
    }
    members: dict[str, list[nn.Parameter]] = {name: [] for name in groups}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in positions:
            name = "positions"
        elif id(parameter) in geometry:
            name = "geometry"
        else:
            name = "vectors" if parameter.ndim < 2 and not decay_vectors else "weights"
        members[name].append(parameter)
    found = [{"name": name, "params": members[name], **options} for name, options in groups.items() if members[name]]
    if not found:
        raise InputError("the model has no parameter that requires a gradient; nothing to optimize")
    return found
