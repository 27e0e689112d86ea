"""What the claims share: the protocol, the statistics, the files written.

A claim compares arms. For each seed one network is trained; every arm makes its model out of that network and is fine-tuned by
the same optimizer and schedule, for as many steps, on the same batches in the same order. Geometry has parameter groups of its
own (``ccrewrite.training.param_groups``). Each arm's learning rate is the best of the same list, on validation data and on
seeds that aren't reported. Differences to the untouched model are paired by seed, with 95 % t-intervals.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import scipy.stats
import torch
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import Tensor, nn

import ccrewrite
from ccrewrite.families.dcls.sampling import DclsSampling
from ccrewrite.training import param_groups

REPORTS = Path(__file__).parents[2] / "reports" / "evidence"
SEARCH_SEED = 1000
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Claim:
    """A network, a task and the arms; the first arm is the untouched model."""

    name: str
    about: str
    network: Callable[[], nn.Module]
    batch: Callable[[torch.Generator, bool], Batch]
    """A training batch; True while the original is trained, False while arms are fine-tuned."""
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[nn.Module, str], dict[str, float]]
    """Measures on "validation" or "test" data, higher is better; the first one decides."""
    arms: Mapping[str, Callable[[nn.Module], nn.Module]]
    train_steps: int
    train_rate: float
    tune_steps: int
    rates: Sequence[float]
    weight_decay: float = 0.0
    digits: int = 2
    """Decimals shown."""


def fit(claim: Claim, model: nn.Module, seed: int, steps: int, rate: float, first: bool) -> float:
    """AdamW, one cycle of the learning rates; milliseconds per step."""
    random = torch.Generator().manual_seed(seed)
    groups = param_groups(model, rate, claim.weight_decay)
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [g["lr"] for g in groups], steps, pct_start=0.2)
    model.train()
    spent = 0.0
    for _ in range(steps):
        x, y = claim.batch(random, first)
        start = time.process_time()
        loss = claim.loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        spent += time.process_time() - start
    model.eval()
    return 1000 * spent / steps


def original(claim: Claim, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = claim.network()
    fit(claim, model, seed, claim.train_steps, claim.train_rate, True)
    return model


def tuned(claim: Claim, arm: str, trained: nn.Module, seed: int, rate: float, split: str) -> dict[str, Any]:
    """One arm's scores before and after its fine-tuning, and what became of its geometry."""
    model = claim.arms[arm](copy.deepcopy(trained))
    before = claim.score(model.eval(), split)
    milliseconds = fit(claim, model, seed + 500, claim.tune_steps, rate, False)
    found = {"before": before, "after": claim.score(model, split), "step_ms": milliseconds}
    moves = [s.offset.detach().abs().flatten() for s in model.modules() if isinstance(s, DclsSampling)]
    found["parameters"] = sum(p.numel() for p in model.parameters())
    found["moved"] = float(torch.cat(moves).mean()) if moves else None
    return found


def search(claim: Claim, seeds: int) -> dict[str, dict[float, float]]:
    """Mean validation score of every arm at every rate."""
    scores: dict[str, dict[float, list[float]]] = {arm: {rate: [] for rate in claim.rates} for arm in claim.arms}
    for seed in range(SEARCH_SEED, SEARCH_SEED + seeds):
        trained = original(claim, seed)
        for arm in claim.arms:
            for rate in claim.rates:
                after = tuned(claim, arm, trained, seed, rate, "validation")["after"]
                scores[arm][rate].append(next(iter(after.values())))
                print(f"{claim.name}, search, seed {seed}, {arm}, {rate}: {scores[arm][rate][-1]:.3f}", flush=True)
    return {arm: {rate: statistics.mean(v) for rate, v in by_rate.items()} for arm, by_rate in scores.items()}


