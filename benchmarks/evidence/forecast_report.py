"""The tables of ``forecast.py``: forecasts against what fine-tuning gave."""

from __future__ import annotations

import itertools
import json
import platform
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import scipy.stats
import torch
from common import REPORTS, paired, table
from equal_time import CLAIMS, Lines
from matplotlib.figure import Figure

import ccrewrite

Entry = dict[str, Any]


def majority(verdicts: Sequence[str]) -> str:
    """What more than half of the seeds say; "unclear" where none has so many."""
    verdict, count = Counter(verdicts).most_common(1)[0]
    return verdict if 2 * count > len(verdicts) else "unclear"


def judgement(verdict: str, truth: Mapping[str, float]) -> str:
    """Whether the verdict is right: where the interval of the truth holds 0, nothing has been shown to pay."""
    if verdict == "unclear":
        return "unclear"
    gains = truth["low"] > 0
    return "right" if (verdict == "pays") == gains else "wrong"


def verdicts(work: Path) -> list[Entry]:
    runs, told = list(Lines(work / "runs.jsonl")), list(Lines(work / "forecasts.jsonl"))
    found: list[Entry] = []
    for claim in CLAIMS:
        mine = [r for r in runs if r["claim"] == claim.name]
        said = [f for f in told if f["claim"] == claim.name]
        if len(mine) < 2 or not said:
            continue
        measure = next(iter(mine[0]["untouched"]["after"]))
        after = {arm: [r[arm]["after"][measure] for r in mine] for arm in ("rewritten", "untouched")}
        truth = paired(after["rewritten"], after["untouched"])
        verdict = majority([f["verdict"] for f in said])
        found.append(
            {
                "claim": claim.name,
                "measure": measure,
                "digits": claim.digits,
                "slower": mine[0]["ratio"],
                "truth": truth,
                "verdicts": dict(Counter(f["verdict"] for f in said)),
                "verdict": verdict,
                "judgement": judgement(verdict, truth),
                "lead": statistics.mean(f["comparison"]["lead"]["mean"] / f["comparison"]["start"] for f in said),
                "cpu_seconds": statistics.median(f["cpu_seconds"] for f in said),
                "seconds_of_300_steps": 0.3 * statistics.median(r["rewritten"]["step_ms"] for r in mine),
            }
        )
    return found


def by_site(work: Path) -> list[Entry]:
    """Rank correlation over the sites of each network: of each seed, which is a trained network of its own, and their mean."""
    lines = list(Lines(work / "sites.jsonl"))
    found: list[Entry] = []
    for name in dict.fromkeys(e["claim"] for e in lines):
        mine = [e for e in lines if e["claim"] == name]
        sites = list(mine[0]["told"])
        gained = [[e["losses"][""] - e["losses"][s] for s in sites] for e in mine]
        told = {key: [[e["told"][s][key] or 0.0 for s in sites] for e in mine] for key in ("gain", "decrease")}
        each = {k: [_spearman(t, g) for t, g in zip(values, gained, strict=True)] for k, values in told.items()}
        means = {k: _spearman(_means(values), _means(gained)) for k, values in told.items()}
        agreed = [_spearman(a, b) for a, b in itertools.combinations(gained, 2)]
        found.append(
            {
                "claim": name,
                "sites": sites,
                "gained": gained,
                **told,
                "spearman": each,
                "of_means": means,
                "seeds_agree": agreed,
            }
        )
    return found


def _means(by_seed: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.mean(values) for values in zip(*by_seed, strict=True)]


def _spearman(a: Sequence[float], b: Sequence[float]) -> float:
    return float(scipy.stats.spearmanr(a, b).statistic)  # pyright: ignore[reportAttributeAccessIssue]


def halved(work: Path) -> list[Entry]:
    lines = list(Lines(work / "halves.jsonl"))
    found: list[Entry] = []
    for name in dict.fromkeys(e["claim"] for e in lines):
        mine = [e["scores"] for e in lines if e["claim"] == name]
        gains = {arm: statistics.mean(s[arm] - s["untouched"] for s in mine) for arm in ("all", "half")}
        chosen = [e["chosen"] for e in lines if e["claim"] == name]
        found.append({"claim": name, "seeds": len(mine), "chosen": chosen, **gains, "kept": gains["half"] / gains["all"]})
    return found


def write(work: Path) -> None:
    """``reports/evidence/forecast.json``, ``.md`` and ``.png`` of all that lies in ``work``."""
    report: Entry = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}, 1 thread",
        "versions": {"ccrewrite": ccrewrite.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "verdicts": verdicts(work),
        "sites": by_site(work),
        "halves": halved(work),
        "limits": list(Lines(work / "limits.jsonl")),
    }
    (REPORTS / "forecast.json").write_text(json.dumps(report, separators=(",", ":")) + "\n")
    text = markdown(report)
    (REPORTS / "forecast.md").write_text(text)
    draw(report).savefig(REPORTS / "forecast.png", dpi=80)
    print(text)


