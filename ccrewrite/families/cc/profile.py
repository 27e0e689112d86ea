"""The continuous kernel along one axis: what tap ``t`` contributes at a distance ``z`` from its place, in samples.

    phi_t(z) = basis(z - shift) + window(z - shift) * residual_t(z - shift)

``basis`` is a cardinal interpolant (1 at 0, 0 at the other integers). The residual is a small sinusoidal network (SIREN, arXiv
2006.09661) of the distance; ``window`` is ``cos^2(pi z / 4)`` within two samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ccrewrite.families import regions
from ccrewrite.families.interpolation import KeepInside, hat, keys_cubic
from ccrewrite.families.regions import REGIONS, Region

Basis = Literal["linear", "cubic"]
BASES: dict[str, Callable[[Tensor], Tensor]] = {"linear": hat, "cubic": keys_cubic}
SUPPORT = 2
"""Half-width of ``phi``, in samples: that of the cubic basis and of the residual's window."""
MAX_SHIFT = 0.5


class Along(NamedTuple):
    """The continuous kernel of one axis, as tensors."""

    basis: str
    shift_index: int
    """Which of the shifts is this axis's."""
    shift: Tensor | None
    """Of all axes that have one, in samples; None: there is none."""
    layers: tuple[Tensor, ...]
    """Weights and biases of the residual's inner and last layer; empty: neither residual nor shift."""
    extent: int = 0
    """Not 0: the layers are a network of the whole kernel of so many samples (``ccrewrite.families.cc.networks``)."""
    spacing: int = 1
    """Samples from one tap to the next."""
    within: int = 0
    """Not 0: what is learned vanishes beyond so many samples around the kernel's centre."""

    opaque: bool = False
    """Whether torch.compile takes ``factor`` as one operator (``ccrewrite.families.regions``)."""
    shared: bool = False
    """Whether ``phi_t`` is the same for every tap."""

    def one_tap(self) -> Along:
        """The same for a single tap; where ``shared``, that is any of them."""
        return self._replace(layers=(*self.layers[:-2], *(last[:1] for last in self.layers[-2:])))

    @property
    def dtype(self) -> torch.dtype:
        """Coordinates and values: at least float32."""
        like = self.layers[0] if self.shift is None else self.shift
        return torch.promote_types(like.dtype, torch.float32)

    @property
    def twice_support(self) -> int:
        """Twice the distance from a tap's place beyond which it contributes nothing, whatever its shift."""
        return 2 * self.extent if self.extent else round(2 * (SUPPORT + MAX_SHIFT))


def continuous(alongs: Sequence[Along]) -> list[int]:
    """The axes along which something can be learned; the others are plain."""
    return [axis for axis, along in enumerate(alongs) if along.layers]


def profile(distance: Tensor, taps: Tensor | None, along: Along) -> tuple[Tensor, Tensor]:
    """(``phi_t``, the interpolant alone) at distances ``(..., n)``, for the taps whose indices are ``(...)``, broadcast.

    None: for all taps in order, ``(taps, n)``.
    """
    if not along.layers:
        bump = BASES[along.basis](distance)
        return bump, bump
    z, layers = distance, [p.to(distance.dtype) for p in along.layers]
    if along.shift is not None:
        z = z - KeepInside.apply(along.shift[along.shift_index].to(z.dtype), -MAX_SHIFT, MAX_SHIFT)
    bump = BASES[along.basis](z)
    index = torch.arange(len(layers[-1]), device=z.device) if taps is None and (along.extent or along.within) else taps
    if along.extent:
        assert index is not None
        places = z + along.spacing * index[..., None] - (along.extent - 1) / 2
        return taper(places, along.extent) * _outputs(places, taps, layers), bump
    window = torch.cos(z.clamp(-SUPPORT, SUPPORT) * (math.pi / (2 * SUPPORT))) ** 2
    values = bump + window * _outputs(z, taps, layers)
    if along.within:
        assert index is not None
        # Of the start, which at other sizes reads between samples there too, everything stays.
        centre = along.spacing * (len(layers[-1]) - 1) / 2
        start, inside = BASES[along.basis](distance), taper(distance + along.spacing * index[..., None] - centre, along.within)
        values, bump = torch.lerp(start, values, inside), torch.lerp(start, bump, inside)
    return values, bump


