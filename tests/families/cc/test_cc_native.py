"""CC layers off their start at their native size: every form is the convolution with the window."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from family_layers import LAYERS
from geometries import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ccrewrite import nn as ccnn
from ccrewrite.families.cc import native, toeplitz
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.geometry import ConvGeometry

F64 = torch.float64


def moved(layer: Any, by: float = 0.3) -> Any:
    with torch.no_grad():
        for p in layer.sampling.movers():
            p += by * torch.randn_like(p)
    return layer


def choose(monkeypatch: pytest.MonkeyPatch, axes: tuple[int, ...], block: int = 32) -> None:
    """As if these axes were the cheapest to resample (those without a window, too)."""

    def chosen(geometry: ConvGeometry, *_: Any) -> tuple[int, ...]:
        forced = (a for a in range(geometry.ndim) if geometry.transposed and geometry.output_padding[a] >= geometry.stride[a])
        return tuple(sorted({*axes, *forced} & set(range(geometry.ndim))))

    monkeypatch.setattr(native, "cheapest", chosen)
    monkeypatch.setattr(toeplitz, "BLOCK", block)


AXES = [axes for n in range(4) for axes in itertools.combinations(range(3), n)]


@settings(max_examples=200)
@given(
    cases(),
    st.sampled_from(AXES),
    st.sampled_from([1, 2, 32]),
    st.integers(0, 2),
    st.sampled_from(AXES),
    st.sampled_from(["tap", "axis"]),
)
@torch.no_grad()
def test_every_form_is_the_convolution_with_the_window(
    case: Case, axes: tuple[int, ...], block: int, reach: int, continuous: tuple[int, ...], sharing: str
) -> None:
    """``continuous``: the axes that can learn something, where they are some of the layer's."""
    options: dict[str, Any] = {"hidden": 2, "reach": reach, "sharing": sharing}
    if set(continuous) & set(range(len(case.sizes))):
        options["axes"] = tuple(a for a in continuous if a < len(case.sizes))
    layer: Any = moved(LAYERS[ccnn.CCSampling, type(case.conv)].from_conv(case.conv, **options))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ccnn.CCSampling, "moved", Sampling.moved)
        expected = layer(case.input, *case.extra)
    for some in (axes, None):  # as the layer itself chooses, too
        with pytest.MonkeyPatch.context() as patch:
            if some is not None:
                choose(patch, some, block)
            found = layer(case.input, *case.extra)
        assert found.shape == expected.shape == case.native().shape
        assert float((found - expected).abs().max()) <= 1e-12 * max(1.0, float(expected.abs().max()))


