"""Parameter groups for optimizers."""

from __future__ import annotations

from typing import Any

from torch import nn

from ccrewrite.errors import InputError
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.outcome import GivenModel, model_of

ParamGroup = dict[str, Any]
"""As torch's optimizers take them: ``params``, ``lr``, ``weight_decay``; and ``name``."""
ORDER = ("weights", "vectors", "positions", "geometry")
"""Of the groups; others follow. An optimizer's state is stored by number, so that checkpoints rely on it."""


def param_groups(
    model: GivenModel,
    lr: float,
    weight_decay: float = 0.0,
    *,
    position_lr_scale: float = 5.0,
    decay_vectors: bool = False,
) -> list[ParamGroup]:
    """The trainable parameters of any model as optimizer groups, each parameter once (shared ones too).

    - "weights": ``lr``, ``weight_decay``;
    - "vectors" (biases, norm scales): ``lr``, no decay;
    - "positions" (of DCLS layers, ``offset`` and ``widening``): ``position_lr_scale * lr``, no decay, for decay would pull taps
      back to where they started;
    - "geometry" (what CC layers add): ``lr``, no decay;
    - groups of others' samplings, as their ``parameter_group`` and ``lr_scale`` say, no decay.

    Learning-rate schedulers of torch keep the ratio. Groups without parameters are left out.

    Args:
        model: any model, or what a pass returned. What is frozen is left out.
        lr: learning rate.
        weight_decay: of weights.
        position_lr_scale: of positions, over ``lr``. 5 is the authors' scale (arXiv 2112.03740, appendix; 100 in their spiking
            nets).
        decay_vectors: vectors are among the weights.

    Returns:
        The groups, as torch's optimizers take them, each with its ``name``.

    Raises:
        InputError: where nothing is trainable or a rate is negative.

    >>> from ccrewrite.nn import DclsConv2d
    >>> model = nn.Sequential(DclsConv2d(3, 8, 3, dilation=2), nn.BatchNorm2d(8))
    >>> [(g["name"], g["lr"], g["weight_decay"]) for g in param_groups(model, lr=0.1, weight_decay=0.05)]
    [('weights', 0.1, 0.05), ('vectors', 0.1, 0.0), ('positions', 0.5, 0.0)]
    """
    model = model_of(model)
    for name, value in (("lr", lr), ("weight_decay", weight_decay), ("position_lr_scale", position_lr_scale)):
        if value < 0:
            raise InputError(f"{name} must be at least 0, found {value}")
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    owners = {id(p): sampling for sampling in model.modules() if isinstance(sampling, Sampling) for p in sampling.parameters()}
    for parameter in model.parameters():
        sampling = owners.get(id(parameter))
        if not parameter.requires_grad:
            continue
        if sampling is None:
            key = ("vectors" if parameter.ndim < 2 and not decay_vectors else "weights"), 1.0
        else:
            name = sampling.parameter_group
            key = name, sampling.lr_scale * (position_lr_scale if name == "positions" else 1)
        groups.setdefault(key, []).append(parameter)
    if not groups:
        raise InputError("the model has no parameter that requires a gradient; nothing to optimize")
    in_order = sorted(groups, key=lambda key: ORDER.index(key[0]) if key[0] in ORDER else len(ORDER))
    return [
        {"name": n, "params": groups[n, scale], "lr": scale * lr, "weight_decay": weight_decay if n == "weights" else 0.0}
        for n, scale in in_order
    ]
