"""One set of positions for several DCLS layers."""

from __future__ import annotations

from typing import cast

from torch import nn

from ccrewrite.errors import InputError
from ccrewrite.families.dcls.sampling import DclsSampling


def share_positions(*layers: nn.Module) -> None:
    """Let DCLS layers share one set of positions (and widths), the first one's, as the stages of ConvNeXt-dcls do. In place.

    The parameters become the same objects: copies, pickles, optimizers and ``state_dict`` keep the tie.

    Args:
        layers: two or more DCLS layers.

    Raises:
        InputError: where the layers' positions differ in shape, start, interpolation or window.

    >>> from ccrewrite.nn import DclsConv2d
    >>> a, b = (DclsConv2d(8, 8, elements=5, window=7, padding="same", groups=8) for _ in range(2))
    >>> share_positions(a, b)
    >>> a.sampling.offset is b.sampling.offset
    True
    """
    samplings = [getattr(layer, "sampling", layer) for layer in layers]
    for index, sampling in enumerate(samplings):
        if not isinstance(sampling, DclsSampling):
            raise InputError(f"share_positions takes DCLS layers, found {type(layers[index]).__name__} at index {index}")
    first, *others = cast(list[DclsSampling], samplings)
    for index, other in enumerate(others, 1):
        for name in ("interpolation", "width", "grid"):
            _same(name, getattr(first, name), getattr(other, name), index)
        _same("offset's shape", tuple(first.offset.shape), tuple(other.offset.shape), index)
    for other in others:
        other.offset, other.widening = first.offset, first.widening


def _same(name: str, expected: object, found: object, index: int) -> None:
    if expected != found:
        raise InputError(
            f"layers that share positions must agree in {name}: {expected} in the first, {found} in number {index}"
        )