def factor(along: Along, taps: int, spacing: int, margin: int, device: torch.device) -> Tensor:
    """What each tap contributes to the window's cells, the first of them ``margin`` before the first tap: ``(taps, cells)``."""
    if along.layers and regions.called(along.opaque):
        tensors = along.layers if along.shift is None else (*along.layers, along.shift)
        numbers = (
            along.shift_index,
            along.extent,
            along.spacing,
            along.within,
            int(along.shift is not None),
            taps,
            spacing,
            margin,
        )
        return regions.region("cc_factor", tensors, along.basis, numbers)
    if along.extent:
        cells = torch.arange(-margin, spacing * (taps - 1) + 1 + margin, dtype=along.dtype, device=device)
        places = torch.arange(0, spacing * taps, spacing, dtype=along.dtype, device=device)
        return profile(cells - places[:, None], None, along)[0]
    # A tap reaches so many cells on either side, wherever its shift: not all of a large kernel.
    near = torch.arange(-SUPPORT, SUPPORT + 1, dtype=along.dtype, device=device)
    values, _ = profile(near, None, along)
    cells = spacing * (taps - 1) + len(near)
    wide = F.pad(values.expand(taps, -1), (0, cells + spacing - len(near)))
    # Read with a period shorter by the spacing, each row begins so much later.
    full = wide.flatten()[: taps * cells].view(taps, cells)
    beyond = SUPPORT - margin
    return full[:, beyond : cells - beyond] if beyond else full


def _factor(tensors: Sequence[Tensor], basis: str, numbers: Sequence[int]) -> Tensor:
    index, extent, apart, within, shifted, taps, spacing, margin = numbers
    layers, shift = (tensors[:-1], tensors[-1]) if shifted else (tensors, None)
    along = Along(basis, index, shift, tuple(layers), extent, apart, within)
    return factor(along, taps, spacing, margin, layers[0].device)


def _factor_like(tensors: Sequence[Tensor], basis: str, numbers: Sequence[int]) -> Tensor:
    shifted, taps, spacing, margin = numbers[4:]
    dtype = torch.promote_types(tensors[-1 if shifted else 0].dtype, torch.float32)
    return tensors[0].new_empty(taps, spacing * (taps - 1) + 1 + 2 * margin, dtype=dtype)


REGIONS["cc_factor"] = Region(_factor, _factor_like)


def _outputs(places: Tensor, taps: Tensor | None, layers: Sequence[Tensor]) -> Tensor:
    """The network at ``places`` ``(..., n)``, of its outputs those of ``taps`` ``(...)``."""
    last, bias = layers[-2:] if taps is None else (p[taps] for p in layers[-2:])
    return (features(places, layers[:-2]) * last[..., None, :]).sum(-1) + bias[..., None]


def features(places: Tensor, layers: Sequence[Tensor]) -> Tensor:
    """Sines of sines of ``places``: ``(..., hidden)``, for weights and biases of the hidden layers."""
    hidden = torch.sin(places[..., None] * layers[0][:, 0] + layers[1])
    for weight, bias in zip(layers[2::2], layers[3::2], strict=True):
        # Expanded, so that no rows are joined: their number may be symbolic.
        hidden = torch.sin(hidden @ weight.mT.expand(*hidden.shape[:-2], -1, -1) + bias)
    return hidden


def taper(places: Tensor, extent: int) -> Tensor:
    """1 within a kernel of ``extent`` samples, ``cos^2`` to 0 over one sample more at its ends."""
    beyond = (places.abs() - (extent - 1) / 2).clamp(0, 1)
    return torch.cos(beyond * (math.pi / 2)) ** 2


def gain(taps: Tensor, along: Along) -> Tensor:
    """What each tap adds up to natively, on the integer lattice: of ``taps``' shape."""
    half = -(-along.twice_support // 2)
    values, _ = profile(torch.arange(-half, half + 1, dtype=along.dtype, device=taps.device), taps, along)
    return values.sum(-1)
