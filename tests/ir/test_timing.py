"""The statistics of timing, on a clock that the tests turn."""

from __future__ import annotations

import random
import time
from contextlib import nullcontext

import pytest
import torch

from ccrewrite.ir.timing import MIN_ROUNDS, Case, Effort, seconds_of, time_cases

LONG = Effort(100, (MIN_ROUNDS, 51), 0.0)


class Machine:
    """Runs of known length, on a machine that slows down in the middle and jitters all the time."""

    def __init__(self, seed: int = 0) -> None:
        self.now, self.calls, self.random = 0.0, 0, random.Random(seed)

    def run(self, seconds: float) -> None:
        self.calls += 1
        slow = 3.0 if 40 < self.now < 80 else 1.0
        self.now += seconds * slow * self.random.lognormvariate(0, 0.05)

    def case(self, seconds: float, reference: str) -> Case:
        return Case(lambda: self.run(seconds), nullcontext, reference)


def measure(machine: Machine, ratio: float, effort: Effort = LONG) -> dict:
    cases = {"a": machine.case(1.0, "a"), "b": machine.case(ratio, "a")}
    return time_cases(cases, effort, clock=lambda: machine.now)


def test_a_slow_spell_does_not_move_the_ratio() -> None:
    timed = measure(Machine(), 1.5)
    assert timed["b"].ratio == pytest.approx(1.5, rel=0.05)
    assert timed["b"].ratio_low < 1.5 < timed["b"].ratio_high
    assert (timed["a"].ratio, timed["a"].ratio_low, timed["a"].ratio_high) == (1, 1, 1)
    assert timed["a"].q1_s <= timed["a"].median_s <= timed["a"].q3_s


def test_intervals_hold_the_truth_and_agree() -> None:
    """At 99 %: of 200 measurements of a known ratio, a few at most miss it."""
    timings = [measure(Machine(seed), 1.0)["b"] for seed in range(200)]
    assert sum(not t.ratio_low <= 1.0 <= t.ratio_high for t in timings) <= 6
    pairs = zip(timings[::2], timings[1::2], strict=True)
    assert sum(a.ratio_low <= b.ratio_high and b.ratio_low <= a.ratio_high for a, b in pairs) == 100
    assert max(t.ratio_high - t.ratio_low for t in timings) < 0.2


def test_effort() -> None:
    """Rounds as the budget allows, within their limits; fast cases run several times in a sample."""
    assert measure(Machine(), 1.0, Effort(0, (MIN_ROUNDS, 51), 0.0))["a"].rounds == MIN_ROUNDS
    assert measure(Machine(), 1.0, Effort(1e6, (MIN_ROUNDS, 51), 0.0))["a"].rounds == 51
    machine = Machine()
    measure(machine, 1.0, Effort(0, (MIN_ROUNDS, 51), 4.5))
    assert machine.calls > 2 * MIN_ROUNDS * 4


def test_the_same_seed_draws_the_same_interval() -> None:
    assert measure(Machine(), 1.2) == measure(Machine(), 1.2)


def test_other_work_does_not_disturb_one_thread() -> None:
    """A run that waits, as for a processor that others have, takes no time of its own."""
    runs = {"waits": lambda: time.sleep(0.01), "works": lambda: sum(range(20000))}
    seconds = seconds_of(runs, torch.device("cpu"), Effort(0, (3, 3), 0.0))
    assert seconds["waits"] < seconds["works"]
