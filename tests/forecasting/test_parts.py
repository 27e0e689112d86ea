"""The parts of a forecast: signals, estimates, choices, pictures."""

from __future__ import annotations

import itertools
import statistics
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forecast_tasks import displaced, signals, student
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ccrewrite
from ccrewrite.errors import InputError, SelectionError
from ccrewrite.families.sites import named_samplings
from ccrewrite.forecasting.answer import Forecast
from ccrewrite.forecasting.choose import Limit, most_worth
from ccrewrite.forecasting.data import Data
from ccrewrite.forecasting.probes import Arm, Course, Estimate, best_arm
from ccrewrite.forecasting.signals import Moments, Signal
from ccrewrite.forecasting.timing import fitting, inference_seconds
from ccrewrite.forecasting.verdict import Comparison, judged
from ccrewrite.ir.capture import Inputs

X = signals(8 * 40)
SIGNAL = Signal(9.0, 1.5, 0.0, True)


@pytest.fixture(scope="module")
def pays() -> Forecast:
    data = displaced(student(), X)
    return ccrewrite.forecast(student(), X[:8], data, nn.functional.mse_loss, steps=(16, 24), progress=False)


def moments(gradients: torch.Tensor) -> Moments:
    found = Moments([gradients[0]])
    for gradient in gradients:
        found.add([gradient])
    return found


@given(st.integers(0, 10**6), st.sampled_from([1e-6, 1.0, 1e4]), st.integers(12, 40))
def test_noise_is_not_clear_whatever_its_scale(seed: int, scale: float, batches: int) -> None:
    noise = torch.randn(batches, 2000, generator=torch.Generator().manual_seed(seed))
    clear, scaled = moments(noise).clearness(), moments(scale * noise).clearness()
    assert clear is not None
    assert clear == pytest.approx(1, abs=0.25)
    assert scaled == pytest.approx(clear, rel=1e-2)
    assert abs(moments(noise).decrease()) < 0.1 * moments(noise + 1).decrease()


def test_what_always_points_the_same_way_is_clear() -> None:
    noise = torch.randn(24, 100)
    found = [moments(noise + shift).clearness() for shift in (0.0, 0.5, 2.0)]
    assert None not in found
    assert found == sorted(found, key=lambda value: value or 0.0)
    assert (found[-1] or 0) > 50


def test_tensors_without_a_gradient() -> None:
    none = Moments([torch.zeros(3)])
    for _ in range(5):
        none.add([None])
    assert (none.clearness(), none.decrease(), none.seen) == (None, 0.0, False)


def test_intervals() -> None:
    values = torch.randn(30, 40, generator=torch.Generator().manual_seed(0))
    batches = Estimate.of(values[:1].tolist())
    assert batches.high - batches.low == pytest.approx(2 * 1.96 * statistics.stdev(values[0].tolist()) / 40**0.5)
    probes = Estimate.of((values[:, :1] + torch.zeros(4)).tolist())  # batches agree, probes don't
    assert probes.high - probes.low == pytest.approx(2 * 1.96 * statistics.stdev(values[:, 0].tolist()) / 30**0.5)
    assert probes.low < probes.mean < probes.high


numbers = st.integers(-8, 8).map(float)
costs = st.lists(st.tuples(numbers, numbers, st.integers(0, 8).map(float)), min_size=1, max_size=6)


@given(costs, st.integers(0, 20), st.integers(0, 4))
def test_the_choice_is_the_best_of_all(sites: list[tuple[float, float, float]], most: int, count: int) -> None:
    names = "abcdef"[: len(sites)]
    gains = dict(zip(names, (gain for gain, _, _ in sites), strict=True))
    limits = [
        Limit(dict(zip(names, (cost for _, cost, _ in sites), strict=True)), most, "time"),
        Limit(dict.fromkeys(names, 1.0), count, "sites"),
    ]

    def allowed(subset: tuple[str, ...]) -> bool:
        return all(sum(limit.spent[name] for name in subset) <= limit.most for limit in limits)

    every = [s for n in range(len(names) + 1) for s in itertools.combinations(names, n) if allowed(s)]
    best = max(sum(gains[name] for name in subset) for subset in every)
    found = most_worth(gains, limits)
    assert allowed(tuple(found))
    assert sum(gains[name] for name in found) == pytest.approx(best)


def test_choose(pays: Forecast) -> None:
    assert pays.choose(sites=5) == ("first", "second")
    one = pays.choose(sites=1)
    assert len(one) == 1
    plain, still, _ = pays.seconds
    cost = {name: (seconds + max(0.0, still - plain)) / plain for name, seconds in pays.added_seconds.items()}
    assert pays.choose(latency=1 + 1.001 * min(cost["first"], cost["second"]))
    assert pays.choose(latency=1 + 0.999 * min(cost["first"], cost["second"])) == ()
    assert pays.choose(latency=1.0) == ()
    assert pays.choose(parameters=0) == ()
    with pytest.raises(InputError, match="needs a limit"):
        pays.choose()
    with pytest.raises(InputError, match=r"at least 1; found 0\.9"):
        pays.choose(latency=0.9)
    with pytest.raises(InputError, match="sites must be at least 0"):
        pays.choose(sites=-1)


def test_a_rewrite_says_why_sites_were_not_chosen(pays: Forecast) -> None:
    chosen = pays.choose(sites=1)
    left = next(name for name in ("first", "second") if name not in chosen)
    plan = ccrewrite.rewrite(student(), X[:8], include=chosen).plan
    assert [site.name for site in plan.rewritten] == list(chosen)
    assert plan[left].code == "not-selected"
    assert plan[left].message.startswith("left out by the forecast: sites=1 leaves no room for its gain of ")
    assert plan["idle"].message == "left out by the forecast: the loss doesn't depend on it"
    with pytest.raises(SelectionError):
        ccrewrite.rewrite(student(), X[:8], include=pays.choose(sites=0))


