"""``ResizableSampling``: what a family gets from it that gives another output size by means of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.families.adopt import adopt_, release_
from ccrewrite.families.resizable import ResizableSampling, scaled_size
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.passes.scales.resize import resized
from ccrewrite.passes.scales.scale_groups import scale_groups


class Interpolated(ResizableSampling):
    """Another size by interpolating the convolution's output."""

    def __init__(self, geometry: ConvGeometry) -> None:
        super().__init__(geometry)
        self.gain = nn.Parameter(torch.zeros(1))

    def movers(self) -> list[Tensor]:
        return [self.gain]

    def kernel(self, weight: Tensor) -> Tensor:
        return weight * (1 + self.gain)

    def at_size(self, input: Tensor, weight: Tensor, bias: Any, call: dict[str, Any], asked: Any, scale: Any) -> Tensor:
        call = {name: value for name, value in call.items() if name != "padding_mode"}
        native = self.moved(input, weight, bias, call)  # pyright: ignore[reportArgumentType]
        scales = scale if isinstance(scale, tuple) else (scale or 1,) * self.ndim
        size = asked or tuple(scaled_size(n, s) for n, s in zip(native.shape[2:], scales, strict=True))
        return F.interpolate(native, size)


@pytest.mark.parametrize("conv", [nn.Conv2d(2, 3, 3, 2, 1), nn.ConvTranspose2d(2, 3, 4, 2, 1)], ids=["conv", "transposed"])
def test_a_family_of_its_own_gets_layers_that_take_a_size(conv: Any) -> None:
    x, expected = torch.randn(1, 2, 8, 8), None
    with torch.no_grad():
        expected = conv(x)
        layer: Any = adopt_(conv, Interpolated(ConvGeometry.from_module(conv)))
        assert torch.equal(layer(x), expected)
        assert layer(x, output_size=(3, 5)).shape[2:] == (3, 5)
        layer.sampling.scale = (0.5, 1.5)
        assert layer(x).shape[2:] == tuple(scaled_size(n, s) for n, s in zip(expected.shape[2:], (0.5, 1.5), strict=True))
        layer.sampling.scale, layer.sampling.output_size = None, 4
        assert layer(x).shape[2:] == (4, 4)
        assert repr(layer.sampling) == "Interpolated(output_size=(4, 4))"
        with pytest.raises(InputError, match="output_size and scale can't both be set"):
            layer.sampling.scale = 0.5
        assert type(release_(layer)) in (nn.Conv2d, nn.ConvTranspose2d)


def test_its_sites_are_in_scale_groups() -> None:
    conv = nn.Conv2d(1, 4, 3, 2, 1)
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1)).eval()
    adopt_(conv, Interpolated(ConvGeometry.from_module(conv)))
    x = torch.randn(1, 1, 16, 16)
    assert [group.free for group in scale_groups(model, x)] == [True]
    with torch.no_grad(), resized(model, {"0": 0.5}, x):
        assert model[0](x).shape[2:] == (4, 4)


def test_where_the_outputs_look() -> None:
    geometry = ConvGeometry.from_module(nn.Conv1d(1, 1, 3, 2, 1))
    sampling = Interpolated(geometry)
    assert sampling.axis_map(geometry, 0, 16, 8) == geometry.axis_map(0)
    assert sampling.axis_map(geometry, 0, 16, 4).project(0) == 1  # cells of four samples, the first from -1 to 3
    sampling.alignment = "centred"
    assert sampling.axis_map(geometry, 0, 16, 4).project(0) == 1.5
    sampling.alignment, sampling.rescaled = "native", True
    assert sampling.axis_map(geometry, 0, 16, 4).project(0) == 0.5  # the offset of half a sample is now one of a whole one
