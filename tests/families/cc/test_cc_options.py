"""Which axes become continuous, and what their taps share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ccrewrite
from ccrewrite import nn as ccnn
from ccrewrite.errors import InputError
from ccrewrite.families.cc import native
from ccrewrite.families.cc.profile import factor, profile
from ccrewrite.families.cc.sampling import continuous_axes
from ccrewrite.ir.geometry import ConvGeometry


def moved(layer: Any, by: float = 0.3) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for p in layer.sampling.movers():
            p += by * torch.randn_like(p)
    return layer


def test_an_axis_of_one_tap_and_stride_1_stays_plain() -> None:
    model, x = nn.Sequential(nn.Conv2d(1, 8, (16, 1), stride=(4, 1))), torch.randn(2, 1, 64, 3)
    result = ccrewrite.rewrite(model, x)
    layer: Any = result.model.get_submodule("0")
    assert layer.sampling.window == (20, 1)
    assert layer.sampling.axes == (0,)
    assert (layer.sampling.shift.shape, len(layer.sampling.residual)) == ((1,), 1)
    (site,) = result.plan
    assert "window 20x1, reach 2, sharing tap, axis 1 left plain" in site.message
    moved(layer)
    with torch.no_grad():  # columns don't mix
        assert torch.equal(layer(x)[..., :1], layer(x[..., :1]))
    assert result.check.ok


@pytest.mark.parametrize(
    ("conv", "axes"),
    [
        (nn.Conv2d(1, 1, 3, 2), (0, 1)),
        (nn.Conv2d(1, 1, 1, (1, 2)), (1,)),
        (nn.ConvTranspose3d(1, 1, (1, 1, 2), (1, 2, 1)), (1, 2)),
        (nn.Conv2d(1, 1, 1), None),  # of nothing: whoever asks for this layer means all
    ],
)
def test_which_axes(conv: Any, axes: Any) -> None:
    assert continuous_axes(ConvGeometry.from_module(conv), "nodes") == axes
    assert continuous_axes(ConvGeometry.from_module(conv), "mlp") is None


def test_a_sampling_says_its_options() -> None:
    layer = ccnn.CCConv2d(2, 3, (3, 1), stride=(2, 1), sharing="axis", reach=1, basis="linear")
    options = layer.sampling.options()
    assert (options["axes"], options["sharing"], options["reach"]) == ([0], "axis", 1)
    options["axes"] = tuple(options["axes"])
    again = ccnn.CCSampling.of(ConvGeometry.from_module(layer), **options)
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in layer.sampling.named_parameters()}
    assert ccnn.CCSampling.of(ConvGeometry.from_module(layer)).axes == (0, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"axes": ()}, r"axes must be some of \(0, 1\), found \(\)"),
        ({"axes": (2,)}, "axes must be some of"),
        ({"axes": (0,), "kernel": "mlp"}, r"axes must be all of \(0, 1\) for kernel 'mlp'"),
        ({"sharing": "axis", "kernel": "mlp"}, "no residual to share"),
        ({"sharing": "taps"}, "sharing must be one of 'tap', 'axis'"),
    ],
)
def test_options_that_cannot_be(options: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        ccnn.CCConv2d(1, 1, 3, 2, **options)


@torch.no_grad()
def test_one_residual_for_all_taps_is_the_same_one_for_each() -> None:
    conv = nn.Conv2d(2, 3, 3, 2, 1, dtype=torch.float64)
    shared: Any = moved(ccnn.CCConv2d.from_conv(conv, sharing="axis", hidden=4))
    each: Any = ccnn.CCConv2d.from_conv(conv, hidden=4)
    state = {n: t.expand(3, *t.shape[1:]) if ".last." in n else t for n, t in shared.sampling.state_dict().items()}
    each.sampling.load_state_dict(state)
    x = torch.randn(1, 2, 9, 10, dtype=torch.float64)
    for size in (None, 4, 8):
        shared.output_size = each.output_size = size
        torch.testing.assert_close(shared(x), each(x), rtol=0, atol=1e-12)


def test_wide_layers_that_share_are_a_filter_and_the_plain_convolution() -> None:
    for conv in (nn.Conv2d(256, 256, 3, 2, 1), nn.ConvTranspose2d(256, 256, 4, 2, 1)):
        geometry = ConvGeometry.from_module(conv)
        for sampling, form in (
            (ccnn.CCSampling(geometry, sharing="axis"), "filter"),
            (ccnn.CCSampling(geometry, sharing="tap"), "taps"),
        ):
            assert native._forms(sampling.along(), geometry, sampling.margin, (28, 28)) == [form, form]
    pointwise = ConvGeometry.from_module(nn.Conv2d(256, 256, 1, 2))  # fewer places than samples: no filter
    sampling = ccnn.CCSampling(pointwise, sharing="axis")
    assert native._forms(sampling.along(), pointwise, sampling.margin, (28, 28)) == ["taps", "taps"]


@pytest.mark.parametrize("reach", [0, 1, 2])
@pytest.mark.parametrize("dilation", [1, 3])
@torch.no_grad()
def test_what_taps_contribute_is_the_profile_at_every_cell(dilation: int, reach: int) -> None:
    """Evaluated where it is not zero alone."""
    layer: Any = moved(ccnn.CCConv1d(1, 1, 40, 2, dilation=dilation, reach=reach, dtype=torch.float64))
    (along,) = layer.sampling.along()
    cells = torch.arange(-reach, dilation * 39 + 1 + reach, dtype=torch.float64)
    expected, _ = profile(cells - dilation * torch.arange(40)[:, None], None, along)
    found = factor(along, 40, dilation, reach, torch.device("cpu"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)


def test_what_is_recorded_and_pictured_has_the_continuous_axes_alone() -> None:
    sampling = moved(ccnn.CCConv2d(1, 2, (3, 1), stride=(2, 1))).sampling
    assert [tuple(t.shape) for t in sampling.recording().tensors] == [(3, 41)]
    picture = sampling.picture()
    assert [entry["axis"] for entry in (*picture["drift"], *picture["profiles"]["axes"])] == [0, 0]
    other = ccnn.CCConv2d(1, 2, 3, stride=2, axes=(1,)).sampling
    assert other.picture()["drift"] == [{"axis": 1, "shift": 0.0, "residual_max_abs": 0.0}]
    assert float(ccnn.nyquist_penalty(nn.Sequential(ccnn.CCConv2d(1, 2, (3, 1), stride=(2, 1)))).detach()) == 0


# Dynamo's, of autograd functions.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("scale", [None, pytest.param(0.7, marks=pytest.mark.slow)])
@pytest.mark.parametrize("transposed", [False, True])
def test_compiled_exported_and_traced(transposed: bool, scale: float | None) -> None:
    kind = ccnn.CCConvTranspose2d if transposed else ccnn.CCConv2d
    layer = moved(kind(2, 4, (4, 1), stride=(2, 1), padding=(1, 0), sharing="axis"))
    model: Any = nn.Sequential(layer)
    layer.scale = scale
    torch._dynamo.reset()
    height = torch.export.Dim("height", min=16, max=600)
    x = torch.randn(1, 2, 32, 5)
    exported = torch.export.export(model, (x,), dynamic_shapes=({2: 2 * height},)).module()
    ways = [torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager"), torch.fx.symbolic_trace(model), exported]
    with torch.no_grad():
        for size in (32, 50):
            x = torch.randn(1, 2, size, 5)
            for way in ways:
                torch.testing.assert_close(way(x), model(x), atol=1e-5, rtol=1e-5)
