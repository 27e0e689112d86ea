"""How fast the forms of a DCLS convolution are on one thread, against the reference package and the plain convolution.

    python benchmarks/speed/lowering_cpu.py                  # writes reports/cpu/lowering.json and .md
    python benchmarks/speed/lowering_cpu.py --quick          # a few small cases, printed: does it run?

All variants of a case are compiled first and then run in turn, round after round, in processor time of the one thread; a ratio
is that of two runs of one round, of which median and quartiles are given. Memory is the peak of what torch's allocator holds
above what it held before the call (without oneDNN's scratchpads).
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lowering_cases import (
    CONVNEXT,
    Case,
    Runs,
    compiled,
    dense,
    depthwise,
    error,
    folded,
    formed,
    live,
    shared,
    spread,
    steps,
    unshared,
)
from rounds import ratios, timed
from tabulate import tabulate
from torch.profiler import ProfilerActivity, profile

import ccrewrite

REPORT = Path(__file__).parents[2] / "reports" / "cpu"
SLOW = 4
"""A dense window of more than so many times the taps is not convolved with, where there are other forms."""


class Spec(NamedTuple):
    """A case: what makes it, from what."""

    family: str
    arguments: tuple[Any, ...]


class Claim(NamedTuple):
    """A line of the target table: the best of this package's variants against ``baseline``, for some of the measurements."""

    title: str
    family: str
    mode: str
    baseline: str
    target: Callable[[tuple[Any, ...]], float | None]
    faster: bool = False
    """Whether the target is how many times faster at least; else how many times as long at most."""
    memory: float | None = None
    """Largest share of the baseline's memory."""
    form: str | None = None
    """The variant that is compared; None: the fastest."""


MAKERS: dict[str, Callable[..., Case]] = {"depthwise": depthwise, "shared": shared, "unshared": unshared}
TIMES_FASTER = dict(zip((c for c, _ in CONVNEXT), (7.0, 12.0, 20.0, 50.0), strict=True))


def wide(arguments: tuple[Any, ...]) -> bool:
    """DeepLab's ASPP: many more input channels than output channels."""
    return arguments[0] > arguments[1]


CLAIMS = (
    Claim(
        "Depthwise, 34 elements in a 17x17 window: forward and backward against PyPI `dcls` v0, eager",
        *("depthwise", "training", "dcls"),
        lambda a: TIMES_FASTER.get(a[0]),
        faster=True,
    ),
    Claim(
        "The same against `dcls` v0 under torch.compile",
        *("depthwise", "training", "dcls compiled"),
        lambda a: 1.0,
        faster=True,
    ),
    Claim(
        "The same against the plain 7x7 depthwise convolution that it replaces",
        *("depthwise", "training", "plain"),
        lambda a: 2.0 if a[0] <= 192 else None,
    ),
    Claim(
        "Depthwise, forward with frozen geometry, against the same kernel as an eager dense 17x17 convolution",
        *("depthwise", "forward", "dense"),
        lambda a: 15.0,
        faster=True,
        form="folded",
    ),
    Claim(
        "The same against the fastest form known",
        *("depthwise", "forward", "best"),
        lambda a: 1.15,
        form="folded",
    ),
    Claim(
        "Shared positions: forward against the plain dilated convolution",
        *("shared", "forward", "plain"),
        lambda a: 1.1 if wide(a) else 1.4,
    ),
    Claim(
        "Shared positions: forward and backward",
        *("shared", "training", "plain"),
        lambda a: 1.1 if wide(a) else 1.7,
    ),
    Claim(
        "A position for each weight: forward and backward against PyPI `dcls`",
        *("unshared", "training", "dcls"),
        lambda a: 5.0,
        faster=True,
        memory=0.2,
    ),
)
BASELINES = ("plain", "plain compiled", "dcls", "dcls compiled", "dense")


