"""Lowering asks a family's sampling by the protocol alone: one of somebody else's goes through."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ccrewrite
from ccrewrite.families.rule import Rule
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.calls import CallShapes
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.sites import Site
from ccrewrite.lowering import choose
from ccrewrite.lowering.lower import lower

X = torch.randn(1, 4, 9, 9, generator=torch.Generator().manual_seed(0))


class Scaled(Sampling):
    """The kernel on its grid, times a learned number: no more than the protocol requires."""

    def __init__(self, geometry: ConvGeometry, **factory: Any) -> None:
        super().__init__(geometry)
        self.log = nn.Parameter(torch.zeros((), **factory))

    def movers(self) -> list[Tensor]:
        return [self.log]

    def kernel(self, weight: Tensor) -> Tensor:
        kernel = weight.new_zeros(*weight.shape[:2], *self.window)
        kernel[(..., *(slice(None, None, d) for d in self.dilation))] = weight * self.log.exp()
        return kernel


class TwoForms(Scaled):
    """The same, with another way to evaluate it, and an option that it doesn't tell of."""

    forms = ("window", "after")

    def __init__(self, geometry: ConvGeometry, name: str = "", **factory: Any) -> None:
        super().__init__(geometry, **factory)
        self.name = name

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *arguments: Any, **named: Any) -> Tensor:
        if self.form != "after":
            return super().forward(input, weight, bias, *arguments, **named)
        out = self.plain(input, weight, None, *arguments, **named) * self.log.exp()
        return out if bias is None else out + bias.view(-1, *(1,) * self.ndim)


@dataclass(frozen=True)
class ToScaled(Rule):
    name = "to-scaled"
    kind: type[Sampling] = Scaled

    def takes(self, site: Site) -> bool:
        return True

    def sampling(self, site: Site, **factory: Any) -> Sampling:
        return self.kind.of(site.geometry, **factory)


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CCREWRITE_CACHE", str(tmp_path))


def rewritten(kind: type[Sampling]) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 4, 3, dilation=2, padding=2), nn.ConvTranspose2d(4, 2, 2, 2))
    return ccrewrite.rewrite(model, X, rules=[ToScaled(kind=kind)]).model


def test_one_form_needs_no_more_than_the_protocol_requires():
    lowered = lower(rewritten(Scaled), X, mode="training", verify=False)
    assert [(s.name, s.code, s.how) for s in lowered] == [("0", "window", "only"), ("1", "window", "only")]


def test_several_forms_are_measured_each_time_where_the_options_are_not_told(monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, ...]] = []

    def measured(site: Any, forms: Any) -> dict[str, float]:
        asked.append(tuple(forms))
        return {"window": 2.0, "after": 1.0}

    monkeypatch.setattr(choose, "measure", measured)
    model = rewritten(TwoForms)
    for _ in range(2):
        lowered = lower(model, X, mode="training", verify=False)
        assert [(s.code, s.how) for s in lowered] == [("after", "measured")] * 2
    assert asked == [("window", "after")] * 4
    assert model[0].sampling.form == "after"
    forced = lower(model, X, mode="training", forms={"1": "window"}, verify=False)
    assert [(s.code, s.how) for s in forced] == [("after", "measured"), ("window", "forced")]


def test_the_default_estimate_is_the_dense_convolutions():
    model = rewritten(Scaled)
    plain, transposed = (layer.sampling for layer in model)
    like: dict[str, Any] = {"bias": True, "dtype": X.dtype, "device": X.device}
    dense = CallShapes((1, 4, 90, 90), (4, 4, 3, 3), arguments={"stride": (1, 1)}, **like)  # pyright: ignore[reportArgumentType]
    assert plain.estimates(dense, training=False)["window"] == pytest.approx(4 * 4 * 25 * (8100 * 0.012e-9 + 0.3e-9))
    # Of a transposed convolution, the taps lie around every sample of the input, whatever the stride.
    up = CallShapes((1, 4, 90, 90), (4, 2, 2, 2), arguments={"stride": (2, 2)}, **like)  # pyright: ignore[reportArgumentType]
    assert transposed.estimates(up, training=False)["window"] == pytest.approx(4 * 2 * 4 * (8100 * 0.012e-9 + 0.3e-9))


def test_nudging_moves_off_the_start():
    for kind in (Scaled, TwoForms):
        sampling = rewritten(kind)[0].sampling
        assert sampling.at_start()
        sampling.nudge_()
        assert not sampling.at_start()
        assert all(p.grad is None and p.requires_grad for p in sampling.parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_measured_and_compiled_for_real():
    model = rewritten(TwoForms)
    for sampling in (layer.sampling for layer in model):
        sampling.nudge_()
    lowered = lower(model, X, mode="training")
    assert {s.how for s in lowered} == {"measured"}
    assert all(set(s.milliseconds) == {"window", "after"} for s in lowered)
    assert lowered.check.ok
