"""How long things take that a forecast counts with: steps of both arms, inference; and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import nn

from ccrewrite.families.sampling import Sampling
from ccrewrite.forecasting.data import CHOOSING, JUDGING, Data
from ccrewrite.forecasting.models import Models
from ccrewrite.forecasting.probes import LOOKS, REPEATS
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.preserve import unwatched
from ccrewrite.ir.timing import Case, Effort, time_cases

EFFORT = Effort(0, (5, 5), 0.01)
"""Eight runs of each case, or a twentieth of a second: a short run by itself finds caches cold."""
SPARE = 0.8
"""Of the time that is left, what may be planned for: a machine is not always as fast."""
FEWEST_STEPS = 4
"""Probes of fewer steps say nothing."""


class Clock:
    """Seconds since it was made, of the ``most`` that there are."""

    def __init__(self, most: float | None) -> None:
        self.most, self.begin = most, time.perf_counter()

    def left(self) -> float:
        return float("inf") if self.most is None else self.most - (time.perf_counter() - self.begin)


def step_seconds(models: Models, data: Data) -> tuple[float, float]:
    """Of a forward and backward of the rewritten model with all that trains, its geometry moved, and of the original. Both stay
    as they are. The optimizer's own time is not counted."""
    batch = data.training[0]

    def step(model: nn.Module, wanted: Sequence[nn.Parameter]) -> Callable[[], object]:
        def run() -> None:
            with torch.enable_grad():
                loss = data.loss_of(model, batch)
                if wanted and loss.requires_grad:
                    torch.autograd.grad(loss, wanted, allow_unused=True)

        return run

    every = [*models.geometry, *models.weights_of(models.copy)]
    ours, theirs = step(models.copy, every), step(models.original, list(models.weights_of(models.original)))
    moved = partial(_moved, list(models.samplings().values()))
    cases = {"ours": Case(ours, moved, "theirs"), "theirs": Case(theirs, nullcontext, "theirs")}
    with unwatched([models.original, models.copy], ()):
        found = time_cases(cases, EFFORT, cuda=data.device.type == "cuda")
    return found["ours"].median_s, found["theirs"].median_s


def inference_seconds(
    original: nn.Module, rewritten: nn.Module, inputs: Inputs, sites: Mapping[str, Sampling]
) -> tuple[tuple[float, float, float], dict[str, float]]:
    """Of a run on the example inputs: the original's, and that of ``rewritten`` at its start and with all of ``sites`` moved;
    and by how much each makes it longer that moves alone. ``rewritten`` must be at its start, where it is afterwards."""

    def run(model: nn.Module) -> Callable[[], object]:
        return torch.no_grad()(lambda: inputs.run(model))

    once, several = run(original), run(rewritten)
    cases = {
        "plain": Case(once, nullcontext, "plain"),
        "still": Case(several, nullcontext, "plain"),
        "moved": Case(several, partial(_moved, list(sites.values())), "plain"),
        **{f"site {name}": Case(several, partial(_moved, [sampling]), "plain") for name, sampling in sites.items()},
    }
    device = next((p.device for p in original.parameters()), torch.device("cpu"))
    with unwatched([original, rewritten], inputs.tensors()):
        found = time_cases(cases, EFFORT, cuda=device.type == "cuda")
    seconds = {name: timing.median_s for name, timing in found.items()}
    alone = {name: max(0.0, seconds[f"site {name}"] - seconds["still"]) for name in sites}
    return (seconds["plain"], seconds["still"], seconds["moved"]), alone


@contextmanager
def _moved(samplings: Sequence[Sampling]) -> Generator[None]:
    """Inside, the geometry of ``samplings`` is off its start."""
    starts = [(p, p.detach().clone()) for sampling in samplings for p in sampling.parameters()]
    for sampling in samplings:
        sampling.nudge_()
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, start in starts:
                parameter.copy_(start)


def fitting(steps: tuple[int, int], seconds: tuple[float, float], rates: int, left: float) -> tuple[int, int]:
    """``steps`` of the rewritten model and of the original, lowered alike so that the probes of both, at ``rates`` learning
    rates, and their judging take no more than what is ``left``; (0, 0) where that would be too few to say anything."""
    forward = (seconds[0] + seconds[1]) / 3  # of both models, about
    probes = rates + REPEATS - 1
    room = SPARE * left - (probes * (CHOOSING + JUDGING + LOOKS) + JUDGING) * forward
    each = steps[0] * seconds[0] + steps[1] * seconds[1]
    share = min(1.0, room / (probes * each)) if each else 1.0
    lowered = int(share * steps[0]), max(1, int(share * steps[1]))
    return steps if share == 1 else lowered if lowered[0] >= FEWEST_STEPS else (0, 0)
