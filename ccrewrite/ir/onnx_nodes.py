"""ONNX nodes, written as calls: ``Nodes``. Needs the extra ``onnx``, so it is imported only by what writes files."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tape import Tape

Operand = ir.Value | int | float | Sequence[int] | np.ndarray | None

DTYPES = {torch.float32: ir.DataType.FLOAT, torch.float16: ir.DataType.FLOAT16}
"""The types that our operators compute in."""


class Nodes:
    """``op = Nodes(); op.Add(x, 1)``: the value of a new node, kept in ``op.nodes`` in order. Python's whole numbers become
    int64 constants, its fractions float32 ones; ``None`` leaves an input out; attributes go by name.

    >>> op = Nodes()
    >>> _ = op.Add(op.Shape(ir.val("x")), 1)
    >>> [n.op_type for n in op.nodes]
    ['Shape', 'Constant', 'Add']
    """

    def __init__(self) -> None:
        self._tape = Tape()

    @property
    def nodes(self) -> Sequence[ir.Node]:
        return self._tape.nodes

    def __getattr__(self, op_type: str) -> Callable[..., ir.Value]:
        def add(*inputs: Operand, **attributes: ir.Attr | str | float | Sequence[int] | None) -> ir.Value:
            values = [self.value(x) for x in inputs]
            while values and values[-1] is None:
                values.pop()
            return self._tape.op(op_type, values, attributes)

        return add

    def value(self, operand: Operand) -> ir.Value | None:
        if operand is None or isinstance(operand, ir.Value):
            return operand
        dtype = operand.dtype if isinstance(operand, np.ndarray) else np.float32 if isinstance(operand, float) else np.int64
        return self._tape.op("Constant", [], {"value": ir.tensor(np.asarray(operand, dtype))})

    def floor_divide(self, number: ir.Value, by: ir.Value | int) -> ir.Value:
        """Whole numbers, ``by`` positive: ONNX's own division rounds towards zero."""
        quotient = self.Div(number, by)
        below = self.Less(self.Sub(number, self.Mul(quotient, by)), 0)
        return self.Sub(quotient, self.Cast(below, to=ir.DataType.INT64.value))

    def size(self, x: ir.Value, axis: int) -> ir.Value:
        """Of ``x`` along ``axis``, a scalar."""
        return self.Gather(self.Shape(x), axis, axis=0)

    def count(self, stop: ir.Value | int, start: ir.Value | int = 0) -> ir.Value:
        """``start .. stop-1``."""
        return self.Range(start, stop, 1)

    def real(self, x: ir.Value) -> ir.Value:
        return self.Cast(x, to=ir.DataType.FLOAT.value)
