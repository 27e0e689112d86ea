"""What models keep in their attributes is the same after a plan, a rewrite and a run that raises."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable
from typing import Any, cast

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
    "tensor": (lambda: torch.zeros(()), lambda count: count.add_(1)),
    "a row of a tensor": (lambda: [torch.zeros(2, 3)], lambda rows: rows[0][1].add_(1).sum()),
    "array": (lambda: np.zeros(2), lambda counts: float(np.add(counts, 1, out=counts)[0])),
    "parameter": (lambda: nn.Parameter(torch.ones(())), lambda weight: weight.data.mul_(0.5)),
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
    assert cast(Tensor, Inputs.of(X).run(result.model)).shape == (1, 4, 5, 5)


class Averaging(nn.Module):
    """Its buffer is computed of itself alone, and of the input: on fake tensors the one would be real, the other not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, 2, 1)
        self.register_buffer("mean", torch.ones(4))
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.get_buffer("mean").mul_(0.9).add_(0.1 * x.mean((0, 2, 3)))
        return self.conv(x - self.get_buffer("mean").view(-1, 1, 1)) * self.get_buffer("runs").add_(1)


def test_buffers_that_a_run_writes_to_are_as_before() -> None:
    model = Averaging().eval()
    for how in ("auto", "export", "observe"):
        ccrewrite.plan(model, X, how=how)
    result = ccrewrite.rewrite(model, X)
    ccrewrite.scale_groups(result, X)
    for one in (model, result.model):
        assert torch.equal(one.get_buffer("mean"), torch.ones(4))
        assert float(one.get_buffer("runs")) == 0
        assert not any(buffer.requires_grad for buffer in one.buffers())