def markdown(report: Entry) -> str:
    parts = [
        "# Forecasts against fine-tuning",
        f"`python benchmarks/evidence/equal_time.py` and `python benchmarks/evidence/forecast.py`, {report['date']}, "
        f"{report['device']}, torch {report['versions']['torch']}, Python {report['versions']['python']}; other work kept the "
        "machine busy, so steps were counted by processor time.",
        "## Verdicts, against equal time",
        "Truth: score of the rewritten network minus that of the untouched one, which trains on for as long as the rewritten "
        "one takes; 95 % t-interval, paired by seed. Verdict: what most seeds' forecasts say, on the same originals. Where the "
        "truth's interval holds 0, nothing was shown to pay: pays is wrong there.",
        table([_verdict(v) for v in report["verdicts"]], _VERDICTS),
        _counted(report["verdicts"]),
        "![the rewritten network's lead in the forecast, over what fine-tuning gave](forecast.png)",
    ]
    if report["sites"]:
        rows = [
            [
                s["claim"],
                str(len(s["sites"])),
                *(f"{s['of_means'][k]:+.2f}" for k in ("gain", "decrease")),
                _each(s["spearman"]["gain"]),
                _each(s["seeds_agree"]),
            ]
            for s in report["sites"]
        ]
        mean = [statistics.mean(s["of_means"][k] for s in report["sites"]) for k in ("gain", "decrease")]
        single = statistics.mean(statistics.mean(s["spearman"]["gain"]) for s in report["sites"])
        rows.append(["mean", "", *(f"{m:+.2f}" for m in (*mean, single)), ""])
        headers = ["network", "sites", "gain", "decrease told by gradients alone", "gain, seed by seed", "truths of two seeds"]
        parts += [
            "## Site by site",
            "Spearman's rank correlation over the sites between what the forecast says and by how much a fine-tuning with that "
            "site alone rewritten ends with a lower loss on fresh data, at equal steps: of means over seeds; then of each "
            "seed, a trained network of its own, and the mean of these. Last column: between what sites gained in two seeds.",
            table(rows, headers),
        ]
    if report["halves"]:
        rows = [
            [h["claim"], str(h["seeds"]), f"{h['all']:+.2f}", f"{h['half']:+.2f}", f"{h['kept']:.0%}"] for h in report["halves"]
        ]
        parts += [
            "## Half the sites",
            "Gain over the untouched network at equal steps, of all sites and of the half that the forecast chooses.",
            table(rows, ["task", "seeds", "all", "half", "kept"]),
        ]
    if report["limits"]:
        rows = [
            [e["claim"], f"{e['limit']:.3f}", str(len(e["chosen"])), f"{e['told']:.3f}", f"{e['measured']:.3f}"]
            for e in report["limits"]
        ]
        parts += [
            "## Times asked for",
            "Inference of the rewritten model over the original's: the limit, what the choice should take, what it took.",
            table(rows, ["network", "limit", "sites chosen", "told", "measured"]),
        ]
    return "\n\n".join(parts) + "\n"


def _each(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):+.2f} ({', '.join(f'{v:+.2f}' for v in values)})" if values else ""


_VERDICTS = [
    "task",
    "a step takes",
    "truth at equal time",
    "forecasts",
    "verdict",
    "",
    "lead, % of the loss",
    "s",
    "s of 300 steps",
]


def _verdict(v: Entry) -> list[str]:
    mean, low, high = (f"{v['truth'][k]:+.{v['digits']}f}" for k in ("mean", "low", "high"))
    return [
        v["claim"],
        f"{v['slower']:.2f}x",
        f"{mean} ({low} to {high}), {v['truth']['wins']} of {len(v['truth']['differences'])}; {v['measure']}",
        ", ".join(f"{count} {verdict}" for verdict, count in v["verdicts"].items()),
        v["verdict"],
        v["judgement"],
        f"{100 * v['lead']:+.1f}",
        f"{v['cpu_seconds']:.0f}",
        f"{v['seconds_of_300_steps']:.0f}",
    ]


def _counted(found: Sequence[Entry]) -> str:
    count = Counter(v["judgement"] for v in found)
    below = [v["claim"] for v in found if v["verdict"] == "pays" and v["truth"]["high"] < 0]
    shares = ", ".join(f"{kind} {count[kind]}" for kind in ("right", "unclear", "wrong"))
    return (
        f"Of {len(found)}: {shares}; pays where the truth lies below zero: {', '.join(below) or 'never'}. Lead: by how "
        "much more of the loss is gone in the rewritten network. s: processor time of a forecast, and of 300 steps of the "
        "rewritten network."
    )


def draw(report: Entry) -> Figure:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    colours = {"right": "tab:green", "unclear": "tab:gray", "wrong": "tab:red"}
    for place, v in enumerate(report["verdicts"]):
        axes.plot(100 * v["lead"], place, "o", color=colours[v["judgement"]])
    names = [f"{v['claim']}: {v['truth']['mean']:+.{v['digits']}f}" for v in report["verdicts"]]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xscale("symlog", linthresh=1)
    axes.margins(x=0.1)
    axes.set_xlabel("lead of the rewritten network in the forecast, % of the loss", fontsize=8)
    figure.suptitle("Green: right, grey: unclear, red: wrong; beside the task what it gained at equal time", fontsize=8)
    return figure
