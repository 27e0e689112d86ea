"""What a forecast says, and that it leaves no trace."""

from __future__ import annotations

import copy
import gc
import itertools
import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from forecast_tasks import Batches, Student, displaced, shifted, signals, student
from stranger import VolumeSampling
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import ccrewrite
from ccrewrite.errors import InputError
from ccrewrite.families.rule import Rule
from ccrewrite.forecasting.answer import Forecast
from ccrewrite.ir.sites import Site

X = signals(8 * 40)
MSE = nn.functional.mse_loss
STEPS = (16, 24)


def told(model: nn.Module, data: Any, loss: Any = MSE, **options: Any) -> Forecast:
    return ccrewrite.forecast(model, X[:8], data, loss, **{"steps": STEPS, "progress": False, **options})


@pytest.fixture(scope="module")
def pays() -> Forecast:
    return told(student(), displaced(student(), X))


def test_taps_that_a_teacher_has_elsewhere_pay(pays: Forecast) -> None:
    assert pays.verdict == "pays"
    assert "16 steps rewritten against 24 of the original" in pays.why
    assert pays.comparison is not None
    assert pays.comparison.lead.low > 0
    assert pays["first"].code == "gains"


def test_a_constant_that_only_weights_can_learn_does_not() -> None:
    found = told(student(), shifted(student(), X))
    assert found.verdict == "does not pay"
    assert found.comparison is not None
    assert found.comparison.lead.high < 0


def test_a_perfect_model_gains_nothing() -> None:
    model = student()
    with torch.no_grad():
        data = [(part, model(part)) for part in X.split(8)]
    found = told(model, data)
    assert found.verdict == "does not pay"
    assert "no lower than where the original starts" in found.why


def strided() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(1, 4, 5, stride=2, padding=2), nn.ConvTranspose1d(4, 1, 4, stride=2, padding=1))


@pytest.mark.parametrize(("task", "pays"), [(displaced, True), (shifted, False)])
def test_strided_and_transposed_ones(task: Any, pays: bool) -> None:
    found = told(strided(), task(strided(), X), rates=(1e-2, 5e-2))
    assert (found.verdict == "pays") == pays
    assert [site.name for site in found] == ["0", "1"]


class DilatedToVolume(Rule):
    name = "forecast-volume"

    def takes(self, site: Site) -> bool:
        return "dilated" in site.kinds

    def sampling(self, site: Site, **factory: Any) -> VolumeSampling:
        return VolumeSampling(site.geometry, **factory)


def test_a_family_of_somebody_else() -> None:
    found = told(student(), shifted(student(), X), rules=[DilatedToVolume()])
    assert found.verdict in ("does not pay", "unclear")  # it can do nothing but scale
    assert found["first"].cost is not None
    assert found["first"].cost.options == ()


def test_layers_that_start_otherwise_are_judged_against_the_original() -> None:
    torch.manual_seed(0)
    model = nn.Conv1d(1, 1, 15, padding=7)
    data = [(part, model(part).detach() + 0.1) for part in X.split(8)]
    found = told(model, data, rules=[ccrewrite.LargeToDcls(budget=0.3)])
    assert found.comparison is not None
    assert found.comparison.start == pytest.approx(0.01)
    assert found.verdict == "does not pay"


def test_a_site_that_the_loss_does_not_depend_on_is_said_so(pays: Forecast) -> None:
    assert [site.code for site in pays if site.name == "idle"] == ["unconnected"]
    assert "idle: the loss doesn't depend on it" in str(pays)
    alone = told(student(), displaced(student(), X), include="idle")
    assert (alone.verdict, alone.why) == ("does not pay", "the loss depends on none of the sites")


def test_given_steps_and_seed_decide_the_answer(pays: Forecast) -> None:
    torch.manual_seed(99)
    again = told(student(), displaced(student(), X))
    assert (again.comparison, again.verdict, again.why) == (pays.comparison, pays.verdict, pays.why)
    assert [(s.gain, s.signal) for s in again] == [(s.gain, s.signal) for s in pays]
    other = told(student(), displaced(student(), X), seed=1)
    assert other.steps == pays.steps


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.norm, self.drop = student(), nn.BatchNorm1d(1), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(self.net(x)))


def test_the_model_and_the_random_states_are_left_as_they_were() -> None:
    model = Normed().train()
    model.drop.eval()
    model(X[:8]).sum().backward()
    model.net.first.weight.requires_grad_(False)
    state, flags = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    wanted, kinds = [p.requires_grad for p in model.parameters()], [type(m) for m in model.modules()]
    data = displaced(student(), X)
    _ = ccrewrite.forecast  # Inductor draws when it is imported
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002  # pyright: ignore[reportArgumentType]
    told(model, data, steps=None)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]  # noqa: NPY002  # pyright: ignore[reportArgumentType]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == flags
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert [type(m) for m in model.modules()] == kinds
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad is None) if gradient is None else torch.equal(parameter.grad, gradient)  # pyright: ignore[reportArgumentType]


