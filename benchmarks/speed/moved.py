"""What geometry that has moved costs next to the plain layers: at realistic sizes, eager and folded.

    python benchmarks/speed/moved.py [--seconds 2] [--only TEXT]    # reports/cpu/moved.json and .md; resumes what is there

Single layers and whole networks (``moved_cases.py``), every geometry a normal draw of 0.3 samples. For each: inference without
gradients and a training step (forward, and backward of the mean square, to the inputs as well), over the original's; the folded
model's inference; the peak of memory of a step. One thread, thread time, rounds in random order; medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from moved_cases import CONTINUOUS, DEPTHWISE, MODELS, SHARED
from moving import ROOT, move_
from tabulate import tabulate
from torch import Tensor, nn

import ccrewrite
from ccrewrite.ir.spent import peak_memory
from ccrewrite.ir.timing import Case, Effort, time_cases

REPORT = ROOT / "reports" / "cpu"
GROUPS = {
    "DCLS, shared positions": SHARED,
    "DCLS, depthwise, own positions": DEPTHWISE,
    "CC": CONTINUOUS,
    "Networks": MODELS,
}


def inference(model: nn.Module, x: Tensor) -> Callable[[], object]:
    @torch.no_grad()
    def run() -> Tensor:
        return model(x)

    return run


def step(model: nn.Module, x: Tensor) -> Callable[[], object]:
    x = x.clone().requires_grad_()
    wanted = [x, *model.parameters()]

    def run() -> None:
        for parameter in wanted:
            parameter.grad = None
        model(x).square().mean().backward()

    return run


def ratios(runs: dict[str, Callable[[], object]], seconds: float) -> dict[str, dict[str, float]]:
    cases = {name: Case(run, nullcontext, "original") for name, run in runs.items()}
    effort = Effort(seconds, rounds=(7, 41), sample_s=0.0)
    found = time_cases(cases, effort, clock=time.thread_time)
    return {name: timing.data() for name, timing in found.items()}


def measured(build: Callable[[], tuple[nn.Module, Tensor]], seconds: float) -> dict[str, Any]:
    torch.manual_seed(0)
    original, x = build()
    original.eval()
    moved = ccrewrite.rewrite(original, x).model
    move_(moved, 0.3)
    folded = ccrewrite.fold(moved, x)
    found: dict[str, Any] = {"folded to": folded.summary()}
    runs = {"original": original, "moved": moved, "folded": folded.model}
    found["inference"] = ratios({name: inference(model, x) for name, model in runs.items()}, seconds)
    found["step"] = ratios({name: step(model, x) for name, model in list(runs.items())[:2]}, seconds)
    device = torch.device("cpu")
    peaks = {name: peak_memory(step(model, x), device) for name, model in list(runs.items())[:2]}
    found["memory"] = peaks["moved"] / max(peaks["original"], 1)
    return found


def cells(case: dict[str, Any]) -> dict[str, str]:
    return {
        "original, ms": f"{1e3 * case['inference']['original']['median_s']:.2g}",
        "eager inference": f"{case['inference']['moved']['ratio']:.2f}",
        "eager step": f"{case['step']['moved']['ratio']:.2f}",
        "memory of a step": f"{case['memory']:.2f}",
        "folded, eager": f"{case['inference']['folded']['ratio']:.2f}",
    }


def written(document: dict[str, Any]) -> str:
    lines = [
        "# What moved geometry costs",
        "",
        f"`{document['command']}` · {document['where']}",
        "",
        "Ratios to the original: medians of interleaved rounds. Memory: peaks of a training step.",
    ]
    for group, cases in GROUPS.items():
        rows = [{"": name, **cells(document["cases"][name])} for name in cases if name in document["cases"]]
        if rows:
            lines += ["", f"## {group}", "", tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each comparison")
    parser.add_argument("--only", default="", help="cases whose name holds this; measured anew")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    file = REPORT / "moved.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    where = (
        f"torch {torch.__version__}, {platform.processor() or platform.machine()} "
        f"({torch.backends.cpu.get_cpu_capability()}), one thread · {datetime.now(UTC):%Y-%m-%d}"
    )
    document: dict[str, Any] = {"command": "python benchmarks/speed/moved.py", "where": where, "cases": known.get("cases", {})}
    for cases in GROUPS.values():
        for name, case in cases.items():
            if options.only not in name or (not options.only and name in document["cases"]):
                continue
            build = case.build if hasattr(case, "build") else case
            document["cases"][name] = found = measured(build, options.seconds)
            one_line = ", ".join(f"{what} {cell}" for what, cell in cells(found).items())
            print(f"{name}: {one_line}", flush=True)
            file.write_text(json.dumps(document, separators=(",", ":")) + "\n")
            (REPORT / "moved.md").write_text(written(document))


if __name__ == "__main__":
    main()
