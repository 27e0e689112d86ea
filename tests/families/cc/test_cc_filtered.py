"""Filters beside the untouched weight: the same numbers as the kernel in its window, with the same derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ccrewrite.families.cc import filtered, native
from ccrewrite.gathering import filters
from ccrewrite.nn import CCConv1d, CCConv2d, CCConv3d, CCConvTranspose1d, CCConvTranspose2d, CCConvTranspose3d

CONV = {1: CCConv1d, 2: CCConv2d, 3: CCConv3d}
TRANSPOSED = {1: CCConvTranspose1d, 2: CCConvTranspose2d, 3: CCConvTranspose3d}


@st.composite
def calls(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    ndim, transposed = draw(st.integers(1, 3)), draw(st.booleans())
    inner, out = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    several = st.tuples(*[st.integers(1, 3)] * ndim)
    kernel, stride, dilation = draw(several), draw(several), draw(st.tuples(*[st.integers(1, 2)] * ndim))
    padding = draw(st.tuples(*[st.integers(0, 2)] * ndim))
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    if transposed:
        options["output_padding"] = tuple(draw(st.integers(0, s - 1)) for s in stride)
    options |= {"reach": draw(st.integers(0, 2)), "sharing": draw(st.sampled_from(("tap", "axis"))), "axes": None}
    options |= {"bias": draw(st.booleans()), "dtype": torch.float64}
    torch.manual_seed(draw(st.integers(0, 2**16)))
    layer = (TRANSPOSED if transposed else CONV)[ndim](inner, out, kernel, **options)
    with torch.no_grad():
        for parameter in layer.sampling.parameters():
            parameter += draw(st.sampled_from((0.0, 0.3))) * torch.randn_like(parameter)
    extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [draw(st.integers(0, 5)) + max(2, e) + 2 * (p if transposed else 0) for e, p in zip(extent, padding, strict=True)]
    return layer, torch.randn(draw(st.integers(1, 3)), inner, *size, dtype=torch.float64)


def run(layer: nn.Module, x: Tensor, pays: bool, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Output, and its gradients for the input and all parameters."""
    monkeypatch.setattr(filtered, "pays", lambda *_, **__: pays)
    x = x.clone().requires_grad_()
    out = layer(x)
    torch.manual_seed(1)
    given = torch.autograd.grad(out, [x, *layer.parameters()], torch.randn_like(out), allow_unused=True)
    return [out.detach(), *(g for g in given if g is not None)]


def check(layer: nn.Module, x: Tensor, rows: int) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        asked = list[int]()
        bank = filters.Bank.meet
        monkeypatch.setattr(filters, "BLOCK_BYTES", rows)
        monkeypatch.setattr(filters.Bank, "meet", lambda *a, **k: asked.append(1) or bank(*a, **k))
        expected = run(layer, x, False, monkeypatch)
        assert not asked
        for one, other in zip(run(layer, x, True, monkeypatch), expected, strict=True):
            scale = float(other.abs().max().clamp_min(1e-6))
            assert float((one - other).abs().max()) <= 1e-11 * scale
        assert asked


@given(calls(), st.sampled_from((1, 2**10, 2**22)))
@settings(max_examples=60)
def test_as_the_window(call: tuple[nn.Module, Tensor], rows: int) -> None:
    check(*call, rows)


@pytest.mark.slow
@given(calls(), st.sampled_from((1, 2**10, 2**22)))
@settings(max_examples=5_000)
def test_as_the_window_thousands_of_times(call: tuple[nn.Module, Tensor], rows: int) -> None:
    check(*call, rows)


@pytest.mark.parametrize("transposed", [False, True])
def test_second_derivatives(transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(filtered, "pays", lambda *_, **__: True)
    layer = (CCConvTranspose2d if transposed else CCConv2d)(2, 3, 2, stride=2, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.sampling.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    tensors = dict(layer.named_parameters())

    def function(x: Tensor, *given: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(tensors, given, strict=True)), (x,))

    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(function, (x, *(t.detach().requires_grad_() for t in tensors.values())))


def test_it_is_chosen_by_the_sizes_of_the_call() -> None:
    """Many samples of few channels gain; in training a layer that is mostly weight doesn't, and a tiny one never."""
    torch.manual_seed(0)
    cases = {(64, 128, 64): (True, True), (256, 512, 14): (True, False), (4, 4, 8): (False, False)}
    for (inner, out, size), expected in cases.items():
        layer = CCConv2d(inner, out, 3, stride=2, padding=1)
        s, x = layer.sampling, torch.zeros(1, inner, size, size)
        cost = native.cheapest_cost(s.along(), s.geometry, s.margin, (size, size))
        for training in (False, True):
            with torch.set_grad_enabled(training):
                assert filtered.pays(x, s.geometry, cost_of_others=cost) is expected[training]
