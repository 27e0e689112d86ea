"""Seconds of several runs, round by round, by the package's own harness."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ccrewrite.ir.timing import Case, Effort, samples

Rounds = dict[str, list[float]]
"""By name of a run: seconds in each round."""


def timed(
    runs: Mapping[str, Callable[[], object]],
    rounds: int | tuple[int, int],
    *,
    seconds: float = 0.0,
    clock: Callable[[], float] = time.thread_time,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Rounds:
    """``rounds``: their number, or the fewest and most within ``seconds``. Runs are warmed up, and timed in ``context()``."""
    limits = (rounds, rounds) if isinstance(rounds, int) else rounds
    cases = {name: Case(run, context, name) for name, run in runs.items()}
    return samples(cases, Effort(seconds, limits, 0.0), clock=clock)


def ratios(found: Rounds, name: str, over: str) -> list[float]:
    """Of one run's seconds over another's in the same round."""
    return [a / b for a, b in zip(found[name], found[over], strict=True)]
