"""Geometry written back inside its bounds, or rounded to samples."""

from __future__ import annotations

import copy
import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.families.adopt import RewrittenConv
from ccrewrite.families.sampling import Sampling
from ccrewrite.families.sites import named_samplings, rewritten_sites
from ccrewrite.ir.outcome import GivenModel, model_of
from ccrewrite.ir.typed import norm


@dataclass(frozen=True)
class Snapped:
    """What snapping did to one layer: the largest move, in samples, and the kernel's change, ``|K' - K| / |K|`` (2-norms; None
    for a functional convolution, whose weight isn't the layer's)."""

    moved: float
    kernel_error: float | None


@torch.no_grad()
def clamp_positions(model: GivenModel) -> None:
    """Write geometry that an optimizer's momentum carried past its bounds back onto them. In place, each process its share.

    Positions of DCLS layers stay in their window, widths above the narrowest, shifts of CC layers within half a sample; others
    as their ``Sampling.clamp_`` says.

    Training needs no such call: layers sample within the bounds whatever their parameters say, and what is beyond is never
    pushed further. But that depends on the sign of each gradient that arrives, so a batch in several parts, one after the other
    or in several processes, moves taps at the border otherwise than the whole one. With this call after each optimizer step it
    doesn't (``finetune`` makes it).

    Args:
        model: any model, or what a pass returned.

    >>> from ccrewrite.nn import DclsConv1d
    >>> layer = DclsConv1d(1, 1, elements=1, window=5)
    >>> _ = layer.sampling.offset.data.fill_(7)
    >>> clamp_positions(layer)
    >>> layer.sampling.offset.item()
    2.0
    """
    for sampling in model_of(model).modules():
        if isinstance(sampling, Sampling):
            sampling.clamp_()


@torch.no_grad()
def snap(model: GivenModel, *, width: float | None = None) -> dict[str, Snapped]:
    """Round all positions of taps to samples (of DCLS layers, and of other samplings whose ``parameter_group`` is "positions"),
    in place.

    Args:
        model: a rewritten model, or what ``rewrite`` returned.
        width: make Gaussians this sharp as well (0.1 samples: a tap holds its one sample alone), triangles at least 1. None:
            the widths stay.

    Returns:
        The error that this makes, by the name of the site.

    Raises:
        InputError: where the model has no such layer.

    >>> from ccrewrite.nn import DclsConv1d
    >>> layer = DclsConv1d(1, 1, elements=1, window=5)
    >>> _ = layer.sampling.offset.data.fill_(0.75)
    >>> snap(layer)["(root)"].moved, layer.sampling.positions().item()
    (0.25, 1.0)
    """
    model = model_of(model)
    found = _positioned(model)
    if not found:
        raise InputError("no layer of the model has positions of taps; nothing to snap")
    layers = {name: site.module for name, site in rewritten_sites(model).items() if site.key is None}
    before = {name: _kernel(layers.get(name)) for name in found}
    # Of copies, for layers may share positions: the first one's move is the others' as well.
    moved = {name: copy.deepcopy(sampling).snap_(math.inf) for name, sampling in found.items()}
    for sampling in found.values():
        sampling.snap_(math.inf, width=width)
    return {name: Snapped(moved[name], _change(kernel, _kernel(layers.get(name)))) for name, kernel in before.items()}


@contextmanager
def snapped(model: GivenModel, *, width: float | None = None) -> Generator[dict[str, Snapped]]:
    """Evaluate with rounded positions, as the authors' spiking nets do: ``snap`` inside, what was learned outside.

    Args:
        model: as ``snap``'s.
        width: as ``snap``'s.

    Raises:
        InputError: as ``snap`` does.

    >>> from ccrewrite.nn import DclsConv1d
    >>> layer = DclsConv1d(1, 1, elements=1, window=5)
    >>> with snapped(layer):
    ...     assert layer.sampling.positions() == layer.sampling.positions().round()
    """
    model = model_of(model)
    learned = [(p, p.detach().clone()) for sampling in _positioned(model).values() for p in sampling.parameters()]
    try:
        yield snap(model, width=width)
    finally:
        with torch.no_grad():
            for parameter, value in learned:
                parameter.copy_(value)


def _positioned(model: nn.Module) -> dict[str, Sampling]:
    return {name: sampling for name, sampling in named_samplings(model).items() if sampling.parameter_group == "positions"}


def _kernel(layer: nn.Module | None) -> Tensor | None:
    return layer.sampling.kernel(cast(Tensor, layer.weight)) if isinstance(layer, RewrittenConv) else None


def _change(before: Tensor | None, after: Tensor | None) -> float | None:
    return None if before is None or after is None else float(norm(after - before) / norm(before).clamp_min(1e-30))
