"""Positions moved onto samples before a model is folded, and what that does to the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ccrewrite.families.sites import RewrittenSite, rewritten_sites
from ccrewrite.ir.preserve import preserved
from ccrewrite.ir.typed import norm


class Loss(NamedTuple):
    """What snapping did to a site: the largest move, in samples, and ``|K' - K| / |K|`` of its effective kernel (2-norms); and
    the same of what was cut off afterwards."""

    moved: float = 0.0
    kernel_error: float = 0.0
    cut_error: float = 0.0


def snap_(model: nn.Module, names: Sequence[str], tol: float) -> dict[str, Loss]:
    """Move what is within ``tol`` samples of a sample onto it, in the sites ``names`` and in place; what each one lost."""
    sites = {name: site for name, site in rewritten_sites(model).items() if name in names}
    # All kernels first: sites may share their positions.
    kernels = {name: _kernel(site) for name, site in sites.items()}
    moves = {name: site.sampling.snap_(tol) for name, site in sites.items()}
    return {name: Loss(moves[name], _change(kernels[name], _kernel(site))) for name, site in sites.items()}


def _change(before: Tensor, after: Tensor) -> float:
    return float(norm(after - before) / norm(before).clamp_min(1e-30))


def _kernel(site: RewrittenSite) -> Tensor:
    """The effective kernel, of the layer's weight, or where that is not known, of one that is all ones."""
    sampling = site.sampling
    weight = site.module.weight if site.key is None else None
    if not isinstance(weight, Tensor):
        weight = torch.ones(*sampling.sets, *sampling.taps, device=next(sampling.parameters()).device)
    with preserved(site.module):
        return sampling.kernel(weight).double()
