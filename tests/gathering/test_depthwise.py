"""Depthwise convolutions with wide kernels: torch's numbers and derivatives, asked in another way."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ccrewrite.gathering import depthwise
from ccrewrite.gathering.depthwise import depthwise_conv, takes
from ccrewrite.nn import DclsConv1d, DclsConv2d


def expected(input: Tensor, kernel: Tensor, bias: Tensor | None, pads: list[tuple[int, int]]) -> Tensor:
    data = F.pad(input, [n for pair in reversed(pads) for n in pair])
    return (F.conv1d, F.conv2d)[len(pads) - 1](data, kernel, bias, groups=len(kernel))


@given(st.data())
@settings(max_examples=60)
def test_as_torch_has_it(data: st.DataObject) -> None:
    ndim, batch, channels = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    pads = [(data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9))) for _ in range(ndim)]
    if data.draw(st.booleans()):
        pads = [(low, low) for low, _ in pads]
    sizes = [data.draw(st.integers(1, 6)) for _ in range(ndim)]
    cells = [data.draw(st.integers(1, n + low + high)) for n, (low, high) in zip(sizes, pads, strict=True)]
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    shapes = ((batch, channels, *sizes), (channels, 1, *cells), (channels,))
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    input, weight, bias = tensors
    found, wanted = depthwise_conv(input, weight, bias, pads), expected(input, weight, bias, pads)
    torch.testing.assert_close(found, wanted)
    arrived = torch.randn_like(wanted)
    for one, other in zip(
        torch.autograd.grad(found, tensors, arrived), torch.autograd.grad(wanted, tensors, arrived), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("pads", [[(2, 2), (2, 2)], [(8, 8), (1, 3)]])
def test_second_derivatives(pads: list[tuple[int, int]]) -> None:
    torch.manual_seed(0)
    shapes = (2, 2, 4, 5), (2, 1, 3, 4), (2,)
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradgradcheck(lambda x, weight, bias: depthwise_conv(x, weight, bias, pads), tensors)


@pytest.mark.parametrize("reach", [0, 9])
@pytest.mark.parametrize("ndim", [1, 2])
@pytest.mark.parametrize("last", [False, True])
def test_layers_in_float32(ndim: int, reach: int, last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = (DclsConv1d, DclsConv2d)[ndim - 1](8, 8, 3, padding=4, dilation=4, groups=8, reach=reach)
    with torch.no_grad():
        layer.sampling.offset.normal_()
    layer.sampling.form = "window"
    x = torch.randn(2, 8, *(13,) * ndim)
    if last and ndim == 2:
        x = x.to(memory_format=torch.channels_last)
    asked, convolve = list[int](), depthwise.depthwise_conv
    monkeypatch.setattr(depthwise, "depthwise_conv", lambda *a: asked.append(1) or convolve(*a))

    def run(x: Tensor) -> list[Tensor]:
        x = x.clone().requires_grad_()
        out = layer(x)
        out.relu_().square().sum().backward()
        assert x.grad is not None
        found = [out.detach(), x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]
        layer.zero_grad()
        return found

    found = run(x)
    assert asked == [1]
    layer.double()
    for one, other in zip(found, run(x.double()), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))
    assert asked == [1], "float64 is left to torch"


def test_what_is_left_to_torch() -> None:
    x, kernel = torch.randn(1, 4, 9, 9), torch.randn(4, 1, 5, 5)
    assert takes(x, kernel, (1, 1))
    assert not takes(x, kernel, (1, 2))
    assert not takes(x, torch.randn(8, 1, 5, 5), (1, 1)), "several outputs of a channel"
    assert not takes(x, torch.randn(4, 2, 5, 5), (1, 1))
    assert not takes(x, torch.randn(4, 1, 3, 3), (1, 1))
    assert not takes(x[0], kernel, (1, 1))
    assert not takes(x.double(), kernel.double(), (1, 1))
    assert not takes(torch.randn(1, 4, 9, 9, 9), torch.randn(4, 1, 5, 5, 5), (1, 1, 1))
    with torch.autocast("cpu", torch.bfloat16):
        assert not takes(x, kernel, (1, 1))
    layer = DclsConv2d(4, 4, 3, padding=2, dilation=2, groups=4)
    with torch.no_grad():
        layer.sampling.offset.normal_()
    layer.sampling.form = "window"
    torch.testing.assert_close(torch.vmap(layer)(x[None])[0], layer(x), rtol=1e-4, atol=1e-5)
    assert isinstance(torch.export.export(nn.Sequential(layer), (x,)).module(), nn.Module)
