"""Short training runs from the same start: of the rewritten model, and of the original."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.forecasting.data import Data
from ccrewrite.ir.json_types import JsonObject
from ccrewrite.ir.typed import backward, manual_seed, step_
from ccrewrite.training.config import FinetuneConfig
from ccrewrite.training.groups import param_groups
from ccrewrite.training.positions import clamp_positions

NORMAL = 1.96
"""Standard errors to both sides of a mean that make an interval of 95 %."""
REPEATS = 3
"""Probes at the best learning rate, each on other batches."""
LOOKS = 48
"""Batches that are looked at after each probe, to tell what its sites are good for."""
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


@dataclass(frozen=True)
class Arm:
    """What training reached at the best learning rate, ``rate`` (0: none gave a finite loss), in ``steps``. ``losses``: for
    each probe, on each judging batch. ``rises``: by site, for each probe, by how much the loss rises on judging batches where
    this site's geometry alone is put back to its start."""

    rate: float
    steps: int
    losses: tuple[tuple[float, ...], ...]
    rises: Mapping[str, tuple[tuple[float, ...], ...]]

    def to_dict(self) -> JsonObject:
        return {name: value for name, value in asdict(self).items() if name != "rises"}


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
    batches, on other batches again. ``reset`` brings the start back. ``sites``: the geometry by site, each of which is put back
    after a probe, to see what the loss is without it.

    Raises ``InputError`` where the loss at the start is not finite.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    reset()
    at_start = tuple(data.losses(model, data.judging))
    if not math.isfinite(sum(at_start)):
        raise InputError(f"the loss is {sum(at_start)} on fresh batches before any training; look at the model, data and loss")
    sites = {name: parameters for name, parameters in (sites or {}).items() if parameters}
    starts = {name: [p.detach().clone() for p in parameters] for name, parameters in sites.items()}

    def probe(lr: float, first: int) -> float:
        reset()
        manual_seed(course.seed)  # a model may draw in evaluation mode too
        _train(model, data, lr, steps, first)
        course.told()
        return data.chosen_by(model)

    def judge() -> tuple[tuple[float, ...], dict[str, tuple[float, ...]]]:
        found = tuple(data.losses(model, data.judging))
        looks = data.judging[: max(2, LOOKS // max(1, len(starts)))]
        return found, {name: _rise(model, data, sites[name], start, looks, found) for name, start in starts.items()}

    best, rate, judged = math.inf, 0.0, list[tuple[tuple[float, ...], dict[str, tuple[float, ...]]]]()
    for index, lr in enumerate(course.rates if trained else ()):
        if index and course.stop():
            break
        reached = probe(lr, 0)
        if reached < best:
            best, rate, judged = reached, lr, [judge()]
    for repeat in range(1, REPEATS if rate else 0):
        if course.stop():
            break
        probe(rate, repeat * course.apart)
        judged.append(judge())
    reset()
    if not judged or not math.isfinite(sum(sum(losses) for losses, _ in judged)):
        return Arm(0.0, steps, (at_start,), {})
    rises = {name: tuple(found[name] for _, found in judged) for name in starts}
    return Arm(rate, steps, tuple(losses for losses, _ in judged), rises)


def _train(model: nn.Module, data: Data, rate: float, steps: int, first: int) -> None:
    groups = param_groups(model, rate)
    optimizer = torch.optim.Adam(groups)
    highest = [group["lr"] for group in groups]
    for step in range(steps):
        for group, lr in zip(optimizer.param_groups, highest, strict=True):
            group["lr"] = lr * SCHEDULE.rate(step, steps)
        optimizer.zero_grad()
        loss = data.loss_of(model, data.batch(first + step))
        if not loss.requires_grad:
            break  # it depends on nothing that trains
        backward(loss)
        step_(optimizer)
        clamp_positions(model)
    for parameter in model.parameters():
        parameter.grad = None


@torch.no_grad()
def _rise(
    model: nn.Module,
    data: Data,
    geometry: Sequence[nn.Parameter],
    start: Sequence[Tensor],
    batches: Sequence[object],
    losses: Sequence[float],
) -> tuple[float, ...]:
    """Of the loss on each of ``batches``, over ``losses``, where ``geometry`` is at ``start``; it is left as it was."""
    moved = [p.clone() for p in geometry]
    for parameter, value in zip(geometry, start, strict=True):
        parameter.copy_(value)
    found = data.losses(model, batches)
    for parameter, value in zip(geometry, moved, strict=True):
        parameter.copy_(value)
    return tuple(without - with_it for without, with_it in zip(found, losses, strict=False))