def specs(quick: bool) -> list[Spec]:
    if quick:
        return [Spec("depthwise", (16, 14, 1)), Spec("shared", (16, 16, 2, 15, 1, "tap")), Spec("unshared", (8, 2, 15, "v1"))]
    found = [Spec("depthwise", (c, h, n)) for c, h in CONVNEXT for n in (1, 4)]
    found += [Spec("shared", (256, 256, d, h, 1, s)) for h in (33, 65) for d in (2, 6, 12, 18) for s in ("tap", "out")]
    found += [Spec("shared", (2048, 256, d, 33, 1, "tap")) for d in (6, 12, 18)]
    return found + [Spec("unshared", (64, d, 33, v)) for v in ("v1", "gauss") for d in range(2, 7)]


def variants(family: str, mode: str, case: Case) -> Runs:
    """What is run of a case: name -> (what holds the parameters, what to run)."""
    sampling = case.ours.sampling
    large = case.ours.groups == 1 and math.prod(sampling.window) > SLOW * math.prod(sampling.taps)
    skipped = {"bands", "window"} if large and len(sampling.forms) > 1 else {"bands"}
    forms = tuple(f for f in sampling.forms if f not in skipped)
    plain: Runs = {"plain": (case.plain, case.plain)}
    if family == "unshared":
        assert case.reference is not None
        return {"dcls": (case.reference, case.reference), "window eager": (case.ours, case.ours), **live(case, forms)}
    if family == "shared":
        bands = formed(case.ours, "bands")  # what runs in eager mode
        both: Runs = {**plain, "plain compiled": (case.plain, compiled(case.plain)), "bands eager": (bands, bands)}
        both |= live(case, forms)
        return {**both, **folded(case)} if mode == "forward" else both
    if mode == "forward":
        return {"dense": dense(case), **folded(case, ("dense", "sparse")), **live(case, ("taps",))}
    assert case.reference is not None
    return {
        **plain,
        "dcls": (case.reference, case.reference),
        "dcls compiled": (case.reference, compiled(case.reference)),
        "eager": (case.ours, case.ours),
        **live(case, forms),
    }


