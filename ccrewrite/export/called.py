"""DCLS layers kept as calls of ``ccrewrite::DclsConv`` in an exported file, with their positions."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ccrewrite.errors import ExportError
from ccrewrite.export.functions import DOMAIN, DclsConv, Operator
from ccrewrite.families.dcls.sampling import DclsSampling
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.operators import bind


class CalledSampling(DclsSampling):
    """A ``DclsSampling`` of a model that is about to be exported: torch sees one operator."""

    operators: dict[str, Operator]
    positions_in_window: Tensor

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *arguments: Any, **named: Any) -> Tensor:
        if input.dtype not in (torch.float32, torch.float16):
            raise ExportError(f"functions in the file need float32 or float16, found {input.dtype}")
        call = bind(False, self.ndim, arguments, named)
        self.check_dilation(call["dilation"])
        pads = [(low + m, high + m) for (low, high), m in zip(self._pads(call["padding"]), self.margin, strict=True)]
        flat = (*(low for low, _ in pads), *(high for _, high in pads))
        dtype = 10 if input.dtype == torch.float16 else 1
        shape = tuple(int(n) for n in weight.shape)
        what = DclsConv(shape, self.window, call["stride"], flat, call["groups"], dtype)
        key = str(len(self.operators))
        self.operators[key] = what
        batched = input if input.dim() == self.ndim + 2 else input[None]
        zeros, ones = (0,) * self.ndim, (1,) * self.ndim
        geometry = ConvGeometry(1, shape[0], self.window, call["stride"], zeros, ones, 1, zeros)
        sizes = zip(batched.shape[2:], pads, strict=True)
        native = geometry.output_size([n + low + high for n, (low, high) in sizes])
        out = torch.onnx.ops.symbolic(
            f"{DOMAIN}::DclsConv",
            [batched, weight, bias, self.positions_in_window],
            {"key": key},
            dtype=input.dtype,
            shape=(batched.shape[0], shape[0], *native),
            version=1,
        )
        return out if batched is input else out[0]


def callable_as_function(found: nn.Module) -> bool:
    """Whether a sampling is one that ``ccrewrite::DclsConv`` says: taps between which the kernel is linear."""
    return isinstance(found, DclsSampling) and found.interpolation == "linear"


def call_(model: nn.Module, operators: dict[str, Operator]) -> None:
    """Let the DCLS sites of ``model`` be exported as calls; ``operators`` gets what they compute. In place; ``model`` is for
    export alone then."""
    for found in list(model.modules()):
        if isinstance(found, DclsSampling) and callable_as_function(found):
            cells = torch.stack([c.detach().float() for c in found.cells()])
            filters = found.geometry.out_channels
            if cells.shape[1] not in (1, filters):  # one set for each group
                cells = cells.repeat_interleave(filters // cells.shape[1], 1)
            found.register_buffer("positions_in_window", cells.contiguous())
            found.__class__ = CalledSampling
            cast(CalledSampling, found).operators = operators
