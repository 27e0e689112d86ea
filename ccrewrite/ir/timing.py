"""The one timing harness: wall-clock times of several cases, interleaved in one process, and ratios with an interval.

Every round times every case once, in an order drawn anew, so that whatever slows the machine down for a while slows all of
them. A ratio is the median of the rounds' own ratios, with a percentile-bootstrap interval over the rounds.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass

import numpy as np
import torch

CONFIDENCE = 0.99
RESAMPLES = 2000
MIN_ROUNDS = 11
"""Fewest with which the median's interval at that confidence is not simply the whole range."""


@dataclass(frozen=True)
class Case:
    """Something to time: ``run`` once inside ``context()``; its ratio is over the case called ``reference``."""

    run: Callable[[], object]
    context: Callable[[], AbstractContextManager[object]]
    reference: str


@dataclass(frozen=True)
class Timing:
    """Seconds of one run: median and quartiles over the rounds; ``ratio`` to the reference, with its interval."""

    median_s: float
    q1_s: float
    q3_s: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int

    def data(self) -> dict[str, float]:
        """As plain numbers, of as many digits as a clock has meaning."""
        return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Effort:
    """How long to measure. ``seconds`` is a budget for all cases together, within ``rounds`` (fewest, most)."""

    seconds: float
    rounds: tuple[int, int]
    sample_s: float
    """Shortest time of one sample; faster cases run several times in it."""


QUICK = Effort(0.1, (3, 7), 0.005)
"""A tenth of a second for a layer, or six runs in each form where it takes longer."""


def time_cases(
    cases: Mapping[str, Case],
    effort: Effort,
    *,
    seed: int = 0,
    cuda: bool = False,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[float], object] = lambda share: None,
) -> dict[str, Timing]:
    """Time ``cases``, by name. On CUDA by events, else by ``clock``. ``progress`` is told the share that is done."""
    found = samples(cases, effort, seed=seed, cuda=cuda, clock=clock, progress=progress)
    return {name: _timing(found[name], found[case.reference], seed) for name, case in cases.items()}


def seconds_of(runs: Mapping[str, Callable[[], object]], device: torch.device, effort: Effort = QUICK) -> dict[str, float]:
    """Seconds of each of ``runs``, by name. On one thread of a CPU they are its own: other work doesn't disturb them."""
    cases = {name: Case(run, nullcontext, name) for name, run in runs.items()}
    clock = time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    timed = time_cases(cases, effort, cuda=device.type == "cuda", clock=clock)
    return {name: timing.median_s for name, timing in timed.items()}


def samples(
    cases: Mapping[str, Case],
    effort: Effort,
    *,
    seed: int = 0,
    cuda: bool = False,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[float], object] = lambda share: None,
) -> dict[str, list[float]]:
    """What ``time_cases`` goes by: seconds of one run in each round, by name."""
    order = random.Random(seed)
    repeats = {name: _warmed_up(case, effort.sample_s, cuda, clock) for name, case in cases.items()}
    one_round = sum(repeat * seconds for repeat, seconds in repeats.values())
    low, high = effort.rounds
    rounds = min(max(math.ceil(effort.seconds / max(one_round, 1e-9)), low), high)
    found: dict[str, list[float]] = {name: [] for name in cases}
    for done in range(rounds):
        progress(done / rounds)
        for name in order.sample(list(cases), len(cases)):
            found[name].append(_sample(cases[name], repeats[name][0], cuda, clock))
    return found


def _warmed_up(case: Case, sample_s: float, cuda: bool, clock: Callable[[], float]) -> tuple[int, float]:
    """(Runs in one sample, seconds of one run)."""
    _sample(case, 1, cuda, clock)
    seconds = min(_sample(case, 1, cuda, clock) for _ in range(2))
    return max(1, math.ceil(sample_s / max(seconds, 1e-9))), seconds


def _sample(case: Case, repeat: int, cuda: bool, clock: Callable[[], float]) -> float:
    with case.context():
        if cuda:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            for _ in range(repeat):
                case.run()
            end.record()
            torch.cuda.synchronize()
            return start.elapsed_time(end) / 1e3 / repeat
        begin = clock()
        for _ in range(repeat):
            case.run()
        return (clock() - begin) / repeat


def _timing(values: list[float], reference: list[float], seed: int) -> Timing:
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    ratios = np.asarray(values) / np.asarray(reference)
    draws = np.random.default_rng(seed).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.median(ratios[draws], axis=1), (tail, 1 - tail))
    return Timing(median, q1, q3, float(np.median(ratios)), float(low), float(high), len(values))
