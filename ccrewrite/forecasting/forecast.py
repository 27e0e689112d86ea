"""``forecast``: what moving geometry would gain and cost, asked of the user's own model, data and loss."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import cast

from rich.console import Console
from rich.progress import Progress

from ccrewrite.api import rewrite
from ccrewrite.errors import InputError
from ccrewrite.forecasting.answer import Forecast
from ccrewrite.forecasting.data import Data
from ccrewrite.forecasting.models import Models
from ccrewrite.forecasting.probes import REPEATS, Course, best_arm
from ccrewrite.forecasting.signals import signals
from ccrewrite.forecasting.sites import sites_of
from ccrewrite.forecasting.timing import Clock, fitting, inference_seconds, step_seconds
from ccrewrite.forecasting.verdict import Comparison, judged
from ccrewrite.ir.capture import How, Inputs, Model, as_module
from ccrewrite.ir.json_types import JsonObject
from ccrewrite.ir.options import check_arguments
from ccrewrite.ir.preserve import random_states_kept
from ccrewrite.ir.progress import step
from ccrewrite.ir.wrappers import unwrapped
from ccrewrite.lowering.expenses import costs_of
from ccrewrite.passes.decide import Patterns
from ccrewrite.passes.rules import Rules
from ccrewrite.training.batches import Loss

RATES = (1e-3, 1e-2)
STEPS = 28
"""Of the probes of the rewritten model; those of the original are as long in seconds."""
SIGNALS = 16
"""Batches whose gradients are looked at."""
SITE_SECONDS = 1.0
"""What timing one site takes, or less."""


def forecast(
    model: Model,
    example_inputs: object,
    train_data: object,
    loss: Loss,
    *,
    rules: Rules = None,
    include: Patterns = None,
    exclude: Patterns = None,
    kinds: str | Sequence[str] | None = None,
    how: How = "auto",
    rates: Sequence[float] = RATES,
    steps: tuple[int, int] | None = None,
    seconds: float | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Forecast:
    """Whether ``model`` would gain from learned geometry, where, and what it would cost. ``model`` stays as it is.

    A copy is rewritten and trained for a few steps, then the original's weights for as many seconds, from the same start and on
    the same batches; on fresh batches the two are compared. In evaluation mode, batch norm included. docs/forecast.md says how
    far to trust it. What is not described here is as ``rewrite``'s.

    Args:
        model: the original, in whatever state it is to be fine-tuned from.
        example_inputs: as ``rewrite``'s; costs are measured at these.
        train_data: as ``finetune``'s: a ``DataLoader`` or another collection of at least 8 batches.
        loss: as ``finetune``'s: a function of the model's outputs and the target that gives the mean over the batch.
        rules: as ``plan``'s.
        include: as ``plan``'s.
        exclude: as ``plan``'s.
        kinds: as ``plan``'s.
        how: as ``plan``'s.
        rates: learning rates to try, of which each arm gets its best.
        steps: of the probes, (rewritten, original); None: 28 of the rewritten model, and as many of the original as take as
            long, by one timing. With given steps the answer but for its times depends on ``seed`` alone.
        seconds: the most it may take. Then steps are lowered, and ``said`` tells; what there is by then is returned.
        seed: of the batches that are drawn.
        progress: a bar on stderr; None: where that is a terminal.

    Returns:
        A verdict, and for each site what it may gain and cost.

    Raises:
        InputError: for what can't be used or trained.
        ModelRunError: where the model raises on the inputs.
        SelectionError: where nothing is selected, or nothing can be rewritten.

    Memory: one copy of the model, and what a training step of it takes.

    >>> import torch, ccrewrite
    >>> from torch import nn
    >>> x = torch.randn(64, 1, 24, generator=torch.Generator().manual_seed(0))
    >>> model = nn.Conv1d(1, 1, 2, dilation=2)
    >>> data = [(part, part[..., 1:-1]) for part in x.split(8)]  # the sample between the taps, which no weight reaches
    >>> found = ccrewrite.forecast(model, x[:8], data, nn.functional.mse_loss, steps=(8, 16))
    >>> found.verdict in ("pays", "does not pay", "unclear"), [site.name for site in found]
    (True, ['(root)'])
    """
    check_arguments(forecast, {**locals(), "steps": None, "seconds": None})  # which are checked more closely
    clock = Clock(_checked(seconds, steps, rates))
    original, inputs = unwrapped(as_module(model)), Inputs.of(example_inputs)
    with ExitStack() as stack:
        stack.enter_context(random_states_kept())
        stages = 4 + 2 * (len(rates) + REPEATS - 1)
        shown = sys.stderr.isatty() if progress is None else progress
        bar = stack.enter_context(Progress(console=Console(stderr=True), transient=True, disable=not shown))
        task = bar.add_task("rewriting", total=stages)

        def stage(what: str) -> None:
            bar.update(task, advance=1, description=what)
            step("forecast", what, min(1.0, bar.tasks[task].completed / stages))

        options: JsonObject = {"include": include, "exclude": exclude, "kinds": kinds, "how": how}
        result = rewrite(original, example_inputs, rules=rules, verify="outputs", **options)
        models = Models(original, result.model)
        if not models.geometry:
            raise InputError("no geometry could be trained: the weights of every site are frozen; set requires_grad on some")
        data = Data(train_data, loss, seed, models.device)
        said: list[str] = []

        stage("timing")
        data.fetch(1)
        taken = None
        if steps is None or seconds is not None:
            taken = step_seconds(models, data)
        wanted = steps or (STEPS, max(1, round(STEPS * _ratio(taken))))

        stage("costs")
        sites = models.sites()
        estimated = clock.left() < 5 * SITE_SECONDS * len(sites)
        if estimated:
            said.append(f"seconds={seconds:g} left no time to time the sites: what they cost is estimated")
        costs = costs_of(models.copy, inputs, result.plan, "estimated" if estimated else "eager")
        timed = {} if estimated else {name: s for name, s in models.samplings().items() if name in costs}
        times, alone = inference_seconds(original, models.copy, inputs, timed)
        if estimated:
            alone = {name: max(0.0, cost.seconds - cost.plain_seconds) for name, cost in costs.items()}

        stage("gradients")
        models.train(models.geometry + models.own_weights())
        data.fetch(SIGNALS)
        by_site, signal = signals(models.copy, data, sites, models.own_weights_by_site())
        allowed = _lowered(wanted, taken, len(rates), clock, said)

        comparison, rises = None, cast("Mapping[str, tuple[tuple[float, ...], ...]]", {})
        if allowed[0] and signal.connected:
            data.fetch(REPEATS * max(allowed))
            course = Course(rates, max(allowed), seed, lambda: clock.left() <= 0, lambda: stage("training"))
            every = [*models.geometry, *models.weights_of(models.copy)]
            ours = best_arm(models.copy, data, every, models.reset, allowed[0], course, sites)
            models.revert()
            start = tuple(data.losses(models.copy, data.judging))
            theirs = best_arm(models.copy, data, list(models.weights_of(models.copy)), models.reset_weights, allowed[1], course)
            comparison, rises = Comparison.of(start, ours, theirs), ours.rises
            if clock.left() <= 0:
                said.append(f"seconds={seconds:g} were over before every probe was made")
    verdict, why = judged(comparison, signal)
    return Forecast(
        verdict,
        why,
        sites_of(
            result.plan.rewritten,
            by_site,
            rises,
            costs,
            comparison is not None,
            [name for name, trained in sites.items() if not trained],
        ),
        comparison,
        signal,
        allowed,
        taken,
        times,
        alone,
        result.plan,
        tuple(said),
    )


def _checked(seconds: float | None, steps: tuple[int, int] | None, rates: Sequence[float]) -> float | None:
    if seconds is not None and not (isinstance(seconds, (int, float)) and 0 < seconds < math.inf):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"seconds must be a number above 0, found {seconds!r}")
    given: object = steps
    pair = cast("Sequence[object]", given) if isinstance(given, (tuple, list)) else ()
    if steps is not None and not (len(pair) == 2 and all(isinstance(n, int) and n >= 1 for n in pair)):
        raise InputError(f"steps are (rewritten, original), integers of at least 1; found {steps!r}")
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise InputError(f"rates must be learning rates above 0, at least one; found {rates!r}")
    return seconds


def _ratio(taken: tuple[float, float] | None) -> float:
    """How many times a step of the original one of the rewritten model takes."""
    return 1.0 if taken is None else taken[0] / taken[1]


def _lowered(
    wanted: tuple[int, int], taken: tuple[float, float] | None, rates: int, clock: Clock, said: list[str]
) -> tuple[int, int]:
    """``wanted`` steps, or as many as there is time for."""
    if clock.most is None or taken is None:
        return wanted
    allowed = fitting(wanted, taken, rates, clock.left())
    if allowed != wanted:
        few = f"lowered the probes' steps from {wanted} to {allowed}" if allowed[0] else "left no time for probes"
        said.append(f"seconds={clock.most:g} {few}")
    return allowed
