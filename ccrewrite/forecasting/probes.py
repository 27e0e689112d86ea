"""Short training runs from the same start: geometry alone, or weights alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.forecasting.data import Data
from ccrewrite.ir.json_types import JsonObject
from ccrewrite.ir.typed import backward, manual_seed, numbers, step_
from ccrewrite.training.config import FinetuneConfig
from ccrewrite.training.groups import param_groups
from ccrewrite.training.positions import clamp_positions

NORMAL = 1.96
"""Standard errors to both sides of a mean that make an interval of 95 %."""
REPEATS = 3
"""Probes at the best learning rate, each on other batches."""
SCHEDULE = FinetuneConfig(warmup=0.0)
"""Of the learning rate: from its highest down to 0, as in ``finetune``."""


@dataclass(frozen=True)
class Estimate:
    """A number with an interval of 95 %."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[Sequence[float]]) -> Estimate:
        """The mean of ``values``, one row for each probe, one number for each judging batch; both are samples.

        >>> Estimate.of([[1.0, 1.0], [1.0, 1.0]])
        Estimate(mean=1.0, low=1.0, high=1.0)
        """
        array = np.asarray(values, dtype=np.float64)
        means = (array.mean(axis) for axis in (0, 1))
        half = NORMAL * float(np.sqrt(sum(m.var(ddof=1) / len(m) for m in means if len(m) > 1)))
        mean = float(array.mean())
        return cls(mean, mean - half, mean + half)

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
class Arm:
    """What training one part alone reached at its best learning rate, ``rate`` (0: none was better than not to train), in
    ``steps``. ``losses``: for each probe, on each judging batch. ``along``: by site, for each step but the first, how much the
    loss fell by the step before, told by the gradient of this step's batch; the mean over the probes."""

    rate: float
    steps: int
    losses: tuple[tuple[float, ...], ...]
    along: Mapping[str, tuple[float, ...]]

    def to_dict(self) -> JsonObject:
        return {name: value for name, value in asdict(self).items() if name != "along"}


class Course(NamedTuple):
    """What both arms have in common: the learning rates to try, and by how many batches the next probe begins after the last.
    ``stop`` is asked before each probe but the first, ``told`` is called after each."""

    rates: Sequence[float]
    apart: int
    seed: int
    stop: Callable[[], bool]
    told: Callable[[], object]


def best_arm(
    model: nn.Module,
    data: Data,
    trained: Sequence[nn.Parameter],
    reset: Callable[[], object],
    steps: int,
    course: Course,
    sites: Mapping[str, Sequence[nn.Parameter]] | None = None,
) -> Arm:
    """Train ``trained``, parameters of ``model``, for ``steps`` at each learning rate, and at the best, by the choosing
    batches, on other batches again. ``reset`` brings the start back. ``sites``: parameters by site, of which it is told how the
    loss fell along their way.

    Raises ``InputError`` where the loss at the start is not finite.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    reset()
    best, rate = data.chosen_by(model), 0.0
    losses, along = [tuple(data.losses(model, data.judging))], list[dict[str, tuple[float, ...]]]()
    if not math.isfinite(best + sum(losses[0])):
        raise InputError(f"the loss is {best} on fresh batches before any training; look at the model, the data and the loss")

    def probe(lr: float, first: int) -> tuple[dict[str, tuple[float, ...]], float, tuple[float, ...]]:
        reset()
        manual_seed(course.seed)  # a model may draw in evaluation mode too
        way = _train(model, data, lr, steps, first, sites or {})
        course.told()
        return way, data.chosen_by(model), tuple(data.losses(model, data.judging))

    for index, lr in enumerate(course.rates if trained else ()):
        if index and course.stop():
            break
        way, reached, found = probe(lr, 0)
        if reached < best and math.isfinite(sum(found)):
            best, rate, losses, along = reached, lr, [found], [way]
    for repeat in range(1, REPEATS if rate else 1):
        if course.stop():
            break
        way, _, found = probe(rate, repeat * course.apart)
        losses.append(found)
        along.append(way)
    reset()
    mean = {name: tuple(np.mean([way[name] for way in along], axis=0).tolist()) for name in (along[0] if along else ())}
    return Arm(rate, steps, tuple(losses), mean)


def _train(
    model: nn.Module, data: Data, rate: float, steps: int, first: int, sites: Mapping[str, Sequence[nn.Parameter]]
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
        loss = data.loss_of(model, data.batch(first + step))
        if not loss.requires_grad:
            break  # it depends on nothing that trains
        backward(loss)
        for name, parameters in sites.items() if step else ():
            along[name].append(cast(Tensor, sum(_fallen(p, before[p]) for p in parameters)))
        for parameter, value in before.items():
            value.copy_(parameter.detach())
        step_(optimizer)
        clamp_positions(model)
    for parameter in model.parameters():
        parameter.grad = None
    return {name: tuple(numbers(torch.stack(values))) if values else () for name, values in along.items()}


def _fallen(parameter: nn.Parameter, before: Tensor) -> Tensor:
    if parameter.grad is None:
        return torch.zeros((), device=parameter.device)
    return (parameter.grad * (before - parameter.detach())).sum().float()
