"""What torch's exporter translates inexactly: whole-number division that rounds down."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, cast

import torch


def translations() -> dict[Callable[..., object], Callable[..., object]]:
    """For ``torch.onnx.export(custom_translation_table=...)``.

    torch's own translation divides whole tensors in float32, which is wrong from 2**24 on, and whole sizes by ONNX's ``Div``,
    which rounds towards zero: wrong where one of them is negative.
    """
    from onnxscript import opset18

    op: Any = opset18  # its signatures are those of functions in ONNX's own Python dialect

    int64 = 7

    def floor_divide(self: Any, other: Any) -> Any:
        quotient = op.Div(self, other)
        rest = op.Sub(self, op.Mul(quotient, other))
        if isinstance(other, int) and other > 0:
            below = op.Less(rest, 0)
        else:
            below = op.And(op.Not(op.Equal(rest, 0)), op.Xor(op.Less(rest, 0), op.Less(other, 0)))
        return op.Sub(quotient, op.Cast(below, to=int64))

    def div_mode(self: Any, other: Any, rounding_mode: str | None = None) -> Any:
        if rounding_mode == "floor" and self.dtype == int64:
            return floor_divide(self, other)
        if self.dtype.is_integer():
            self, other = op.Cast(self, to=1), op.Cast(other, to=1)
        quotient = op.Div(self, other)
        if rounding_mode == "floor":
            return op.Floor(quotient)
        if rounding_mode == "trunc":
            return op.Where(op.Less(quotient, 0.0), op.Ceil(quotient), op.Floor(quotient))
        return quotient

    floordiv = cast("Callable[..., object]", operator.floordiv)  # pyright: ignore[reportUnknownMemberType]
    return {floordiv: floor_divide, torch.ops.aten.div.Tensor_mode: div_mode}
