"""A kernel that learns to turn about its centre."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ccrewrite.families import ConvGeometry, OnnxForm, Sampling, clamp_between_, hat


class TurnedSampling(Sampling):
    """Each cell of the kernel reads the weight at its own place turned about the centre: between taps by bilinear
    interpolation, zero beyond them.

    Parameter: ``angle``, in radians, one for all filters or ``(out_channels,)``; zero at the start.
    """

    def __init__(
        self, geometry: ConvGeometry, *, angles: Literal["one", "filter"] = "one", dtype: Any = None, device: Any = None
    ) -> None:
        super().__init__(geometry)
        self.angles = angles
        count = geometry.out_channels if angles == "filter" else 1
        self.angle = nn.Parameter(torch.zeros(count, dtype=dtype, device=device))

    def movers(self) -> list[Tensor]:
        return [self.angle]

    def kernel(self, weight: Tensor) -> Tensor:
        wide = torch.promote_types(weight.dtype, torch.float32)
        angle = self.angle.to(wide)[:, None]
        tap_y, tap_x = places(self.kernel_size, like=angle)
        y = angle.cos() * tap_y - angle.sin() * tap_x
        x = angle.sin() * tap_y + angle.cos() * tap_x
        share = hat(y[..., None] - tap_y) * hat(x[..., None] - tap_x)  # (angles, cells, taps)
        turned = weight.to(wide).flatten(2) @ share.mT
        return self.on_grid(turned.to(weight.dtype).view(weight.shape))

    @property
    def sets(self) -> tuple[int, int]:
        return len(self.angle), 1

    def options(self) -> dict[str, Any]:
        return {"angles": self.angles}

    def describe(self) -> str:
        return f"turned by {'an angle' if self.angles == 'one' else 'an angle for each filter'}"

    def clamp_(self) -> None:
        bound = torch.full_like(self.angle, math.pi)
        clamp_between_(self.angle, -bound, bound)

    def onnx_form(self) -> OnnxForm:
        from turned.onnx import TurnedForm

        return TurnedForm(self)


def places(size: tuple[int, ...], like: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of a kernel's taps, from its centre: ``(taps,)`` each."""
    rows, columns = (torch.arange(n, dtype=like.dtype, device=like.device) - (n - 1) / 2 for n in size)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return y.flatten(), x.flatten()
