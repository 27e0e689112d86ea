"""Cells at the border of a kernel's window left out before a model is folded, and what that does to the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ccrewrite.families.methods import Rerouted
from ccrewrite.families.sampling import Sampling
from ccrewrite.families.sites import RewrittenSite, rewritten_sites
from ccrewrite.folded.alternative import Alternative
from ccrewrite.ir.calls import ConvArguments
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.preserve import preserved

Box = tuple[tuple[int, int], ...]
"""Along each axis the first cell that is kept, and the one after the last."""


class TrimmedSampling(Sampling):
    """Mixin: a sampling without what its kernel has outside of ``box``. ``trim_`` makes it of another one; always dense."""

    box: Box

    def kernel(self, weight: Tensor) -> Tensor:
        kernel = super().kernel(weight)  # pyright: ignore[reportAbstractUsage]
        kept = torch.zeros_like(kernel[0, 0])
        kept[tuple(slice(*ends) for ends in self.box)] = 1
        return kernel * kept

    def moved(self, input: Tensor, weight: Tensor, bias: Tensor | None, call: ConvArguments) -> Tensor:
        return Sampling.moved(self, input, weight, bias, call)

    def alternatives(self, geometry: ConvGeometry) -> tuple[Alternative, ...]:
        return ()

    def fixed(self) -> nn.Module | None:
        return None


def trim_(model: nn.Module, names: Sequence[str], error: float) -> dict[str, float]:
    """Leave out cells at the borders of the kernels of the sites ``names``, the least first, as far as ``|K' - K| / |K|`` stays
    at most ``error`` (2-norms); in place. What each one lost; sites whose weight is not their layer's own lose nothing."""
    found: dict[str, float] = {}
    for name, site in rewritten_sites(model).items():
        if name in names and (lost := trim_site_(site, error)):
            found[name] = lost
    return found


@torch.no_grad()
def trim_site_(site: RewrittenSite, error: float) -> float:
    """The same for one site."""
    sampling, weight = site.sampling, site.module.weight if site.key is None else None
    if isinstance(site.module, Rerouted) or not isinstance(weight, Tensor) or sampling.resized or sampling.at_start():
        return 0.0
    with preserved(site.module):
        box, lost = within(sampling.kernel(weight), error)
    if lost:
        sampling.__class__ = cast(Any, type(f"Trimmed{type(sampling).__name__}", (TrimmedSampling, type(sampling)), {}))
        cast(TrimmedSampling, sampling).box = box
    return lost


def within(kernel: Tensor, error: float) -> tuple[Box, float]:
    """The smallest box, found one slice of cells after the other, outside of which ``kernel`` ``(out, in, *window)`` has at
    most ``error`` of its 2-norm; and how much it has there.

    >>> within(torch.tensor([[[0.03, 1.0, 0.0, -1.0, 0.04]]]), 0.03)
    (((1, 5),), 0.021...)
    """
    power = kernel.double().square().sum((0, 1))
    whole, gone = float(power.sum()), 0.0
    ends = [[0, n] for n in power.shape]
    while whole:
        box = power[tuple(slice(*along) for along in ends)]
        sides = [(axis, end) for axis, n in enumerate(box.shape) if n > 1 for end in (0, 1)]
        slices = {(a, end): float(box.select(a, 0 if end == 0 else -1).sum()) for a, end in sides}
        if not slices:
            break
        axis, end = least = min(slices, key=lambda side: slices[side])
        if gone + slices[least] > error**2 * whole:
            break
        gone += slices[least]
        ends[axis][end] += 1 if end == 0 else -1
    return tuple((first, after) for first, after in ends), (gone / whole) ** 0.5 if whole else 0.0
