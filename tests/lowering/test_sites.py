"""``lower(scope="sites")``: the layers compiled, the model the user's own."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ccrewrite
from ccrewrite import lower
from ccrewrite.errors import InputError, ModelRunError
from ccrewrite.families import alone
from ccrewrite.ir.capture import Inputs
from ccrewrite.lowering import measure, sites

pytestmark = pytest.mark.filterwarnings(  # Dynamo's and Inductor's own
    "ignore:.*torch.jit", "ignore:.*should not be instantiated:DeprecationWarning"
)
X = torch.randn(2, 4, 300, generator=torch.Generator().manual_seed(0))


class Depthwise(nn.Module):
    """Layers that differ in dilation and padding alone, and one with more channels."""

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Conv1d(4, 4, 3, dilation=16, padding=16, groups=4)
        self.far = nn.Conv1d(4, 4, 3, dilation=40, padding=(30,), groups=4)
        self.wide = nn.Conv1d(4, 8, 1)
        self.last = nn.Conv1d(8, 8, 3, dilation=32, padding=32, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.wide(self.far(self.near(x).tanh())))


def moved() -> Any:
    torch.manual_seed(0)
    model = ccrewrite.rewrite(Depthwise(), X).model
    for name, parameter in model.named_parameters():
        if name.endswith(("offset", "shift")):
            nn.init.uniform_(parameter, -0.4, 0.4)
    return model


def step(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    out = model(X)
    model.zero_grad()
    out.square().sum().backward()
    return out.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(autouse=True)
def _own_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCREWRITE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be compiled runs as it is."""
    monkeypatch.setattr(alone, "_of", lambda function, key, dynamic: function)


