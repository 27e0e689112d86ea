"""Folding knows samplings by their protocol: those of somebody else's, with no more than it must have, and with more."""

from __future__ import annotations

import html
from typing import Any

import pytest
import torch
from moved import ours, worst
from stranger import VolumeSampling
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import InputError
from ccrewrite.families.adopt import adopt_
from ccrewrite.folded.alternative import Alternative
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.passes.fold import alternatives, fold


class Doubtful(VolumeSampling):
    """In training, one that draws."""

    def kernel(self, weight: Tensor) -> Tensor:
        return super().kernel(weight) * (torch.rand(()) if self.training else 1)


class Rounding(VolumeSampling):
    """One that offers another layer, and snaps."""

    def alternatives(self, geometry: ConvGeometry) -> tuple[Alternative, ...]:
        def make_(conv: nn.modules.conv._ConvNd) -> str:
            conv.weight = nn.Parameter(conv.weight.detach() * self.volume.exp())
            return f"{geometry.out_channels} filters, each turned up or down"

        loud = Alternative("loud", 2.0, 1.0, self.window, 9, make_)
        return Alternative("quiet", 1.5, 3.0, self.window, 9, make_), loud

    @torch.no_grad()
    def snap_(self, tol: float, *, width: float | None = None) -> float:
        moved = float((self.volume.round() - self.volume).abs().max())
        self.volume.round_()
        return moved


def model(kind: type[VolumeSampling], volume: float = 0.3, **options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, dilation=2, dtype=torch.float64, **options)
    sampling = kind(ConvGeometry.from_module(conv), dtype=torch.float64)
    nn.init.constant_(sampling.volume, volume)
    return nn.Sequential(adopt_(conv, sampling), nn.BatchNorm2d(4, dtype=torch.float64))


X = torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [VolumeSampling, Doubtful])
def test_movers_and_a_kernel_are_enough(kind: type[VolumeSampling]) -> None:
    result = fold(model(kind), X)
    assert (result["0"].code, result["0"].message, result.check.ok) == ("convolution", "k3 d2", True)
    assert ours(result.model) == []
    assert worst(result.model, model(kind), X) <= 1e-12
    assert fold(model(kind, 0.0), X)["0"].code == "original"
    assert alternatives(model(kind)) == {}
    assert fold(model(kind), X, tol=0.5)["0"].moved == 0


@pytest.mark.parametrize("kind", [VolumeSampling, Doubtful])
def test_where_the_weight_is_read_elsewhere(kind: type[VolumeSampling]) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = model(kind)

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x) * self.layers[0].weight.square().sum()  # pyright: ignore[reportCallIssue]

    result = fold(Reads(), X)
    assert (result["layers.0"].code, result.check.ok) == ("geometry", True)
    assert ours(result.model) == []


def test_a_layer_that_it_offers_is_taken() -> None:
    assert [a.name for a in alternatives(model(Rounding))["0"]] == ["quiet", "loud"]
    for forms, code in (("estimated", "loud"), ({"0": "quiet"}, "quiet"), ({"0": "dense"}, "convolution")):
        result = fold(model(Rounding), X, forms=forms)  # pyright: ignore[reportArgumentType]
        assert (result["0"].code, result.check.ok) == (code, True)
        assert worst(result.model, model(Rounding), X) <= 1e-12
    assert fold(model(Rounding), X, forms="estimated")["0"].message == "4 filters, each turned up or down"
    with pytest.raises(InputError, match=r"'silent'; the sites that have a choice are: 0 \(quiet or loud or dense\)"):
        fold(model(Rounding), X, forms={"0": "silent"})


def test_it_is_snapped() -> None:
    result = fold(model(Rounding, 0.9), X, tol=0.2)
    assert result["0"].moved == pytest.approx(0.1)
    assert 0 < result["0"].kernel_error < 0.2
    assert result.lost[0].max_rel_error > 1e-3


def test_one_that_computes_something_else_stays() -> None:
    class Squaring(VolumeSampling):
        """Not linear in its weight, nor in its input: no convolution."""

        def forward(self, input: Tensor, *arguments: Any, **named: Any) -> Tensor:
            return super().forward(input, *arguments, **named).square()

    result = fold(model(Squaring), X)
    assert result["0"].code == "verification-failed"
    assert "is off by" in result["0"].message
    assert not result["0"].folded
    assert result.check.ok
    assert ours(result.model) == ["0", "0.sampling"]


def test_the_result_is_shown_with_its_norms() -> None:
    result = fold(model(VolumeSampling).eval(), X, batch_norm=True)
    assert result.to_dict()["norms"] == [{"name": "1", "code": "folded", "conv": "0"}]
    assert result.to_dict()["check"]["ok"] is True
    for text in (str(result), html.unescape(result._repr_html_())):
        assert "batch norm" in text
        assert "1 sites: 1 convolution" in text
        assert "outputs agree" in text
    assert len(result) == 1
    assert result.summary() == "1 sites: 1 convolution"


def test_a_result_is_taken_where_its_model_is_meant() -> None:
    conv, x = nn.Conv2d(2, 3, 3, dilation=2), torch.randn(1, 2, 9, 9)
    result = ccrewrite.rewrite(nn.Sequential(conv), x)
    assert fold(result, x)["0"].code == "original"
    assert alternatives(result) == {}
    with pytest.raises(InputError, match=r"what fold folds must be an nn\.Module, or a result with a model; found str"):
        fold("resnet50", x)  # pyright: ignore[reportArgumentType]
