"""What ``lower`` says of the compiled model, and how it says it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import InputError, ModelRunError
from ccrewrite.lowering.check import IN_EVALUATION
from ccrewrite.lowering.lower import lower

X = torch.randn(3, 2, 9, 9, generator=torch.Generator().manual_seed(0))


class Wrong(nn.Module):
    """What a compiler that makes mistakes might return."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._orig_mod = model

    def forward(self, x: Tensor) -> Tensor:
        return self._orig_mod(x) + 1


class Failing(Wrong):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no compiler")


def model(*more: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 3, 3, dilation=2), nn.BatchNorm2d(3), nn.ReLU(), *more
    return ccrewrite.rewrite(nn.Sequential(*layers), X).model


def compiling(monkeypatch: pytest.MonkeyPatch, compiler: Any) -> None:
    monkeypatch.setattr(torch, "compile", lambda m, **options: compiler(m))


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_a_difference_is_found_and_said(mode: Any, monkeypatch: pytest.MonkeyPatch):
    compiling(monkeypatch, Wrong)
    with pytest.warns(UserWarning, match="the compiled Sequential computes something else than the given one"):
        lowered = lower(model(), X, mode=mode, measured=False)
    assert not lowered.check.ok
    assert lowered.check.max_abs_error == pytest.approx(1)
    assert "outputs DIFFER" in str(lowered)
    skipped = lower(model(), X, mode=mode, measured=False, verify=False)
    assert not skipped.check.ran
    assert "not verified: verify=False" in str(skipped)


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_the_model_is_left_as_it_was(mode: Any, monkeypatch: pytest.MonkeyPatch):
    compiling(monkeypatch, lambda m: m)
    given = model()
    before = {n: t.clone() for n, t in given.state_dict().items()}
    state = torch.get_rng_state()
    lowered = lower(given, X, mode=mode, measured=False)
    assert lowered.check.ok
    assert not lowered.check.note
    assert torch.equal(torch.get_rng_state(), state)
    assert all(m.training for m in given.modules())
    assert all(torch.equal(t, before[n]) for n, t in given.state_dict().items())  # batch statistics included


def test_training_is_compared_as_the_model_stands(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[bool, bool]] = []

    class Seeing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((self.training, torch.is_grad_enabled()))
            return x

    compiling(monkeypatch, lambda m: m)
    given = model(Seeing())
    seen.clear()
    lower(given, X, mode="training", measured=False)
    assert seen[-1] == (True, True)
    lower(given.eval(), X, mode="training", measured=False)
    assert seen[-1] == (False, True)
    lower(given, X, measured=False)
    assert seen[-1] == (False, False)


def test_models_that_draw_random_numbers_are_compared_in_evaluation_mode(monkeypatch: pytest.MonkeyPatch):
    compiling(monkeypatch, lambda m: m)
    check = lower(model(nn.Dropout()), X, mode="training", measured=False).check
    assert check.ok
    assert check.note == IN_EVALUATION


def test_a_failing_compiler_is_named(monkeypatch: pytest.MonkeyPatch):
    compiling(monkeypatch, Failing)
    with pytest.raises(ModelRunError, match=r"torch\.compile can't compile or run this Sequential: RuntimeError: no compiler"):
        lower(model(), X, measured=False)


def test_the_shape_of_the_answer():
    torch.manual_seed(0)
    rewritten = ccrewrite.rewrite(nn.Sequential(nn.Conv2d(2, 3, 3, dilation=2), nn.Conv2d(3, 3, 3, 2)), X)
    lowered = lower(rewritten, X, mode="training", measured=False, verify=False)
    assert [site.name for site in lowered] == ["0", "1"]
    assert (lowered["0"].code, lowered["0"].message) == ("window", "estimated, the cheapest")
    assert (lowered["1"].code, lowered["1"].message) == ("separable", "estimated, the cheapest")
    assert lowered.summary() == "2 sites: 1 window, 1 separable"
    data = json.loads(lowered.to_json())
    assert set(data) == {"mode", "sites", "check"}
    assert set(data["sites"][0]) == {"name", "code", "how", "message", "milliseconds"}
    assert "<table>" in lowered._repr_html_()
    with pytest.raises(KeyError, match="no site is called '2'"):
        lowered["2"]


def test_what_is_no_model_is_refused():
    with pytest.raises(InputError, match=r"what lower compiles must be an nn\.Module, or a result with a model; found str"):
        lower("resnet", X)  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_what_is_compiled_for_the_check_serves_afterwards(mode: Any):
    torch._dynamo.reset()
    lowered = lower(model(), X, mode=mode, measured=False)
    assert lowered.check.ok
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs
    if mode == "training":
        lowered.model(X).sum().backward()
    else:
        with torch.no_grad():
            lowered.model(X)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
