"""Learned positions: written back inside the window, or rounded to samples."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.families.adopt import RewrittenConv
from ccrewrite.families.cc.profile import MAX_SHIFT
from ccrewrite.families.cc.sampling import CCSampling
from ccrewrite.families.dcls.sampling import DclsSampling
from ccrewrite.families.interpolation import MIN_WIDTH


@dataclass(frozen=True)
class Snapped:
    """What snapping did to one layer: the largest move, in samples, and the kernel's change, ``|K' - K| / |K|`` (2-norms; None
    for a functional convolution, whose weight isn't the layer's)."""

    moved: float
    kernel_error: float | None


@torch.no_grad()
def clamp_positions(model: nn.Module) -> None:
    """Write geometry that an optimizer's momentum carried past its bounds back onto them. In place, each process its share.

    Positions of DCLS layers stay in their window, widths above the narrowest, shifts of CC layers within half a sample.

    Training needs no such call: layers sample within the bounds whatever their parameters say, and what is beyond is never
    pushed further. But that depends on the sign of each gradient that arrives, so a batch in several parts, one after the
    other or in several processes, moves taps at the border otherwise than the whole one. With this call after each
    optimizer step it doesn't (``finetune`` makes it).

    >>> from ccrewrite.nn import DclsConv1d
    >>> layer = DclsConv1d(1, 1, elements=1, window=5)
    >>> _ = layer.sampling.offset.data.fill_(7)
    >>> clamp_positions(layer)
    >>> layer.sampling.offset.item()
    2.0
    """
    for sampling in model.modules():
        if isinstance(sampling, DclsSampling):
            placed = [sampling.placement[axis] for axis in sampling.axes]
            starts = torch.stack([axis.start(sampling.taps, sampling.offset) for axis in placed])
            ends = starts.new_tensor([axis.size - 1 for axis in placed])[:, None] - starts
            shape = (len(placed), 1, 1, *sampling.taps)
            _clamp(sampling.offset, -starts.view(shape), ends.view(shape))
            if sampling.widening is not None:
                narrowest = math.log(MIN_WIDTH[sampling.interpolation] / sampling.width)
                _clamp(sampling.widening, starts.new_tensor(narrowest), starts.new_tensor(math.inf))
        elif isinstance(sampling, CCSampling) and sampling.shift is not None:
            bound = torch.tensor(MAX_SHIFT, dtype=sampling.shift.dtype, device=sampling.shift.device)
            _clamp(sampling.shift, -bound, bound)


def _clamp(parameter: Tensor, low: Tensor, high: Tensor) -> None:
    """Within bounds that broadcast. What is inside keeps its last bit."""
    if hasattr(parameter, "to_local"):  # sharded: this process's part of the bounds, without asking the others
        from torch.distributed.tensor import DTensor, distribute_tensor

        shares = cast(DTensor, parameter)
        where = shares.device_mesh, shares.placements
        whole = (bound.expand(shares.shape).contiguous() for bound in (low, high))
        low, high = (distribute_tensor(bound, *where, src_data_rank=None).to_local() for bound in whole)
        parameter = shares.to_local()
    parameter.clamp_(low, high)


@torch.no_grad()
def snap(model: nn.Module, *, width: float | None = None) -> dict[str, Snapped]:
    """Round the positions of all DCLS layers to samples, in place; the error this makes, by layer name.

    ``width``: make Gaussians this sharp as well (0.1 samples: a tap holds its one sample alone), triangles at least 1; None
    leaves the widths. Raises ``InputError`` where the model has no DCLS layer.

    >>> from ccrewrite.nn import DclsConv1d
    >>> layer = DclsConv1d(1, 1, elements=1, window=5)
    >>> _ = layer.sampling.offset.data.fill_(0.75)
    >>> snap(layer)[""].moved, layer.sampling.positions().item()
    (0.25, 1.0)
    """
    found = _samplings(model)
    if not found:
        raise InputError("the model has no DCLS layer; nothing to snap")
    before = {name: (sampling.cells(), _kernel(model, name)) for name, sampling in found}
    for name, sampling in found:
        _move(sampling, [c.round() for c in before[name][0]])
        if width is not None and sampling.widening is not None:
            sharp = max(width, MIN_WIDTH[sampling.interpolation])
            sampling.widening.data.fill_(math.log(sharp / sampling.width))
    report: dict[str, Snapped] = {}
    for name, (cells, kernel) in before.items():
        moved = max(float((c.round() - c).abs().max()) for c in cells)
        error = None
        if kernel is not None:
            error = float((cast(Tensor, _kernel(model, name)) - kernel).norm() / kernel.norm().clamp_min(1e-30))
        report[name] = Snapped(moved, error)
    return report


@contextmanager
def snapped(model: nn.Module, *, width: float | None = None) -> Generator[dict[str, Snapped]]:
    """Evaluate with rounded positions, as the authors' spiking nets do: ``snap`` inside, what was learned outside.

    >>> from ccrewrite.nn import DclsConv1d
    >>> layer = DclsConv1d(1, 1, elements=1, window=5)
    >>> with snapped(layer):
    ...     assert layer.sampling.positions() == layer.sampling.positions().round()
    """
    learned = [(p, p.detach().clone()) for _, sampling in _samplings(model) for p in sampling.parameters()]
    try:
        yield snap(model, width=width)
    finally:
        with torch.no_grad():
            for parameter, value in learned:
                parameter.copy_(value)


def _samplings(model: nn.Module) -> list[tuple[str, DclsSampling]]:
    named = [(name, m) for name, m in model.named_modules() if isinstance(m, DclsSampling)]
    return [(name.removesuffix("sampling").removesuffix("."), m) for name, m in named]


def _kernel(model: nn.Module, name: str) -> Tensor | None:
    layer = model.get_submodule(name)
    return layer.sampling.kernel(cast(Tensor, layer.weight)) if isinstance(layer, RewrittenConv) else None


def _move(sampling: DclsSampling, cells: list[Tensor]) -> None:
    """Put the taps at ``cells``, in samples from the window's first one."""
    for offset, axis in zip(sampling.offset, sampling.axes, strict=True):
        start = sampling.placement[axis].start(sampling.taps, sampling.offset)
        offset.copy_((cells[axis] - start).view(offset.shape))
