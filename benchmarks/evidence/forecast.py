"""What forecasts say against what fine-tuning then gives: verdicts, sites one by one, half the sites, times asked for.

    python benchmarks/evidence/equal_time.py   # the truth at equal time; goes on where it was stopped
    python benchmarks/evidence/forecast.py     # the rest, likewise, then reports/evidence/forecast.json, .md and .png

Steps of the probes come from a timing of both arms in processor time of this thread, and are given to the forecast: what else
the machine does counts little.
"""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import denoising
import segmentation
import sequences
import torch
import unet
from common import Claim, fit
from equal_time import CLAIMS, Lines, rates, trained_network
from forecast_report import write
from torch import Tensor, nn

import ccrewrite
from ccrewrite.families.sites import named_samplings
from ccrewrite.forecasting import timing
from ccrewrite.forecasting.answer import Forecast
from ccrewrite.forecasting.data import Data
from ccrewrite.forecasting.models import Models
from ccrewrite.ir.timing import Case, Effort, time_cases

BATCHES, PROBE = 300, 28
TIMING = Effort(0, (7, 7), 0.02)


@dataclass(frozen=True)
class Asked:
    """How the rewrite of a claim's second arm is asked for."""

    example: Tensor
    options: dict[str, Any]


def asked(claim: Claim) -> Asked:
    if claim.name.startswith("classification"):
        return Asked(torch.zeros(2, 1, 16, 16), {"rules": [ccrewrite.LargeToDcls(budget=1 / 3)]})
    if claim.name.startswith(("irregular", "digits")):
        return Asked(torch.zeros(2, 1, 128 if claim.name.startswith("irregular") else 64), {"kinds": ["dilated"]})
    if claim.name.startswith("denoising"):
        return Asked(torch.zeros(2, 1, denoising.CROP, denoising.CROP), {"kinds": ["dilated"]})
    if claim.name.startswith("segmentation"):
        return Asked(torch.zeros(2, 1, unet.CROP, unet.CROP), {"kinds": ["dilated"]})
    return Asked(torch.zeros(2, 1, unet.CROP, unet.CROP), {})


def untouched(claim: Claim, trained: nn.Module) -> nn.Module:
    return claim.arms["untouched"](copy.deepcopy(trained)).eval()


def batches(claim: Claim, seed: int) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(seed + 9000)
    return [claim.batch(random, False) for _ in range(BATCHES)]


