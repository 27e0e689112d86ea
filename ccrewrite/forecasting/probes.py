"""Short training runs from the same start: geometry alone, or weights alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.forecasting.data import Data
from ccrewrite.training.config import FinetuneConfig
from ccrewrite.training.groups import param_groups
from ccrewrite.training.positions import clamp_positions

CONFIDENCE, RESAMPLES = 0.95, 2000
NORMAL = 1.96
"""Standard deviations that hold as much of a normal distribution."""
SCHEDULE = FinetuneConfig(warmup=0.0)
"""Of the learning rate: from its highest down to 0, as in ``finetune``."""


@dataclass(frozen=True)
class Estimate:
    """A number with an interval of ``CONFIDENCE``."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], seed: int) -> Estimate:
        """The mean of ``values``, which are drawn again.

        >>> Estimate.of([1.0, 1.0, 1.0], seed=0)
        Estimate(mean=1.0, low=1.0, high=1.0)
        """
        array = np.asarray(values, dtype=np.float64)
        draws = np.random.default_rng(seed).integers(len(array), size=(RESAMPLES, len(array)))
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(array[draws].mean(1), (tail, 1 - tail))
        return cls(float(array.mean()), float(low), float(high))

    @classmethod
    def of_course(cls, values: Sequence[float]) -> Estimate:
        """The sum of ``values``, each with noise of its own around a course: what neighbours differ by is taken for noise.

        >>> Estimate.of_course([3.0, 2.0, 1.0]).mean
        6.0
        """
        array = np.asarray(values, dtype=np.float64)
        half = NORMAL * float(np.sqrt(np.square(np.diff(array)).sum() / 2))
        return cls(float(array.sum()), float(array.sum()) - half, float(array.sum()) + half)


@dataclass(frozen=True)
class Probe:
    """What one arm reached: ``losses`` on each judging batch, after ``steps`` at learning rate ``rate`` (0: no rate was better
    than not to train). ``along``: by site, for each step but the first, how much the loss fell by the step before, told by the
    gradient of this step's batch."""

    rate: float
    steps: int
    losses: tuple[float, ...]
    along: Mapping[str, tuple[float, ...]]

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "along"}


class Course(NamedTuple):
    """What both arms have in common: the learning rates to try; ``stop`` is asked before each but the first, ``told`` is called
    after each."""

    rates: Sequence[float]
    seed: int
    stop: Callable[[], bool]
    told: Callable[[], object]


def best_probe(
    model: nn.Module,
    data: Data,
    trained: Sequence[nn.Parameter],
    reset: Callable[[], object],
    steps: int,
    course: Course,
    sites: Mapping[str, Sequence[nn.Parameter]] | None = None,
) -> Probe:
    """Train ``trained``, parameters of ``model``, for ``steps`` at each learning rate; ``reset`` brings the start back. The
    best by the choosing batches. ``sites``: parameters by site, of which it is told how the loss fell along their way.

    Raises ``InputError`` where the loss at the start is not finite.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    reset()
    best, found = data.chosen_by(model), Probe(0.0, steps, tuple(data.losses(model, data.judging)), {})
    if not math.isfinite(best + sum(found.losses)):
        raise InputError(f"the loss is {best} on fresh batches before any training; look at the model, the data and the loss")
    for index, rate in enumerate(course.rates if trained else ()):
        if index and course.stop():
            break
        reset()
        torch.manual_seed(course.seed)  # a model may draw in evaluation mode too
        along = _train(model, data, rate, steps, sites or {})
        reached = data.chosen_by(model)
        losses = tuple(data.losses(model, data.judging))
        if reached < best and math.isfinite(sum(losses)):
            best, found = reached, Probe(rate, steps, losses, along)
        course.told()
    reset()
    return found


def _train(
    model: nn.Module, data: Data, rate: float, steps: int, sites: Mapping[str, Sequence[nn.Parameter]]
) -> dict[str, tuple[float, ...]]:
    groups = param_groups(model, rate)
    optimizer = torch.optim.Adam(groups)
    highest = [group["lr"] for group in groups]
    sites = {name: parameters for name, parameters in sites.items() if parameters}
    before = {p: p.detach().clone() for parameters in sites.values() for p in parameters}
    along: dict[str, list[Tensor]] = {name: [] for name in sites}
    for step in range(steps):
        for group, lr in zip(optimizer.param_groups, highest, strict=True):
            group["lr"] = lr * SCHEDULE.rate(step, steps)
        optimizer.zero_grad()
        loss = data.loss_of(model, data.batch(step))
        if not loss.requires_grad:
            break  # it depends on nothing that trains
        loss.backward()
        for name, parameters in sites.items() if step else ():
            along[name].append(cast(Tensor, sum(_fallen(p, before[p]) for p in parameters)))
        for parameter, value in before.items():
            value.copy_(parameter.detach())
        optimizer.step()
        clamp_positions(model)
    for parameter in model.parameters():
        parameter.grad = None
    return {name: tuple(torch.stack(values).tolist()) if values else () for name, values in along.items()}


def _fallen(parameter: nn.Parameter, before: Tensor) -> Tensor:
    if parameter.grad is None:
        return torch.zeros((), device=parameter.device)
    return (parameter.grad * (before - parameter.detach())).sum().float()
