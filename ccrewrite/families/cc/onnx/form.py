"""What a CC layer becomes in an ONNX file: ``CCForm``."""

from __future__ import annotations

import torch
from torch import Tensor

from ccrewrite.families.cc.onnx.axis import Axis, Profile
from ccrewrite.families.cc.onnx.memory import memory_of
from ccrewrite.families.cc.onnx.operator import CCConv
from ccrewrite.families.cc.profile import gain
from ccrewrite.families.cc.sampling import CCSampling
from ccrewrite.families.onnx import OnnxCall, OnnxForm
from ccrewrite.ir.geometry import Ints
from ccrewrite.ir.onnx_nodes import DTYPES


class CCForm(OnnxForm):
    """A ``CCSampling`` at an output size that is known when the file runs."""

    sized = True

    def __init__(self, layer: CCSampling) -> None:
        self.layer = layer
        self.tensors = {} if layer.at_start() else learned(layer)

    def operator(self, call: OnnxCall) -> CCConv:
        g, layer = call.geometry, self.layer
        axes = tuple(
            Axis(
                taps=g.kernel_size[a],
                stride=g.stride[a],
                dilation=g.dilation[a],
                low=call.pads[a][0],
                high=call.pads[a][1],
                profile=Profile.of(along),
                transposed=g.transposed,
                centred=layer.alignment == "centred",
                rescaled=layer.rescaled,
                mode=g.padding_mode,
                dtype=DTYPES[call.dtype].value,
            )
            for a, along in enumerate(layer.along())
        )
        return CCConv(axes, g.groups)

    def memory(self, call: OnnxCall, input: Ints, native: Ints, asked: Ints) -> int:
        g = call.geometry
        hidden = [self.tensors[f"layer{a}_0"].numel() if f"gain{a}" in self.tensors else None for a in range(g.ndim)]
        data = (input[0], g.in_channels, *input[2:])
        if g.transposed:  # resampled after its convolution: side by side its taps, or natively its outputs
            sizes = [
                n * k if own is not None else (n - 1) * s + d * (k - 1) + 1
                for n, k, s, d, own in zip(input[2:], g.kernel_size, g.stride, g.dilation, hidden, strict=True)
            ]
            data = (input[0], g.out_channels, *sizes)
        return memory_of(self.operator(call).axes, data, native, asked, hidden, call.dtype.itemsize)


def learned(layer: CCSampling) -> dict[str, Tensor]:
    """``shift``, where there is one, and for each continuous axis ``gain<axis>`` and ``layer<axis>_<number>``."""
    found: dict[str, Tensor] = {} if layer.shift is None else {"shift": layer.shift}
    alongs = layer.along()
    for a in layer.axes:
        along = alongs[a]
        taps = torch.arange(layer.kernel_size[a], device=along.layers[0].device)
        found[f"gain{a}"] = gain(taps, along)
        found |= {f"layer{a}_{i}": tensor for i, tensor in enumerate(along.layers)}
    return found
