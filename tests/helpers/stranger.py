"""A sampling of somebody else's, with no more than the protocol requires: a kernel turned up or down, tap by tap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.geometry import ConvGeometry


class VolumeSampling(Sampling):
    """``kernel = weight * exp(volume)`` on the dilated grid; ``volume`` ``(*kernel_size)`` starts at zero."""

    def __init__(self, geometry: ConvGeometry, *, dtype: torch.dtype | None = None, device: Any = None) -> None:
        super().__init__(geometry)
        self.volume = nn.Parameter(torch.zeros(self.kernel_size, dtype=dtype, device=device))

    def movers(self) -> list[Tensor]:
        return [self.volume]

    def kernel(self, weight: Tensor) -> Tensor:
        window = weight.new_zeros(*weight.shape[:2], *self.window)
        window[(..., *(slice(None, None, d) for d in self.dilation))] = weight * self.volume.exp()
        return window