def test_no_more_than_one_copy_is_in_memory() -> None:
    model, most, calls = student(), 0, itertools.count()

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        nonlocal most
        if not next(calls) % 20:  # all objects of the process are gone through
            most = max(most, sum(type(thing) is Student for thing in gc.get_objects()))
        return MSE(outputs, target)

    gc.collect()
    others = sum(type(thing) is Student for thing in gc.get_objects()) - 1
    told(model, displaced(student(), X), loss, steps=(4, 4))
    assert most - others == 2


def test_batch_norm_is_as_in_evaluation() -> None:
    model, seen = Normed().train(), set[bool]()
    model.norm.register_forward_pre_hook(lambda module, _: seen.add(module.training))
    told(model, displaced(student(), X), steps=(2, 2), rates=(1e-3,))
    assert seen == {False}


def test_data_as_finetune_takes_it() -> None:
    data = displaced(student(), X)
    x, y = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    assert told(student(), loader).verdict == "pays"
    named = [{"x": part, "wanted": target} for part, target in data]

    class Named(Student):
        def forward(self, x: Tensor, wanted: Tensor) -> Tensor:
            return super().forward(x)

    model = Named()
    model.load_state_dict(student().state_dict())
    example = {"x": X[:8], "wanted": X[:8]}
    found = ccrewrite.forecast(model, example, named, lambda out, batch: MSE(out, batch["wanted"]), steps=STEPS, progress=False)
    assert found.verdict == "pays"


def test_seconds_only_lower_the_steps_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    data = displaced(student(), X)
    monkeypatch.setattr("ccrewrite.forecasting.forecast.step_seconds", lambda *_: (2.0, 1.0))
    short = told(student(), data, steps=(400, 800), seconds=1000.0)
    assert 4 < short.steps[0] < 100
    assert short.steps[1] == pytest.approx(2 * short.steps[0], abs=2)
    assert short.step_seconds == (2.0, 1.0)
    assert any("lowered the probes' steps from (400, 800)" in line for line in short.said)
    monkeypatch.setattr("ccrewrite.forecasting.forecast.step_seconds", lambda *_: (2e-6, 1e-6))
    ample = told(student(), data, seconds=1000.0)
    assert ample.steps == STEPS
    assert not ample.said


def test_seconds_that_leave_no_time_for_probes() -> None:
    none = told(student(), displaced(student(), X), seconds=1e-3)
    assert none.verdict == "unclear"
    assert "more seconds" in none.why
    assert none.comparison is None
    assert {site.code for site in none} == {"not-probed", "unconnected"}
    assert {site.cost.how for site in none if site.cost is not None} == {"estimated"}
    json.loads(none.to_json())


def test_a_timing_matches_the_arms() -> None:
    found = told(student(), displaced(student(), X), steps=None)
    assert found.step_seconds is not None
    ratio = found.step_seconds[0] / found.step_seconds[1]
    assert found.steps == (28, max(1, round(28 * ratio)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0}, "seconds must be a number above 0, found 0"),
        ({"steps": (3, 0)}, r"steps are \(rewritten, original\)"),
        ({"rates": ()}, "rates must be learning rates above 0"),
        ({"rates": (-1.0,)}, "rates must be learning rates above 0"),
        ({"include": "nothing"}, "selects none"),
    ],
)
def test_what_cannot_be_asked(options: dict[str, Any], message: str) -> None:
    data: Batches = [(X[:8], X[:8])] * 10
    with (
        pytest.warns() if "include" in options else pytest.MonkeyPatch.context(),
        pytest.raises(ccrewrite.CcrewriteError, match=message),
    ):
        told(student(), data, **options)


def test_data_and_models_that_cannot_be_forecast() -> None:
    data = displaced(student(), X)
    with pytest.raises(InputError, match="at least 8, found 3"):
        told(student(), data[:3])
    with pytest.raises(InputError, match="must be a scalar"):
        told(student(), data, lambda out, target: out)
    with pytest.raises(InputError, match="the loss is nan"):
        told(student(), [(x * float("nan"), y) for x, y in data])
    with pytest.raises(InputError, match="every site are frozen"):
        told(student().requires_grad_(False), data)


def test_frozen_weights_beside_trainable_sites() -> None:
    model = student()
    model.second.requires_grad_(False)
    found = told(model, displaced(student(), X))
    assert found["first"].code == "gains"
    assert (found["second"].code, found["second"].gain) == ("frozen", None)
    assert found.choose(sites=3) == ("first",)
