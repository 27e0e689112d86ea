"""A convolution's tensors made its own, whatever computes them so far: parametrizations, torch's older norms, pruning."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ccrewrite.ir.threads import one_at_a_time
from ccrewrite.ir.torch_private import forward_pre_hooks_of, loading_hooks_of, parameters_of, unprune_


def own_weight_(conv: nn.Module) -> bool:
    """Make ``conv``'s tensors parameters of its own, in place; False where something unknown computes its weight."""
    if parametrize.is_parametrized(conv):
        _remove_parametrizations_(conv)
    with one_at_a_time(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of its own older norms
        for hook in list(forward_pre_hooks_of(conv).values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(conv, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(conv, hook.name)
            elif isinstance(hook, prune.BasePruningMethod):
                unprune_(conv, hook)
    return "weight" in parameters_of(conv)


def _remove_parametrizations_(conv: nn.Module) -> None:
    parametrizations = cast(nn.ModuleDict, conv.parametrizations)
    for name in list(parametrizations):
        value = getattr(conv, name).detach().clone()
        several = not hasattr(parametrizations[name], "original")
        parametrize.remove_parametrizations(conv, name, leave_parametrized=several)
        setattr(conv, name, nn.Parameter(value, requires_grad=getattr(conv, name).requires_grad))
    # Weight norm's, which torch leaves behind: of no use any more, and local to a function, so not to be pickled.
    for key, hook in list(loading_hooks_of(conv).items()):
        if "weight_norm.<locals>" in getattr(getattr(hook, "hook", hook), "__qualname__", ""):
            del loading_hooks_of(conv)[key]


@contextmanager
def evaluating(*modules: nn.Module) -> Generator[None]:
    """Evaluation mode: spectral norm, for one, iterates in training mode."""
    flags = [(m, m.training) for module in modules for m in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for m, training in flags:
            m.training = training
