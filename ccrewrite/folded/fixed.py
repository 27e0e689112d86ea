"""A constant geometry that is applied to the weight at each call, for weights that are known at run time only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ccrewrite.folded.cuts import Cut, Pads, conv_of_cut, described
from ccrewrite.folded.scripting import Unscriptable
from ccrewrite.ir.geometry import ConvGeometry, require_channels
from ccrewrite.ir.operators import bind, full_precision


class FixedSampling(Unscriptable):
    """The kernel is ``matrix . weight``. Called as the sampling that it replaces: with the arguments of the torch function.

    Args:
        matrix: ``(taps, A, B, *cells)``, cut as ``cuts`` say, with ``A`` 1 or a divisor of the weight's first dimension and
            ``B`` of its second.
        geometry: of the convolution that the calls ask for.
    """

    matrix: Tensor

    def __init__(self, matrix: Tensor, cuts: Sequence[Cut], geometry: ConvGeometry) -> None:
        super().__init__()
        self.kernel_size = geometry.kernel_size
        self.dilation = geometry.dilation
        self.transposed = geometry.transposed
        self.channels = geometry.weight_channels
        self.cuts = tuple(cuts)
        self.register_buffer("matrix", matrix)

    @property
    def ndim(self) -> int:
        return len(self.kernel_size)

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *arguments: object, **named: object) -> Tensor:
        call = bind(self.transposed, self.ndim, arguments, named)
        pads: Pads = ()
        if not self.transposed:
            padding = (0,) * self.ndim if call["padding"] == "valid" else call["padding"]
            ones, zeros = (1,) * self.ndim, (0,) * self.ndim
            pads = ConvGeometry(1, 1, self.kernel_size, ones, padding, self.dilation, 1, zeros).pads
        return conv_of_cut(input, fixed_kernel(weight, self.matrix, self.channels), bias, call, self.cuts, pads)

    def describe(self) -> str:
        """The kernel that it makes, in a few words."""
        return described(self.matrix, self.cuts)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, dilation={self.dilation}, cuts={tuple(tuple(c) for c in self.cuts)}"


@torch.fx.wrap
def fixed_kernel(weight: Tensor, matrix: Tensor, channels: tuple[int, int]) -> Tensor:
    """``(*weight.shape[:2], *cells)``; ``channels`` are those that ``matrix`` was made for. A leaf for
    ``torch.fx.symbolic_trace``."""
    require_channels("folded convolution", weight, channels, matrix.shape[1:3])
    rows, columns = weight.shape[:2]
    sets, inner = matrix.shape[1:3]
    with full_precision(weight.device):
        flat = weight.to(matrix.dtype).flatten(2)
        if sets == inner == 1:
            kernel = flat @ matrix.flatten(1)
        else:
            spread = matrix.flatten(3).repeat_interleave(rows // sets, 1).repeat_interleave(columns // inner, 2)
            kernel = (flat.movedim(-1, 0)[..., None] * spread).sum(0)
    return kernel.view(rows, columns, *matrix.shape[3:]).to(weight.dtype)
