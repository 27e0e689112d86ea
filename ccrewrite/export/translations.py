"""What torch's exporter translates inexactly, or not at all: whole-number division that rounds down, and transposed
convolutions whose padding is known when the file runs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch


def translations() -> dict[Callable[..., object], Callable[..., object]]:
    """For ``torch.onnx.export(custom_translation_table=...)``.

    torch's own translation divides whole tensors in float32, which is wrong from 2**24 on, and whole sizes by ONNX's ``Div``,
    which rounds towards zero: wrong where one of them is negative. ONNX's ``ConvTranspose`` has its paddings as
    attributes: where one depends on sizes, it makes all outputs that there may be, and the others are cut off.
    """
    from onnxscript import opset18
    from onnxscript.function_libs.torch_lib.ops.core import aten_convolution  # pyright: ignore[reportMissingTypeStubs]

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

    def convolution(
        input: Any,
        weight: Any,
        bias: Any = None,
        stride: Sequence[int] = (1,),
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
        transposed: bool = False,
        output_padding: Sequence[int] = (0,),
        groups: int = 1,
    ) -> Any:
        if all(isinstance(n, int) for n in (*padding, *output_padding)):  # pyright: ignore[reportUnnecessaryIsInstance]
            return aten_convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)
        rank = len(stride)
        most = [max(s, d) - 1 for s, d in zip(stride, dilation, strict=True)]
        whole = aten_convolution(input, weight, None, stride, [0] * rank, dilation, transposed, [0] * rank, groups)
        whole = op.Pad(whole, vector([0] * (rank + 4) + most))
        low = vector(padding)
        ends = op.Sub(op.Shape(whole, start=2), op.Sub(op.Add(low, vector(most)), vector(output_padding)))
        out = op.Slice(whole, low, ends, vector(range(2, 2 + rank)))
        return out if bias is None else op.Add(out, op.Unsqueeze(bias, vector(range(1, rank + 1))))

    def vector(numbers: Iterable[Any]) -> Any:
        each = [
            op.Constant(value_ints=[n]) if isinstance(n, int) else op.Reshape(n, op.Constant(value_ints=[1])) for n in numbers
        ]
        return op.Concat(*each, axis=0)

    floordiv = cast("Callable[..., object]", operator.floordiv)  # pyright: ignore[reportUnknownMemberType]
    aten = torch.ops.aten
    return {floordiv: floor_divide, aten.div.Tensor_mode: div_mode, aten.convolution.default: convolution}
