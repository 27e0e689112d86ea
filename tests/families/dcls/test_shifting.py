"""The form of DCLS that moves products instead of convolving with the window: the same numbers and the same gradients."""

from typing import Any

import pytest
import torch
from torch import nn

import ccrewrite
from ccrewrite.families.dcls.forms.bands import banded_conv, pays
from ccrewrite.families.dcls.sampling import DclsSampling
from ccrewrite.ir.geometry import ConvGeometry

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@pytest.mark.parametrize("moved", [0.0, 0.7, 5.0], ids=["start", "moved", "at the borders"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("interpolation", ["linear", "gaussian", "triangle"])
@pytest.mark.parametrize("sharing", ["tap", "out"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_equals_the_window(ndim, sharing, interpolation, stride, moved):
    conv = CONVOLUTIONS[ndim - 1](3, 4, 3, stride=stride, padding=(2, 3, 1)[:ndim], dilation=2).double()
    geometry = ConvGeometry.from_module(conv)
    sampling = DclsSampling.of(geometry, sharing=sharing, interpolation=interpolation, reach=1, dtype=torch.float64)
    with torch.no_grad():
        for p in sampling.parameters():
            p.add_(moved * torch.randn_like(p).abs())
    x = torch.randn(2, 3, *(9, 8, 7)[:ndim], dtype=torch.float64, requires_grad=True)
    weight, bias = conv.weight, conv.bias
    window = sampling(x, weight, bias, conv.stride, conv.padding, conv.dilation, 1)
    places = sampling.offset, sampling.widening, sampling.grid
    pads = tuple((p + 1, p + 1) for p in conv.padding)
    shifted = banded_conv(x, weight, *places, conv.stride, pads) + bias.view(-1, *(1,) * ndim)
    torch.testing.assert_close(shifted, window, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(window)
    tensors = [x, weight, bias, *sampling.parameters()]
    for one, other in zip(
        torch.autograd.grad(shifted, tensors, upstream), torch.autograd.grad(window, tensors, upstream), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_second_derivatives():
    sampling = DclsSampling.of(ConvGeometry.from_module(nn.Conv2d(2, 2, 2, dilation=4)), dtype=torch.float64)
    places = sampling.widening, sampling.grid, (1, 1), ((2, 2), (2, 2))

    def function(x, weight, offset):
        return banded_conv(x, weight, offset, *places)

    inwards = torch.tensor([1.0, -1.0]).double()  # both taps stand on a border of the window
    signs = torch.stack([inwards[:, None].expand(2, 2), inwards.expand(2, 2)])[:, None, None]
    inputs = (torch.randn(1, 2, 5, 4), torch.randn(2, 2, 2, 2), signs * (0.3 + 0.2 * torch.rand_like(sampling.offset)))
    inputs = tuple(t.detach().double().requires_grad_() for t in inputs)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def wide_model() -> nn.Module:
    """Both layers of it are cheaper by moving products."""
    return nn.Sequential(
        nn.Conv2d(64, 32, 3, padding=6, dilation=6), nn.Conv2d(32, 64, 3, padding=(8, 9), dilation=8, stride=2)
    )


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo's, of autograd functions
def test_all_ways_of_running():
    model: Any = wide_model().eval()
    x = torch.randn(2, 64, 33, 30)
    result: Any = ccrewrite.rewrite(model, x)
    assert all(layer.sampling.default_form == "bands" for layer in result.model)
    torch.testing.assert_close(result.model(x), model(x), rtol=0, atol=1e-6)  # with gradients: by moving
    with torch.no_grad():
        for layer in result.model:
            layer.sampling.offset.add_(torch.randn_like(layer.sampling.offset))
    moved = result.model(x)
    with torch.no_grad():
        kernels = [layer.sampling.kernel(layer.weight) for layer in result.model]
    first = nn.functional.conv2d(x, kernels[0], model[0].bias, padding=6)
    window = nn.functional.conv2d(first, kernels[1], model[1].bias, stride=2, padding=(8, 9))
    torch.testing.assert_close(moved, window, rtol=0, atol=1e-5)
    ways = [
        torch.compile(result.model, fullgraph=True, backend="aot_eager"),
        torch.export.export(result.model, (x,)).module(),
        torch.fx.symbolic_trace(result.model),
    ]
    for way in ways:
        torch.testing.assert_close(way(x), moved, rtol=0, atol=1e-6)
    torch.testing.assert_close(result.model[0](x[0]), result.model[0](x)[0], rtol=0, atol=1e-6)


def test_sizes_may_change_after_export():
    model, x = ccrewrite.rewrite(wide_model().eval(), torch.randn(2, 64, 33, 30)).model, torch.randn(2, 64, 33, 30)
    dims = {0: torch.export.Dim("N"), 2: torch.export.Dim("H", min=20), 3: torch.export.Dim("W", min=20)}
    exported = torch.export.export(model, (x,), dynamic_shapes=(dims,)).module()
    other = torch.randn(3, 64, 40, 45)
    torch.testing.assert_close(exported(other), model(other), rtol=0, atol=1e-6)


def test_it_is_chosen_where_the_window_is_almost_empty():
    assert pays(taps=9, window=(25, 25), stride=(1, 1), channels=2048)
    assert not pays(taps=9, window=(5, 5), stride=(1, 1), channels=256)
    assert not pays(taps=9, window=(9, 9), stride=(1, 1), channels=8)
    assert DclsSampling.of(ConvGeometry.from_module(nn.Conv2d(64, 64, 3, dilation=12, groups=64))).default_form == "window"