OPTIONS: dict[str, dict[str, Any]] = {
    "nodes": {},
    "mlp": {"kernel": "mlp"},
    "one residual for all taps": {"sharing": "axis"},
    "one axis plain": {"axes": (1,), "sharing": "axis"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("axes", "block"), [((0, 1), 32), ((0, 1), 1), ((1,), 2)])
def test_derivatives(
    transposed: bool, axes: tuple[int, ...], block: int, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry: dict[str, Any] = {"stride": 2, "padding": 1, "dilation": (2, 1), "groups": 2, "dtype": F64}
    conv = (nn.ConvTranspose2d if transposed else nn.Conv2d)(2, 4, (2, 3), **geometry)
    layer = moved(LAYERS[ccnn.CCSampling, type(conv)].from_conv(conv, hidden=2, **options), 0.1)
    x = torch.randn(1, 2, *((3, 3) if transposed else (6, 7)), dtype=F64)
    names, values = zip(*layer.named_parameters(), strict=True)
    choose(monkeypatch, axes, block)

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    inputs = (x.requires_grad_(), *(v.detach().requires_grad_() for v in values))
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


def last_seen(layer: Any, x: Tensor) -> list[int]:
    """The last input sample that each output depends on."""
    out = layer(nn.functional.pad(x, (3, 0)))[0, 0]
    gradients = [torch.autograd.grad(y, x, retain_graph=True)[0][0, 0].abs() for y in out]
    return [int((g > 1e-12).nonzero().max()) for g in gradients]


@pytest.mark.parametrize("reach", [0, 1, 2])
def test_a_causal_convolution_stays_causal_without_reach(reach: int) -> None:
    """Padded by hand on the left, stride 2: output y sees the input up to sample 2 y. At another size, what is read between
    samples looks ahead, moved or not, and with reach 0 what is learned no further."""
    conv = nn.Conv1d(1, 1, 4, 2, dtype=F64)
    plain = ccnn.CCConv1d.from_conv(conv)
    layer = moved(ccnn.CCConv1d.from_conv(conv, reach=reach))
    x = torch.randn(1, 1, 20, dtype=F64, requires_grad=True)
    assert last_seen(plain, x) == [2 * y for y in range(10)]
    assert last_seen(layer, x) == [min(2 * y + reach, 19) for y in range(10)]
    layer.output_size = plain.output_size = 14
    further = [a > b for a, b in zip(last_seen(layer, x), last_seen(plain, x), strict=True)]
    assert any(further) == (reach > 0)


def test_without_reach_nothing_costs_more_than_the_plain_layer() -> None:
    layer = ccnn.CCConv2d(8, 8, 3, 2, 1, reach=0)
    assert layer.sampling.window == (3, 3)
    assert layer.sampling.kernel(layer.weight).shape == layer.weight.shape
    gradients = torch.autograd.grad(layer(torch.randn(1, 8, 9, 9)).square().sum(), layer.sampling.movers())
    assert all(g.abs().max() > 0 for g in gradients)


GEOMETRIES: dict[str, tuple[nn.Module, tuple[int, ...], tuple[int, ...]]] = {
    "pointwise, transposed, 3-d": (nn.ConvTranspose3d(64, 32, 1, 2), (8, 8, 8), (0, 1, 2)),
    "few channels": (nn.Conv2d(3, 32, 3, 2, 1), (64, 64), ()),
    "depthwise": (nn.Conv2d(64, 64, 3, 2, 1, groups=64), (32, 32), ()),
    "many channels": (nn.Conv2d(256, 256, 3, 2, 1), (14, 14), (0, 1)),
    "nothing beyond the extent": (nn.Conv2d(256, 256, 1, 2), (14, 14), ()),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_cheapest_form_follows_from_the_geometry(name: str) -> None:
    conv, sizes, axes = GEOMETRIES[name]
    reach = 0 if name == "nothing beyond the extent" else 2
    geometry = ConvGeometry.from_module(conv)  # type: ignore[arg-type]
    assert native.cheapest(geometry, (reach,) * geometry.ndim, sizes) == axes


def test_multiplications_of_a_pointwise_layer() -> None:
    """A window of 5^3 cells takes 125 times those of the plain layer; resampled, it takes a few times as many."""
    from torch.utils.flop_counter import FlopCounterMode

    conv = nn.ConvTranspose3d(64, 32, 1, 2)
    layer, x = moved(ccnn.CCConvTranspose3d.from_conv(conv)), torch.randn(1, 64, 8, 8, 8)
    counts = []
    for module in (conv, layer):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(x)
        counts.append(counter.get_total_flops())
    assert counts[1] <= 4 * counts[0], counts


def test_long_axes_of_any_size_export_as_one_program() -> None:
    layer = moved(ccnn.CCConv1d(3, 24, 4, 2, 1))
    model = nn.Sequential(layer, moved(ccnn.CCConvTranspose1d(24, 8, 4, 2, 1)))
    length = torch.export.Dim("length", min=16, max=4096)
    program = torch.export.export(model, (torch.randn(1, 3, 64),), dynamic_shapes=({2: 2 * length},))
    for n in (64, 300, 2000):
        x = torch.randn(1, 3, n)
        torch.testing.assert_close(program.module()(x), model(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_long_axis_between_whose_samples_outputs_read_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = nn.ConvTranspose1d(4, 4, 1, 2, 1, dtype=F64)
    layer = moved(ccnn.CCConvTranspose1d.from_conv(conv, reach=0))
    x = torch.randn(1, 4, 100, dtype=F64)
    choose(monkeypatch, ())
    expected = layer(x)
    choose(monkeypatch, (0,))
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)
