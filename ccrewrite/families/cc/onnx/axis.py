"""What is known at export of one axis of a CC layer: ``Axis``."""

from __future__ import annotations

from dataclasses import dataclass

from ccrewrite.families.cc.profile import Along


@dataclass(frozen=True)
class Profile:
    """``ccrewrite.families.cc.profile.Along`` without its tensors."""

    basis: str
    twice_support: int
    extent: int
    spacing: int
    within: int
    shift_index: int

    @classmethod
    def of(cls, along: Along) -> Profile:
        return cls(along.basis, along.twice_support, along.extent, along.spacing, along.within, along.shift_index)


@dataclass(frozen=True)
class Axis:
    """One axis of a convolution to be resampled: its geometry (``low`` and ``high`` are its pads), and how.

    ``mode`` is torch's padding mode. ``dtype`` is ONNX's number of the type that is resampled.
    """

    taps: int
    stride: int
    dilation: int
    low: int
    high: int
    profile: Profile
    transposed: bool
    centred: bool
    rescaled: bool
    mode: str
    dtype: int

    @property
    def span(self) -> int:
        """Samples from the first tap to the last."""
        return self.dilation * (self.taps - 1)
