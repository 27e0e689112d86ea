"""The layer as a function in an ONNX file, its angle beside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ccrewrite.families import OnnxCall, OnnxForm, OnnxOperator
from turned.sampling import TurnedSampling, places


@dataclass(frozen=True)
class Turned(OnnxOperator):
    name = "Turned"
    weight: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    group: int
    half: bool

    def body(self, op: Any, x: Any, weight: Any, bias: Any, more: Mapping[str, Any]) -> Any:
        dtype = np.float16 if self.half else np.float32
        tap_y, tap_x = (p.numpy().astype(dtype) for p in places(self.weight[2:], like=torch.zeros(())))
        angle = op.Unsqueeze(more["angle"], [1])
        cos, sin = op.Cos(angle), op.Sin(angle)
        place_y = op.Sub(op.Mul(cos, tap_y), op.Mul(sin, tap_x))
        place_x = op.Add(op.Mul(sin, tap_y), op.Mul(cos, tap_x))
        # (angles, taps, cells), as MatMul takes it
        share = op.Mul(hat(op, place_y, tap_y, dtype), hat(op, place_x, tap_x, dtype))
        rows, columns, *size = self.weight
        flat = op.Reshape(weight, [rows, columns, tap_y.size])
        kernel = op.Reshape(op.MatMul(flat, share), [rows, columns, *size])
        return op.Conv(x, kernel, bias, strides=self.strides, dilations=self.dilations, pads=self.pads, group=self.group)


class TurnedForm(OnnxForm):
    def __init__(self, sampling: TurnedSampling) -> None:
        self.tensors = {"angle": sampling.angle}

    def operator(self, call: OnnxCall) -> Turned:
        g = call.geometry
        pads = (*(low for low, _ in call.pads), *(high for _, high in call.pads))
        return Turned(call.weight, g.stride, g.dilation, pads, g.groups, call.dtype == torch.float16)


def hat(op: Any, place: Any, taps: np.ndarray, dtype: Any) -> Any:
    distance = op.Abs(op.Sub(op.Unsqueeze(place, [1]), taps[:, None]))
    return op.Max(op.Sub(np.array(1, dtype), distance), np.array(0, dtype))