def megabytes(function: Callable[[], Any]) -> float:
    """Peak of torch's allocations while ``function`` runs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]  # pyright: ignore[reportOptionalMemberAccess]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
        peak = max(peak, held)
    return peak / 1e6


def measure(spec: Spec, seconds: float) -> list[dict[str, Any]]:
    """One row for each way of running the case."""
    torch._dynamo.reset()
    gc.collect()
    torch.manual_seed(0)
    case = MAKERS[spec.family](*spec.arguments)
    rows: list[dict[str, Any]] = []
    for mode in ("training",) if spec.family == "unshared" else ("training", "forward"):
        runs = variants(spec.family, mode, case)
        started = time.perf_counter()
        todo = steps(case, runs, mode == "training")
        for function in todo.values():
            function()
            function()
        compiled_in = time.perf_counter() - started
        times = timed(todo, (5, 50), seconds=seconds)
        count = len(next(iter(times.values())))
        wrong = error(case, runs, set(runs) - set(BASELINES))
        assert wrong < 1e-4, f"{case.name}: outputs differ by {wrong}"
        measured = {
            name: {
                "ms": spread([1e3 * t for t in times[name]]),
                "peak_mb": megabytes(function),
                "ratios": {b: spread(ratios(times, name, b)) for b in todo if b != name},
            }
            for name, function in todo.items()
        }
        about = {
            "family": spec.family,
            "mode": mode,
            "arguments": spec.arguments,
            "case": case.name,
            "rounds": count,
        }
        rows.append({**about, "compile_s": compiled_in, "largest_relative_error": wrong, "variants": measured})
    return rows


def ours_of(measured: dict[str, Any]) -> dict[str, Any]:
    return {name: v for name, v in measured["variants"].items() if name not in BASELINES}


def fastest(variants: dict[str, Any]) -> str:
    return min(variants, key=lambda name: variants[name]["ms"]["median"])


def verdict(claim: Claim, measured: dict[str, Any]) -> dict[str, Any]:
    """The best variant of this package against the baseline, and the target."""
    ours = ours_of(measured)
    best = claim.form or fastest(ours)
    against = claim.baseline
    if against == "best":
        against = fastest({name: v for name, v in measured["variants"].items() if name != best})
    ratio = ours[best]["ratios"][against]
    if claim.faster:
        ratio = {"median": 1 / ratio["median"], "q1": 1 / ratio["q3"], "q3": 1 / ratio["q1"]}
    target = claim.target(tuple(measured["arguments"]))
    reached = None if target is None else (ratio["median"] >= target if claim.faster else ratio["median"] <= target)
    found = {"case": measured["case"], "form": best, "against": against, "ratio": ratio, "target": target, "reached": reached}
    if claim.memory is not None:
        found["memory"] = ours[best]["peak_mb"] / measured["variants"][against]["peak_mb"]
        found["reached"] = bool(reached) and found["memory"] <= claim.memory
    return found


def verdicts(measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for claim in CLAIMS:
        rows = [verdict(claim, m) for m in measured if (m["family"], m["mode"]) == (claim.family, claim.mode)]
        if rows:
            about = {"claim": claim.title, "baseline": claim.baseline, "faster": claim.faster, "memory_target": claim.memory}
            found.append({**about, "rows": rows})
    return found


def markdown(report: dict[str, Any]) -> str:
    where = f"{report['device']}, {report['versions']}, {report['date']}"
    lines = ["# Forms of a DCLS convolution on one thread", "", f"`{report['command']}`, {where}.", ""]
    lines += [
        "Medians of ratios within a round, and their quartiles; `benchmarks/speed/lowering_cpu.py` says how they are measured.",
        "The form is the fastest one of the case, or with frozen geometry what `ccrewrite.lower` takes. Tables below have all.",
        "",
    ]
    for section in report["verdicts"]:
        rows: list[dict[str, Any]] = []
        for row in section["rows"]:
            ratio, sign = row["ratio"], ">=" if section["faster"] else "<="
            shown = {
                "case": row["case"],
                "form": row["form"],
                "against": row["against"],
                "times faster" if section["faster"] else "times as long": f"{ratio['median']:.2f}",
                "quartiles": f"{ratio['q1']:.2f} to {ratio['q3']:.2f}",
            }
            if section["memory_target"] is not None:
                shown["memory, share"] = f"{row['memory']:.2f}"
            if row["target"] is not None:
                shown["target"] = f"{sign} {row['target']:g}"
                shown["reached"] = "yes" if row["reached"] else "no"
            rows.append(shown)
        lines += [f"## {section['claim']}", "", tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True), ""]
    lines += ["## Every form: milliseconds / peak MB", ""]
    for family, mode in dict.fromkeys((m["family"], m["mode"]) for m in report["measured"]):
        rows = [
            {"case": m["case"]} | {n: f"{v['ms']['median']:.2f} / {v['peak_mb']:.1f}" for n, v in m["variants"].items()}
            for m in report["measured"]
            if (m["family"], m["mode"]) == (family, mode)
        ]
        lines += [f"### {family}, {mode}", "", tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float, default=1.5, help="time for the rounds of a case")
    parser.add_argument("--only", help="cases of this family alone, e.g. shared")
    options = parser.parse_args()
    started = time.perf_counter()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    measured: list[dict[str, Any]] = []
    report: dict[str, Any] = {}
    for spec in specs(options.quick):
        if options.only not in (None, spec.family):
            continue
        measured += measure(spec, 0.2 if options.quick else options.seconds)
        print(f"{time.perf_counter() - started:.0f} s: {spec.family} {measured[-1]['case']}", file=sys.stderr, flush=True)
        report = {
            "command": "python benchmarks/speed/lowering_cpu.py",
            "date": datetime.now(UTC).date().isoformat(),
            "device": f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}, 1 thread",
            "versions": f"ccrewrite {ccrewrite.__version__}, torch {torch.__version__}, dcls {version_of('dcls')}, "
            f"Python {platform.python_version()}",
            "verdicts": verdicts(measured),
            "measured": measured,
        }
        if not options.quick and options.only is None:  # after every case: what is measured is kept
            REPORT.mkdir(parents=True, exist_ok=True)
            (REPORT / "lowering.json").write_text(json.dumps(report, separators=(",", ":")) + "\n")
            (REPORT / "lowering.md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