def slower(claim: Claim, model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> float:
    """How many times a step of the original one of the rewritten model takes, by this thread's processor time."""
    how = asked(claim)
    models = Models(model, ccrewrite.rewrite(model, how.example, verify=False, **how.options).model)
    drawn = Data(data, claim.loss, 0, torch.device("cpu"))
    drawn.fetch(1)
    timing.time_cases = functools.partial(time_cases, clock=time.thread_time)
    ours, theirs = timing.step_seconds(models, drawn)
    timing.time_cases = time_cases
    return ours / theirs


def forecast_of(claim: Claim, seed: int, work: Path, ratio: float | None) -> tuple[Forecast, float]:
    model, data, how = untouched(claim, trained_network(claim, seed, work)), batches(claim, seed), asked(claim)
    ratio = slower(claim, model, data) if ratio is None else ratio
    steps = PROBE, max(1, round(PROBE * ratio))
    return ccrewrite.forecast(
        model, how.example, data, claim.loss, steps=steps, seed=seed, progress=False, **how.options
    ), ratio


def forecasts(work: Path, seeds: int) -> None:
    lines = Lines(work / "forecasts.jsonl")
    for seed in range(seeds):
        for claim in CLAIMS:
            done = list(lines)
            if any((e["claim"], e["seed"]) == (claim.name, seed) for e in done):
                continue
            ratio = next((e["ratio"] for e in done if e["claim"] == claim.name), None)
            start = time.thread_time()
            found, ratio = forecast_of(claim, seed, work, ratio)
            kept = {name: value for name, value in found.to_dict().items() if name not in ("plan", "why")}
            lines.add(claim=claim.name, seed=seed, ratio=ratio, cpu_seconds=time.thread_time() - start, **kept)


def six_sites() -> list[Claim]:
    """Networks of six sites each."""
    delays, digits = sequences.claim("delays", (2, 8, 4, 2, 4, 8)), sequences.claim("digits", (3, 9, 3, 5, 2, 9))
    return [replace(delays, tune_steps=150), replace(digits, tune_steps=150), replace(unet.CLAIM, tune_steps=100)]


def test_loss(claim: Claim, model: nn.Module) -> float:
    random = torch.Generator().manual_seed(10**6)
    with torch.no_grad():
        return statistics.fmean(float(claim.loss(model(x), y)) for x, y in (claim.batch(random, False) for _ in range(40)))


def one_by_one(work: Path, seeds: int) -> None:
    """The loss after as many steps with one site rewritten, and with none."""
    lines = Lines(work / "sites.jsonl")
    for seed in range(seeds):
        for claim in six_sites():
            if any((e["claim"], e["seed"]) == (claim.name, seed) for e in lines):
                continue
            trained, how = trained_network(claim, seed, work), asked(claim)
            model = untouched(claim, trained)
            found, _ = forecast_of(claim, seed, work, None)
            known = {c.name: rates(c) for c in CLAIMS}
            rate = next(iter(known.get(claim.name, {"": 0.03}).values()))
            losses: dict[str, float] = {}
            for name in ("", *(site.name for site in found)):
                options = {**how.options, "include": [name], "verify": False}
                tuned = ccrewrite.rewrite(model, how.example, **options).model if name else copy.deepcopy(model)
                fit(claim, tuned, seed + 500, claim.tune_steps, rate, False)
                losses[name] = test_loss(claim, tuned)
            told = {s.name: {"gain": s.gain.mean if s.gain else None, "decrease": s.signal.decrease} for s in found}
            clear = {s.name: [s.signal.geometry, s.signal.weight] for s in found}
            lines.add(claim=claim.name, seed=seed, losses=losses, told=told, clear=clear, verdict=found.verdict)


def halves(work: Path, seeds: int) -> None:
    """Scores at equal steps of the untouched network, with every site rewritten, and with the half that is chosen."""
    lines = Lines(work / "halves.jsonl")
    for seed in range(seeds):
        for claim in CLAIMS:
            if claim.name in ("classification", "unet") or "1, 2, 4, 8" in claim.name:
                continue  # nothing is gained there
            if any((e["claim"], e["seed"]) == (claim.name, seed) for e in lines):
                continue
            trained, how = trained_network(claim, seed, work), asked(claim)
            model, known = untouched(claim, trained), rates(claim)
            found, _ = forecast_of(claim, seed, work, None)
            half = found.choose(sites=-(-len(found) // 2))
            scores: dict[str, float] = {}
            for name, include in (("untouched", None), ("all", "*"), ("half", half)):
                tuned = copy.deepcopy(model)
                if include:
                    tuned = ccrewrite.rewrite(model, how.example, include=include, verify=False, **how.options).model
                rate = known["untouched" if include is None else "DCLS"]
                fit(claim, tuned, seed + 500, claim.tune_steps, rate, False)
                scores[name] = next(iter(claim.score(tuned, "test").values()))
            lines.add(claim=claim.name, seed=seed, chosen=list(half), sites=[s.name for s in found], scores=scores)


def limits(work: Path) -> None:
    """The time of a rewritten model over the original's, against the limit that its sites were chosen for."""
    lines = Lines(work / "limits.jsonl")
    timing.time_cases = functools.partial(time_cases, clock=time.thread_time)
    for claim in (six_sites()[0], denoising.CLAIM, segmentation.CLAIM):
        if any(e["claim"] == claim.name for e in lines):
            continue
        trained, how = trained_network(claim, 0, work), asked(claim)
        model = untouched(claim, trained)
        example = how.example.new_zeros(16, *how.example.shape[1:])
        found = ccrewrite.forecast(model, example, batches(claim, 0), claim.loss, steps=(8, 8), progress=False, **how.options)
        plain, still, moved_all = found.seconds
        most = moved_all / plain
        for share in (0.25, 0.5, 0.75):
            limit = 1 + share * (most - 1)
            chosen = found.choose(latency=limit)
            told = (plain + bool(chosen) * (still - plain) + sum(found.added_seconds[name] for name in chosen)) / plain
            measured = 1.0
            if chosen:
                moved = ccrewrite.rewrite(model, example, include=chosen, verify=False, **how.options).model.eval()
                for sampling in named_samplings(moved).values():
                    sampling.nudge_()
                runs = {"plain": model, "moved": moved}
                cases = {n: Case(torch.no_grad()(lambda m=m, x=example: m(x)), nullcontext, "plain") for n, m in runs.items()}
                measured = time_cases(cases, Effort(0, (21, 21), 0.02), clock=time.thread_time)["moved"].ratio
            lines.add(claim=claim.name, limit=limit, chosen=list(chosen), told=told, measured=measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/equal_time"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--site-seeds", type=int, default=3)
    parser.add_argument("--stages", default="forecasts,sites,halves,limits,report")
    told = parser.parse_args()
    torch.set_num_threads(1)
    stages: dict[str, Callable[[], None]] = {
        "forecasts": lambda: forecasts(told.work, told.seeds),
        "sites": lambda: one_by_one(told.work, told.site_seeds),
        "halves": lambda: halves(told.work, told.site_seeds),
        "limits": lambda: limits(told.work),
        "report": lambda: write(told.work),
    }
    for stage in told.stages.split(","):
        stages[stage]()


if __name__ == "__main__":
    main()
