"""Whether a rewritten model that nothing moved costs, once folded, what the original costs: in eager mode and in onnxruntime.

    python benchmarks/deploy/deploy_latency.py           # the small models of tests/deploy: reports/deploy/latency.json and .md
    .venv-corpus/bin/python benchmarks/deploy/deploy_latency.py --corpus      # and the fifteen corpus models

One thread, no gradients; time is that thread's own (CPU time): what other processes take is not in it, but for cache and clock
rate. The same code runs either way, so what differs is noise, such as where a copy's memory happens to lie. So every block
times fresh copies (and sessions), made in random order and interleaved in short rounds; a block's ratio is the median over its
rounds; reported are median and quartiles over the blocks. "Control" is the same for a second copy of the original: what this
machine can tell apart.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from tabulate import tabulate
from torch import nn

import ccrewrite
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.timing import Case, Effort, time_cases

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
REPORT = ROOT / "reports" / "deploy"
LIMITS = 0.98, 1.02


def models(corpus: bool) -> dict[str, Callable[[], tuple[nn.Module, Any]]]:
    """Name -> original and example inputs."""
    from deploy.models import CASES, original

    found: dict[str, Any] = {
        n: lambda case=c: original(case) for n, c in CASES.items() if c.moved and not c.settings and "onnx" in c.kinds
    }
    if corpus:
        from corpus.models import MODELS, build

        found |= {n: lambda name=n: build(name) for n in MODELS}
    return found


def session(model: nn.Module, inputs: Inputs) -> Callable[[], Callable[[], object]]:
    """Makes sessions of the exported model, each with its feeds."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as directory:
        ccrewrite.export_onnx(model, f"{directory}/model.onnx", inputs)
        file = Path(directory, "model.onnx").read_bytes()
    tensors = [t.numpy() for t in inputs.tensors()]

    def made() -> Callable[[], object]:
        one = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        feeds = {i.name: np.array(t) for i, t in zip(one.get_inputs(), tensors, strict=True)}
        return lambda: one.run(None, feeds)

    return made


def measure(original: nn.Module, example: Any, blocks: int, effort: Effort) -> dict[str, Any]:
    """By runtime: milliseconds of the original, and the ratios of the others to it."""
    inputs = Inputs.of(example)
    rewritten = ccrewrite.rewrite(original, inputs).model
    folded = ccrewrite.fold(rewritten, inputs).model
    modules = {"original": original, "control": original, "folded": folded}
    makers: dict[str, dict[str, Callable[[], Callable[[], object]]]] = {
        "eager": {n: _eager(m, inputs) for n, m in modules.items()}
    }
    try:
        plain = session(original, inputs)
    except ccrewrite.CcrewriteError:  # what can't be exported as the original either
        plain = None
    if plain is not None:
        makers["onnxruntime"] = {"original": plain, "control": plain, "folded": session(rewritten, inputs)}
    return {runtime: _ratios(made, blocks, effort) for runtime, made in makers.items()}


def _eager(model: nn.Module, inputs: Inputs) -> Callable[[], Callable[[], object]]:
    def made() -> Callable[[], object]:
        mine = copy.deepcopy(model)
        return lambda: inputs.run(mine)

    return made


def _ratios(makers: Mapping[str, Callable[[], Callable[[], object]]], blocks: int, effort: Effort) -> dict[str, Any]:
    taken: dict[str, list[float]] = {name: [] for name in makers}
    seconds: list[float] = []
    for block in range(blocks):
        order = random.Random(block).sample(list(makers), len(makers))  # the first is not always the same one
        cases = {name: Case(makers[name](), nullcontext, "original") for name in order}
        for case in cases.values():
            for _ in range(5):
                case.run()
        timings = time_cases(cases, effort, seed=block, clock=time.thread_time)
        seconds.append(timings["original"].median_s)
        for name, timing in timings.items():
            taken[name].append(timing.ratio)
    result: dict[str, Any] = {"ms": 1e3 * statistics.median(seconds)}
    for name in ("control", "folded"):
        low, middle, high = statistics.quantiles(taken[name], n=4, method="inclusive")
        result[name] = {"ratio": middle, "quartiles": [low, high]}
    return result


def table(report: dict[str, Any]) -> str:
    def shown(value: dict[str, Any]) -> str:
        return "{:.3f} ({:.3f} to {:.3f})".format(value["ratio"], *value["quartiles"])

    rows = [
        [name, runtime, f"{v['ms']:.2f}", shown(v["control"]), shown(v["folded"])]
        for name, runtimes in report["results"].items()
        for runtime, v in runtimes.items()
    ]
    outside = [f"{r[0]} in {r[1]}" for r in rows if not LIMITS[0] <= float(r[4].split()[0]) <= LIMITS[1]]
    versions = ", ".join(f"{n} {v}" for n, v in report["versions"].items())
    return (
        "# What folding leaves of an unmoved model's cost\n\n"
        f"`{report['command']}`, {report['date']}, {report['device']}, CPU time of one thread; {versions}. Ratio to the "
        f"original: median and quartiles of {report['blocks']} blocks of {report['rounds']} rounds.\n\n"
        + tabulate(rows, headers=["model", "in", "original, ms", "control", "folded"], tablefmt="github", disable_numparse=True)
        + f"\n\n{len(rows) - len(outside)} of {len(rows)} between {LIMITS[0]} and {LIMITS[1]}"
        + (f"; not {', '.join(outside)}" if outside else "")
        + ".\n"
    )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", action="store_true", help="the corpus models too")
    parser.add_argument("--blocks", type=int, default=21)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # the models' own
    effort = Effort(seconds=0, rounds=(arguments.rounds, arguments.rounds), sample_s=0.003)
    results: dict[str, Any] = {}
    for name, build in models(arguments.corpus).items():
        results[name] = measure(*build(), arguments.blocks, effort)
        print(name, {runtime: f"{v['folded']['ratio']:.3f}" for runtime, v in results[name].items()}, flush=True)
    report = {
        "command": "python benchmarks/deploy/deploy_latency.py" + (" --corpus" if arguments.corpus else ""),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}",
        "versions": {n: version(n) for n in ("torch", "onnxruntime")} | {"Python": platform.python_version()},
        "blocks": arguments.blocks,
        "rounds": arguments.rounds,
        "results": results,
    }
    REPORT.mkdir(parents=True, exist_ok=True)
    (REPORT / "latency.json").write_text(json.dumps(report, separators=(",", ":")) + "\n")
    (REPORT / "latency.md").write_text(table(report))
    print(table(report))


if __name__ == "__main__":
    main()
