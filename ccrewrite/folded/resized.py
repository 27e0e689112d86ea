"""A folded layer at another output size than its convolution's own."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from ccrewrite.errors import InputError
from ccrewrite.folded.scripting import Unscriptable
from ccrewrite.ir.geometry import Ints


class ResizedConv(Unscriptable):
    """``graph``: plain operators with constant matrices, for inputs of ``size`` samples (spatial axes only) and any batch.

    Raises ``InputError`` for inputs of another size.
    """

    def __init__(self, graph: fx.GraphModule, size: Ints) -> None:
        super().__init__()
        self.graph = graph
        self.size = size

    def forward(self, input: Tensor) -> Tensor:
        return self.graph(check_size(input, self.size))

    def extra_repr(self) -> str:
        return f"size={self.size}"


@torch.fx.wrap
def check_size(input: Tensor, size: Ints) -> Tensor:
    """``input``, which must have this size. A leaf for ``torch.fx.symbolic_trace``."""
    if tuple(input.shape[-len(size) :]) != size:
        raise InputError(
            f"this layer was folded at another output size than the convolution's own, for inputs of {size} samples; found "
            f"{tuple(input.shape[-len(size) :])}. Fold with example inputs of that size, or don't fold it (exclude=)"
        )
    return input
