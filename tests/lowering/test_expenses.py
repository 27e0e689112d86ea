"""``plan(costs=...)``: what sites will cost, before anything is rewritten."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import ccrewrite
from ccrewrite.errors import InputError
from ccrewrite.ir.costs import Cost

X = torch.randn(2, 8, 200, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(8, 8, 3, dilation=40, padding=40), nn.Conv1d(8, 8, 3, padding=1), nn.Conv1d(8, 8, 4, stride=2)
    )


def test_estimated_from_the_shapes_alone() -> None:
    plan = ccrewrite.plan(network(), X, costs="estimated")
    assert list(plan.costs) == ["0", "2"]
    assert {cost.how for cost in plan.costs.values()} == {"estimated"}
    assert plan.costs["0"].flops is None
    assert plan.costs["0"].parameters == 3
    rows = plan.rows()
    assert rows[0]["time"].endswith("x")
    assert rows[1]["time"] == ""
    assert json.loads(plan.to_json())["costs"]["2"]["how"] == "estimated"


def test_measured_leaves_no_trace() -> None:
    model = network()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    cost = ccrewrite.plan(model, X, costs="eager").costs["0"]
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [type(layer) for layer in model] == [nn.Conv1d] * 3
    assert cost.how == "eager"
    assert cost.plain_flops == 2 * 2 * 200 * 8 * 8 * 3
    assert cost.flops is not None
    assert cost.flops >= cost.plain_flops
    assert cost.step_bytes is not None
    assert cost.plain_step_bytes is not None
    assert cost.step_bytes > cost.plain_step_bytes > 0


def test_what_is_asked_for_without_costs_is_as_before() -> None:
    plan = ccrewrite.plan(network(), X)
    assert not plan.costs
    assert "time" not in plan.rows()[0]
    assert "costs" not in plan.to_dict()
    with pytest.raises(InputError, match="costs must be True or False or one of"):
        ccrewrite.plan(network(), X, costs="guessed")  # type: ignore[arg-type]


def test_calls_add_up() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(8, 8, 3, dilation=2, padding=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.conv(x))

    cost = ccrewrite.plan(Twice(), X, costs="eager").costs["conv"]
    assert cost.plain_flops == 2 * 2 * 2 * 200 * 8 * 8 * 3


def made(seconds: float, step: float, options: tuple[str, ...] = ("reach",)) -> Cost:
    return Cost("eager", "eager", "eager", seconds, 1.0, step, 1.0, 10, 5, 20, 10, 3, options)


def test_a_dear_site_is_marked_with_what_to_do() -> None:
    assert not made(4.9, 4.9).dear
    assert made(4.9, 4.9).advice("a") == ""
    dear = made(1.0, 7.25)
    assert dear.cells()["step"] == "7.25x !"
    assert dear.advice("a.b") == (
        "a.b takes 7.2 times as long as its plain convolution: another reach= of its rule may be cheaper, or leave it alone, "
        "exclude=['a.b']"
    )
    assert "rule" not in made(9.0, 1.0, ()).advice("a")
