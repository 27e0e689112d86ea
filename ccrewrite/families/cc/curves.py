"""The continuous kernels of a CC layer's taps as curves: recorded and pictured."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ccrewrite.families.cc.profile import MAX_SHIFT, Along, continuous, profile
from ccrewrite.families.learnable import FINENESS, Recording, rounded
from ccrewrite.ir.json_types import JsonObject
from ccrewrite.ir.typed import integers

SHOWN_TAPS = 7
SHOWN_REACH = 8
"""Samples to each side of a tap that a picture shows."""


@torch.no_grad()
def recording(alongs: Sequence[Along], kernel_size: Sequence[int]) -> Recording:
    found: list[torch.Tensor] = []
    for axis in continuous(alongs):
        along, count = alongs[axis], kernel_size[axis]
        places = _places(along, along.twice_support / 2)
        found.append(profile(places, torch.arange(count, device=places.device), along)[0])
    return Recording("profiles", found)


@torch.no_grad()
def picture(alongs: Sequence[Along], kernel_size: Sequence[int]) -> JsonObject:
    learned = continuous(alongs)
    places = _places(alongs[learned[0]], min(max(along.twice_support for along in alongs) / 2, SHOWN_REACH))
    axes: list[JsonObject] = []
    drift: list[JsonObject] = []
    for axis in learned:
        along, count = alongs[axis], kernel_size[axis]
        taps = torch.linspace(0, count - 1, min(count, SHOWN_TAPS), device=places.device).round().long()
        values, interpolant = profile(places, taps, along)
        start, _ = profile(places, taps, along._replace(shift=None, layers=(), extent=0))
        axes.append({"axis": axis, "taps": integers(taps), "values": rounded(values, 3), "start": rounded(start, 3)})
        shift = 0.0 if along.shift is None else float(along.shift[along.shift_index].clamp(-MAX_SHIFT, MAX_SHIFT))
        residual = (values - interpolant).abs().max()
        drift.append({"axis": axis, "shift": rounded(shift), "residual_max_abs": rounded(residual)})
    return {"drift": drift, "profiles": {"z": rounded(places), "axes": axes}}


def _places(along: Along, reach: float) -> torch.Tensor:
    """``FINENESS`` a sample, up to ``reach`` samples on either side."""
    count = round(2 * reach * FINENESS) + 1
    return torch.linspace(-reach, reach, count, dtype=along.dtype, device=along.layers[0].device)
