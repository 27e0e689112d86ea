"""What models keep in their attributes is the same after a plan, a rewrite and a run that raises."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ccrewrite
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.preserve import preserved

X = torch.randn(1, 4, 9, 9, generator=torch.Generator().manual_seed(0))


class Counter:
    def __init__(self) -> None:
        self.n, self.inner = 1.0, {"rows": deque([[0.0]])}

    def next(self) -> float:
        self.n += 1
        self.inner["rows"][0][0] += 1
        self.inner["rows"].append([1.0])
        return self.n + self.inner["rows"][0][0] + len(self.inner["rows"])


class Net(nn.Module):
    def __init__(self, state: Any, draw: Callable[[Any], Any]) -> None:
        super().__init__()
        self.conv, self.state, self.draw = nn.Conv2d(4, 4, 3, 2, 1), state, draw

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.draw(self.state)


def append(rows: Any) -> float:
    rows[0]["seen"].append(1.0)
    return float(len(rows[0]["seen"]))


STATES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch": (lambda: torch.Generator().manual_seed(0), lambda g: torch.rand((), generator=g)),
    "numpy": (lambda: np.random.default_rng(0), lambda g: float(g.random())),
    "older numpy": (lambda: np.random.RandomState(0), lambda g: float(g.rand())),
    "python": (lambda: random.Random(0), lambda g: g.random()),
    "nested": (lambda: ({"seen": [1.0]},), append),
    "object": (Counter, lambda counter: counter.next()),
    "generators in an object": (lambda: {"g": [random.Random(0)]}, lambda state: state["g"][0].random()),
}


def net(name: str) -> Net:
    torch.manual_seed(0)
    make, draw = STATES[name]
    return Net(make(), draw).eval()


@pytest.mark.parametrize("name", STATES)
def test_nothing_is_advanced(name: str) -> None:
    planned, untouched = net(name), net(name)
    for how in ("auto", "observe"):
        ccrewrite.plan(planned, X, how=how)
    result = ccrewrite.rewrite(planned, X)
    assert result.check.ok
    assert result.plan.rewritten
    want = untouched(X)
    assert torch.equal(planned(X), want)
    assert torch.equal(result.model.requires_grad_(False)(X), want)


def test_state_comes_back_after_an_error() -> None:
    model = net("object")

    def run_and_raise() -> None:
        with preserved(model, [X]):
            model(X)
            raise KeyError("x")

    with pytest.raises(KeyError):
        run_and_raise()
    assert vars(model.state) == vars(Counter())


def test_state_that_can_not_be_kept_is_noted() -> None:
    model = Net(itertools.count(1), next).eval()
    result = ccrewrite.rewrite(model, X)
    assert not result.check.ok
    assert "not deterministic" in result.check.note
    assert Inputs.of(X).run(result.model).shape == (1, 4, 5, 5)
