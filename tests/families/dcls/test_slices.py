"""Data read where taps are: the same numbers as the effective kernel, at the cost of the taps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ccrewrite.families.dcls.forms import slices, ways
from ccrewrite.families.dcls.forms.estimate import cheapest
from ccrewrite.gathering.places import Layout
from ccrewrite.nn import DclsConv1d, DclsConv2d, DclsConv3d

SHARINGS = ("tap", "group", "out", "in", "full")


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    ndim = draw(st.integers(1, 3))
    groups = draw(st.sampled_from((1, 1, 2, 4)))
    inner, each = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    axes = {
        name: tuple(draw(st.integers(low, high)) for _ in range(ndim))
        for name, low, high in (("kernel_size", 1, 3), ("dilation", 1, 4), ("stride", 1, 2), ("padding", 0, 3))
    }
    if max(axes["kernel_size"]) == 1:
        axes["kernel_size"] = (2, *axes["kernel_size"][1:])
    extent = [d * (k - 1) + 1 for k, d in zip(axes["kernel_size"], axes["dilation"], strict=True)]
    size = tuple(max(2, e - 2 * p) + draw(st.integers(0, 4)) for e, p in zip(extent, axes["padding"], strict=True))
    moved = draw(st.sampled_from((0.0, 0.3, 1.5)))
    return axes | {
        "in_channels": groups * inner,
        "out_channels": groups * each,
        "groups": groups,
        "size": size,
        "sharing": draw(st.sampled_from(SHARINGS)),
        "reach": draw(st.integers(0, 1)),
        "moved": moved,
        "every": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**16)),
    }


def layer_of(case: dict[str, Any]) -> tuple[Any, Tensor]:
    torch.manual_seed(case["seed"])
    ndim = len(case["size"])
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[ndim - 1](*(case[n] for n in names)).double()
    layer = (DclsConv1d, DclsConv2d, DclsConv3d)[ndim - 1].from_conv(conv, sharing=case["sharing"], reach=case["reach"])
    with torch.no_grad():
        offset = layer.sampling.offset
        change = case["moved"] * torch.randn_like(offset)
        # Some taps stay on their sample: there the derivative is the mean of both sides.
        offset += change if case["every"] else change * (torch.rand_like(offset) < 0.5)
    return layer, torch.randn(2, case["in_channels"], *case["size"], dtype=torch.float64)


def run(layer: Any, form: str, x: Tensor) -> list[Tensor]:
    """Output, and its gradients for input, weight, bias and positions."""
    layer.sampling.form = form
    x = x.clone().requires_grad_()
    out = layer(x)
    torch.manual_seed(1)
    return [out, *torch.autograd.grad(out, [x, *layer.parameters()], torch.randn(out.shape, dtype=torch.float64).to(out))]


def same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        scale = float(other.detach().abs().max().clamp_min(1e-6))
        assert float((one - other).detach().abs().max()) <= 1e-11 * scale


@given(calls())
@settings(max_examples=150)
def test_as_the_effective_kernel(case: dict[str, Any]) -> None:
    layer, x = layer_of(case)
    g: Any = layer.sampling.geometry
    layout = Layout(layer.sampling.window, g.stride, tuple((p, p) for p in case["padding"]), g.groups)
    if slices.takes(case["sharing"], layer.weight, layout, x.device):
        same(run(layer, "slices", x), run(layer, "window", x))


@pytest.mark.slow
@given(calls())
@settings(max_examples=10_000)
def test_as_the_effective_kernel_thousands_of_times(case: dict[str, Any]) -> None:
    layer, x = layer_of(case)
    g: Any = layer.sampling.geometry
    layout = Layout(layer.sampling.window, g.stride, tuple((p, p) for p in case["padding"]), g.groups)
    if slices.takes(case["sharing"], layer.weight, layout, x.device):
        same(run(layer, "slices", x), run(layer, "window", x))


@pytest.mark.parametrize(("sharing", "channels"), [("tap", (64, 96)), ("tap", (96, 16)), ("out", (8, 24)), ("group", (64, 64))])
def test_blocks_of_taps(sharing: str, channels: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    groups = 2 if sharing == "group" else 1
    layer = DclsConv2d(*channels, 3, dilation=3, padding=3, groups=groups, sharing=sharing, dtype=torch.float64)
    with torch.no_grad():
        layer.sampling.offset.normal_()
    x = torch.randn(2, channels[0], 9, 11, dtype=torch.float64)
    expected = run(layer, "window", x)
    for size in (1, 2**18, 2**30):
        monkeypatch.setattr(ways.Way, "block_bytes", lambda way, size=size: size)
        same(run(layer, "slices", x), expected)


@pytest.mark.parametrize("sharing", ["tap", "out", "in"])
def test_products_as_matrices_and_as_convolutions(sharing: str) -> None:
    """Many channels in float32 go another way than few, or than float64."""
    torch.manual_seed(0)
    layer = DclsConv1d(64, 80, 3, dilation=5, padding=5, sharing=sharing)
    with torch.no_grad():
        layer.sampling.offset.normal_()
    x = torch.randn(2, 64, 40)
    found = run(layer, "slices", x)
    for one, other in zip(found, run(layer.double(), "window", x.double()), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5 * float(other.detach().abs().max()))


@pytest.mark.parametrize("sharing", ["tap", "out", "depthwise"])
def test_what_devices_other_than_a_cpu_run(sharing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"groups": 8, "sharing": "full"} if sharing == "depthwise" else {"sharing": sharing}
    layer = DclsConv2d(8, 8, 3, dilation=3, padding=3, dtype=torch.float64, **options)
    with torch.no_grad():
        layer.sampling.offset.normal_()
    x = torch.randn(2, 8, 12, 9, dtype=torch.float64)
    expected = run(layer, "window", x)
    monkeypatch.setattr(slices, "way_of", lambda *a, **k: ways.Indexed)
    same(run(layer, "slices", x), expected)


@pytest.mark.parametrize("groups", [1, 4])
def test_second_derivatives(groups: int) -> None:
    torch.manual_seed(0)
    layer = DclsConv1d(4, 4, 3, dilation=2, padding=2, groups=groups, reach=1, dtype=torch.float64)
    layer.sampling.form = "slices"
    with torch.no_grad():
        layer.sampling.offset.uniform_(-0.4, 0.4)
    x = torch.randn(1, 4, 7, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "sampling.offset": offset}, (x,))

    tensors = x, layer.weight.detach().requires_grad_(), layer.sampling.offset.detach().requires_grad_()
    assert torch.autograd.gradgradcheck(function, tensors)


def test_unbatched_and_other_types() -> None:
    torch.manual_seed(0)
    layer = DclsConv1d(8, 8, 3, dilation=4, padding=4)
    with torch.no_grad():
        layer.sampling.offset.normal_()
    x = torch.randn(8, 30)
    layer.sampling.form = "slices"
    assert layer(x).shape == (8, 30)
    torch.testing.assert_close(layer(x), layer(x[None])[0])
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x[None])
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), layer(x[None]), rtol=3e-2, atol=3e-2)


def test_it_is_chosen_by_the_sizes_of_the_call() -> None:
    far, near = torch.empty(128, 64, 2), torch.empty(16, 16, 3, 3)
    one = Layout((513,), (1,), [(256, 256)], 1)
    assert cheapest("bands", "tap", torch.empty(1, 64, 4000), far, one, True) == "slices"
    assert cheapest("window", "tap", torch.empty(1, 64, 4000), far, one, True) == "slices"
    close = Layout((3, 3), (1, 1), [(1, 1), (1, 1)], 1)
    assert cheapest("window", "tap", torch.empty(1, 16, 64, 64), near, close, True) == "window"
    assert cheapest("window", "full", torch.empty(1, 64, 4000), far, one, True) == "window", "each weight has its own place"


def test_what_a_step_keeps() -> None:
    """The inputs: nothing of the size taps x input."""
    torch.manual_seed(0)
    layer = DclsConv1d(64, 64, 5, dilation=64, padding=128)
    with torch.no_grad():
        layer.sampling.offset.normal_()
    layer.sampling.form = "slices"
    x = torch.randn(1, 64, 2000, requires_grad=True)
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    assert sum(kept) <= 1.5 * x.numel() + math.prod(layer.weight.shape)


@pytest.mark.parametrize("groups", [1, 16])
def test_outputs_may_be_changed_in_place(groups: int) -> None:
    layer = DclsConv2d(16, 16, 3, padding=8, dilation=8, groups=groups)
    out = layer(torch.randn(2, 16, 20, 20, requires_grad=True))
    out.relu_().sum().backward()
    assert layer.sampling.offset.grad is not None