def paired(arm: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """Mean difference with its 95 % t-interval over seeds, and in how many seeds it is positive."""
    differences = [a - b for a, b in zip(arm, base, strict=True)]
    mean = statistics.mean(differences)
    half = float(scipy.stats.t.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences) / len(differences) ** 0.5
    wins = sum(d > 0 for d in differences)
    return {"mean": mean, "low": mean - half, "high": mean + half, "wins": wins, "differences": differences}


def results(claim: Claim, seeds: int, searches: int) -> dict[str, Any]:
    """Rates by validation, then every seed's scores on the test data."""
    start = time.perf_counter()
    found = search(claim, searches)
    rates = {arm: max(by_rate, key=lambda r: by_rate[r]) for arm, by_rate in found.items()}
    runs: list[dict[str, Any]] = []
    for seed in range(seeds):
        trained = original(claim, seed)
        runs.append({arm: tuned(claim, arm, trained, seed, rates[arm], "test") for arm in claim.arms})
        shown = "; ".join(f"{a} {next(iter(r['after'].values())):.3f}" for a, r in runs[-1].items())
        print(f"{claim.name}, seed {seed}, {time.perf_counter() - start:.0f} s: {shown}", flush=True)
    return {
        "claim": claim.name,
        "about": claim.about,
        "seconds": round(time.perf_counter() - start),
        "train_steps": claim.train_steps,
        "tune_steps": claim.tune_steps,
        "rates": rates,
        "search": found,
        "against_untouched": against(runs),
        "runs": runs,
    }


def against(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """``paired`` of every arm and measure with the first arm."""
    base, *others = runs[0]
    return {
        arm: {m: paired([r[arm]["after"][m] for r in runs], [r[base]["after"][m] for r in runs]) for m in runs[0][arm]["after"]}
        for arm in others
    }


def run(name: str, title: str, claims: Sequence[Claim]) -> None:
    """Carry out ``claims`` and write ``reports/evidence/<name>.json``, ``.md`` and ``.png``."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--searches", type=int, default=2, help="seeds of the search for learning rates")
    parser.add_argument("--report", type=Path, default=REPORTS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = [results(claim, asked.seeds, asked.searches) for claim in claims]
    report = {
        "title": title,
        "command": f"python benchmarks/evidence/{name}.py --seeds {asked.seeds} --searches {asked.searches}",
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}, 1 thread",
        "versions": {"ccrewrite": ccrewrite.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "seeds": asked.seeds,
        "seconds": sum(f["seconds"] for f in found),
        "results": found,
    }
    asked.report.mkdir(parents=True, exist_ok=True)
    (asked.report / f"{name}.json").write_text(json.dumps(report, separators=(",", ":")) + "\n")
    text = markdown(name, report, {claim.name: claim.digits for claim in claims})
    (asked.report / f"{name}.md").write_text(text)
    draw(report).savefig(asked.report / f"{name}.png", dpi=80)
    print(text)


def markdown(name: str, report: Mapping[str, Any], digits: Mapping[str, int]) -> str:
    parts = [
        f"# {report['title']}",
        f"`{report['command']}`, {report['date']}, {report['device']}, torch {report['versions']['torch']}, "
        f"Python {report['versions']['python']}, {report['seeds']} seeds, {report['seconds']} s.",
        "Each row is fine-tuned for the same steps on the same batches, at the best of its learning rates by validation on "
        "other seeds; scores are of test data, mean ± standard deviation over seeds. Differences are those to the untouched "
        "model with the same fine-tuning, paired by seed: mean, 95 % t-interval, and how many seeds gained.",
        f"![differences to the untouched model]({name}.png)",
    ]
    for result in report["results"]:
        steps = f"{result['train_steps']} steps of training, {result['tune_steps']} of fine-tuning."
        parts += [f"## {result['claim']}", f"{result['about']} {steps}", *tables(result, digits[result["claim"]])]
    return "\n\n".join(parts) + "\n"


def tables(result: Mapping[str, Any], digits: int) -> list[str]:
    """One row per arm: what was set, and the scores; then one with the differences."""
    runs = result["runs"]
    measures = list(next(iter(runs[0].values()))["after"])

    def mean(values: Sequence[float]) -> str:
        return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"

    rows: list[list[str]] = []
    for arm in runs[0]:
        mine = [r[arm] for r in runs]
        row = [
            arm,
            f"{result['rates'][arm]:g}",
            f"{mine[0]['parameters']}",
            f"{statistics.median(m['step_ms'] for m in mine):.0f}",
        ]
        row.append("" if mine[0]["moved"] is None else f"{statistics.mean(m['moved'] for m in mine):.2f}")
        for m in measures:
            row += [mean([r["before"][m] for r in mine]), mean([r["after"][m] for r in mine])]
        rows.append(row)
    headers = ["", "rate", "parameters", "ms a step", "taps moved, samples"]
    headers += [h for m in measures for h in (f"{m} before", f"{m} fine-tuned")]
    gains = [[arm, *(interval(v, digits) for v in by.values())] for arm, by in result["against_untouched"].items()]
    return [table(rows, headers), table(gains, ["difference", *measures])]


def interval(found: Mapping[str, Any], digits: int) -> str:
    mean, low, high = (f"{found[k]:+.{digits}f}" for k in ("mean", "low", "high"))
    return f"{mean} ({low} to {high}), {found['wins']} of {len(found['differences'])}"


def table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def draw(report: Mapping[str, Any]) -> Figure:
    """One panel per claim: each seed's difference, their mean and its interval, for every arm and measure."""
    found = report["results"]
    heights = [sum(map(len, r["against_untouched"].values())) for r in found]
    figure = Figure(figsize=(7, sum(0.9 + 0.35 * h for h in heights)), layout="constrained")
    panels = figure.subplots(len(found), 1, squeeze=False, height_ratios=[0.9 + 0.35 * h for h in heights])[:, 0]
    for result, axes in zip(found, panels, strict=True):
        rows = [(f"{arm}: {m}", d) for arm, by in result["against_untouched"].items() for m, d in by.items()]
        for y, (_, d) in enumerate(rows):
            axes.plot(d["differences"], [y] * len(d["differences"]), "o", color="tab:gray", alpha=0.5, markersize=4)
            axes.errorbar(d["mean"], y, xerr=d["high"] - d["mean"], fmt="D", color="tab:blue", capsize=4, markersize=5)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=8)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_title(f"{result['claim']}: minus the untouched model", fontsize=9)
    return figure