@pytest.mark.usefixtures("_no_compiler")
def test_computes_the_same() -> None:
    model = moved()
    before = {id(module): type(module) for module in model.modules()}
    expected = step(model)
    lowered = lower(model, X, mode="training", scope="sites", measured=False)
    assert lowered.model is model
    assert {id(module): type(module) for module in model.modules()} == before
    assert [(s.name, s.code) for s in lowered] == [("near", "taps"), ("far", "taps"), ("last", "taps")]
    assert lowered.check.ok
    torch.testing.assert_close(step(model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("_no_compiler")
def test_second_derivatives() -> None:
    gradients = []
    model: Any
    for model in (moved(), lower(moved(), X, mode="training", scope="sites", measured=False, verify=False).model):
        x = X.clone().requires_grad_()
        (first,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        first.square().sum().backward()
        gradients.append(model.near.sampling.offset.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("_no_compiler")
@pytest.mark.parametrize("sharing", ["tap", "out"])
def test_forms_of_devices(sharing: Any) -> None:
    """Those that a GPU takes, with their second derivatives."""
    torch.manual_seed(0)
    layer = ccrewrite.nn.DclsConv1d.from_conv(nn.Conv1d(4, 6, 3, dilation=9, padding=9), sharing=sharing)
    nn.init.uniform_(layer.sampling.offset, -0.4, 0.4)
    found = []
    for form in ("eager", "products"):
        assert lower(layer, X, mode="training", scope="sites", forms={"(root)": form}).check.ok
        x = X.clone().requires_grad_()
        out = layer(x).square().sum()
        (first,) = torch.autograd.grad(out, x, create_graph=True)
        second = torch.autograd.grad(first.square().sum(), layer.sampling.offset)[0]
        found.append((out.detach(), first.detach(), second))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("_no_compiler")
def test_stays_the_users_model(tmp_path: Path) -> None:
    lowered = lower(moved(), X, mode="training", scope="sites", measured=False, verify=False).model
    expected = lowered(X)
    buffer = io.BytesIO()
    torch.save(lowered, buffer)
    buffer.seek(0)
    again: Any
    for again in (copy.deepcopy(lowered), torch.load(buffer, weights_only=False)):
        assert again.near.sampling.compiled_at == {(2, 4, 300)}
        torch.testing.assert_close(again(X), expected)
    ccrewrite.save(lowered, tmp_path)
    torch.manual_seed(0)
    loaded: Any = ccrewrite.load(Depthwise(), tmp_path)
    assert not loaded.near.sampling.compiled_at, "how a model runs is not saved"
    torch.testing.assert_close(loaded(X), expected, rtol=1e-4, atol=1e-4)
    assert type(ccrewrite.revert(lowered).near) is nn.Conv1d


def test_other_sizes_run_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lower(moved(), X, mode="training", scope="sites", measured=False, verify=False).model

    def compiling(*_: Any, **__: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(alone, "_of", compiling)
    model(X[:1])
    with pytest.raises(AssertionError):
        model(X)


def test_compiling_that_fails_leaves_the_model_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(alone, "_of", failing)
    model = moved()
    with pytest.raises(ModelRunError, match="no compiler"):
        lower(model, X, mode="training", scope="sites")
    model(X)
    assert not model.near.sampling.compiled_at


@pytest.mark.usefixtures("_no_compiler")
def test_forms_and_inference() -> None:
    model = moved()
    with pytest.raises(InputError, match="it has the forms window, taps, eager"):
        lower(model, X, scope="sites", forms={"near": "products"})
    with pytest.raises(InputError, match="scope must be one of 'model', 'sites'"):
        lower(model, X, scope="layers")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="each layer is compiled by itself"):
        lower(model, X, scope="sites", fullgraph=True)
    lowered = lower(model, X, scope="sites", forms={"near": "eager", "far": "window"}, measured=False)
    assert lowered.model is model
    assert [(s.code, s.how) for s in lowered] == [("eager", "forced"), ("window", "forced"), ("taps", "alone")]
    assert lowered.check.ok


@pytest.mark.usefixtures("_no_compiler")
@pytest.mark.parametrize("mode", ["training", "inference"])
def test_layers_that_are_slower_compiled_stay_eager(monkeypatch: pytest.MonkeyPatch, mode: Any) -> None:
    timed: list[tuple[str, ...]] = []

    def seconds_of(runs: Any, device: torch.device) -> dict[str, float]:
        timed.append(tuple(runs))
        for run in runs.values():
            run()
        return {"eager": 1.0, "taps": 0.5 if len(timed) == 1 else 1.5}

    monkeypatch.setattr(measure, "seconds_of", seconds_of)
    model = moved()
    expected = step(model)
    lowered = lower(model, X, mode=mode, scope="sites")
    assert [(s.name, s.code, s.how) for s in lowered] == [
        ("near", "taps", "measured"),
        ("far", "eager", "measured"),
        ("last", "eager", "measured"),
    ]
    assert lowered["far"].milliseconds == {"eager": 1e3, "taps": 1.5e3}
    assert (model.near.sampling.compiled_at, model.far.sampling.compiled_at) == ({(2, 4, 300)}, frozenset())
    torch.testing.assert_close(step(model), expected, rtol=1e-4, atol=1e-4)
    again = lower(moved(), X, mode=mode, scope="sites")
    assert [(s.code, s.how) for s in again] == [("taps", "cached"), ("eager", "cached"), ("eager", "cached")]
    assert timed == [("eager", "taps")] * 3


@pytest.mark.usefixtures("_no_compiler")
def test_a_step_is_timed_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    model = moved().eval()
    lower(model, X, mode="training", scope="sites", measured=False, verify=False)
    compiled: list[bool] = []
    monkeypatch.setattr(alone, "_of", lambda function, key, dynamic: (compiled.append(True), function)[1])
    seen: dict[str, int] = {}

    def seconds_of(runs: Any, device: torch.device) -> dict[str, float]:
        for name, run in runs.items():
            compiled.clear()
            run()
            seen[name] = len(compiled)
        return dict.fromkeys(runs, 1.0)

    monkeypatch.setattr(sites, "seconds_of", seconds_of)
    samplings = [m for m in model.modules() if isinstance(m, ccrewrite.nn.Sampling)]
    assert sites.step_seconds(model, Inputs.of(X), samplings) == {"eager": 1.0, "sites": 1.0}
    assert seen["eager"] == 0
    assert seen["sites"] >= 3
    assert all(s.compiled_at for s in samplings)
    assert not any(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.slow
def test_compiled() -> None:
    """One function for layers that differ in channels, dilation and padding; one for equal CC layers."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    alone._compiled.clear()
    model = moved()
    expected = step(model)
    lower(model, X, mode="training", scope="sites", measured=False, verify=False)
    torch.testing.assert_close(step(model), expected, rtol=1e-4, atol=1e-4)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == 3, "a forward and a backward; and one for the first layer, whose input wants no gradient"
    layers = [nn.Conv2d(16, 16, 3, stride=2, padding=1) for _ in range(2)]
    x = torch.randn(1, 16, 16, 16)
    strided = [ccrewrite.rewrite(layer, x).model for layer in layers]
    layer: Any
    for layer in strided:
        nn.init.constant_(layer.sampling.shift, 0.2)
        eager = layer(x)
        assert lower(layer, x, mode="training", scope="sites", measured=False, verify=False)[0].code == "filtered"
        torch.testing.assert_close(layer(x), eager)
        layer(x).sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs + 1