def test_added_times_add_up_to_the_models(pays: Forecast) -> None:
    _, still, moved = pays.seconds
    assert moved > still
    assert sum(pays.added_seconds.values()) == pytest.approx(moved - still)


def test_each_site_is_timed_in_the_model_which_stays_at_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ccrewrite.rewrite(student(), X[:4], verify=False).model
    seen: list[list[bool]] = []

    def timed(cases: Any, *_: Any, **__: Any) -> Any:
        for case in cases.values():
            with case.context():
                case.run()
                seen.append([sampling.at_start() for sampling in samplings.values()])
        return {name: SimpleNamespace(median_s=float(index)) for index, name in enumerate(cases)}

    samplings = named_samplings(model)
    monkeypatch.setattr("ccrewrite.forecasting.timing.time_cases", timed)
    times, alone = inference_seconds(student(), model, Inputs.of(X[:4]), samplings)
    assert (times, alone) == ((0.0, 1.0, 2.0), {"first": 2.0, "second": 3.0, "idle": 4.0})
    assert seen[:3] == [[True] * 3, [True] * 3, [False] * 3]
    assert [row.index(False) for row in seen[3:]] == [0, 1, 2]
    assert all(sampling.at_start() for sampling in samplings.values())


def test_choose_without_scipy(pays: Forecast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(InputError, match=r"pip install 'ccrewrite\[forecast\]'"):
        pays.choose(sites=1)


@given(st.tuples(st.integers(1, 500), st.integers(1, 500)), st.floats(1e-4, 1.0), st.floats(1e-4, 1.0), st.floats(-5, 5000))
def test_time_only_lowers_steps(steps: tuple[int, int], slow: float, fast: float, left: float) -> None:
    found = fitting(steps, (slow, fast), rates=3, left=left)
    assert found[0] <= steps[0]
    assert found[1] <= steps[1]
    if found != steps and found[0]:
        assert 3 * (found[0] * slow + found[1] * fast) <= left + 3 * fast


def test_an_interval_that_holds_zero_is_unclear(pays: Forecast) -> None:
    assert pays.comparison is not None
    behind = replace(pays.comparison, start=1.0, gain=Estimate(0.1, 0.05, 0.2), lead=Estimate(-0.3, -0.4, -0.2))
    assert judged(behind, SIGNAL)[0] == "does not pay"
    assert judged(replace(behind, lead=Estimate(0.1, -0.1, 0.2)), SIGNAL)[0] == "unclear"


def test_training_that_only_harms_the_original_is_left_out() -> None:
    ours, theirs = Arm(0.1, 4, ((1.0, 1.0),), {}), Arm(0.1, 4, ((5.0, 5.0),), {})
    assert Comparison.of((2.0, 2.0), ours, theirs).lead.mean == 1.0
    assert Comparison.of((6.0, 6.0), ours, theirs).lead.mean == 4.0


def test_a_sites_gain_is_what_the_loss_rises_by_without_it() -> None:
    torch.manual_seed(0)
    model = ccrewrite.rewrite(student(), X[:8], verify=False).model
    sites = {name: list(s.parameters()) for name, s in named_samplings(model).items()}
    data = Data(displaced(student(), X), nn.functional.mse_loss, 0, torch.device("cpu"))
    data.fetch(16)
    starts = {p: p.detach().clone() for p in model.parameters()}

    @torch.no_grad()
    def reset() -> None:
        for parameter, start in starts.items():
            parameter.copy_(start)

    course = Course((1e-2,), 8, 0, lambda: False, lambda: None)
    arm = best_arm(model, data, list(model.parameters()), reset, 8, course, sites)
    assert all(torch.equal(p, start) for p, start in starts.items())
    assert sum(arm.rises["first"][0]) > 0
    assert not any(map(any, arm.rises["idle"]))
    times = itertools.count()
    once = course._replace(stop=lambda: True)
    again = best_arm(model, data, list(model.parameters()), lambda: reset() if next(times) < 2 else None, 8, once)
    with torch.no_grad():
        for parameter in sites["first"]:
            parameter.copy_(starts[parameter])
    without = data.losses(model, data.judging[:16])
    assert arm.rises["first"][0] == pytest.approx([a - b for a, b in zip(without, again.losses[0], strict=True)], rel=1e-4)


def test_a_lead_that_is_too_small_is_unclear(pays: Forecast) -> None:
    assert pays.comparison is not None
    small = replace(pays.comparison, start=1.0, gain=Estimate(0.1, 0.05, 0.2), lead=Estimate(0.015, 0.01, 0.02))
    assert judged(small, SIGNAL)[0] == "unclear"
    assert judged(replace(small, start=0.2), SIGNAL)[0] == "pays"


def test_geometry_that_stays_above_the_start_does_not_pay(pays: Forecast) -> None:
    assert pays.comparison is not None
    worse = replace(pays.comparison, gain=Estimate(-0.2, -0.3, -0.1), lead=Estimate(0.1, -0.1, 0.2))
    assert judged(worse, SIGNAL)[0] == "does not pay"


def test_page_and_notebook(pays: Forecast, monkeypatch: pytest.MonkeyPatch) -> None:
    page = pays.page()
    assert page.startswith("<!doctype html>")
    assert page.count("<svg") == 1
    assert ">first<" in page
    assert "<svg" in pays._repr_html_()
    assert page == pays.page()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "<table>" in pays._repr_html_()
    with pytest.raises(InputError, match="needs matplotlib"):
        pays.draw()
