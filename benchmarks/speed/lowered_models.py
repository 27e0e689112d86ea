"""Whole models, lowered: against the original under torch.compile, and what lowering adds to the time of compiling.

    .venv-corpus/bin/python benchmarks/speed/lowered_models.py [NAME ...]    # reports/cpu/lowered_models.json and .md

For each corpus model (tests/corpus): the original compiled; the rewritten model lowered for inference, unmoved and with every
geometry moved at random; for three of them a training step (forward and backward of the sum of squares) of the original
compiled and of the moved model lowered for training, forms by estimate. One thread, thread time, interleaved rounds; ratios are
medians over the rounds with quartiles. Compile time: fifty dilated convolutions, bare and each followed by a batch norm and a
ReLU, without Inductor's caches; processor time, compilers included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from moving import ROOT, move_
from rounds import Rounds, ratios, timed
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import ccrewrite
from ccrewrite.ir import typed

REPORT = ROOT / "reports" / "cpu"
TRAINED = ("hf_mobilenetv2_deeplab", "pcv_erfnet", "tcn_causal")
ROUNDS = 15
SITES = 50
KINDS = {"bare": "bare", "followed": "each with a batch norm and a ReLU"}


def table_of(times: Rounds, over: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name, values in times.items():
        q1, median, q3 = statistics.quantiles(ratios(times, name, over), n=4)
        found[name] = {"ms": 1e3 * statistics.median(values), "ratio": median, "q1": q1, "q3": q3}
    return found


def run(model: nn.Module, inputs: tuple[Any, ...]) -> Callable[[], object]:
    @torch.no_grad()
    def forward() -> None:
        model(*inputs)

    return forward


def step(model: nn.Module, inputs: tuple[Any, ...]) -> Callable[[], object]:
    def both() -> None:
        outputs = [o for o in tree_leaves(model(*inputs)) if isinstance(o, Tensor) and o.requires_grad]
        torch.stack([o.square().sum() for o in outputs]).sum().backward()

    return both


def measured(name: str) -> dict[str, Any]:
    from corpus.models import build

    model, inputs = build(name)
    rewritten, moved = (ccrewrite.rewrite(model, inputs).model for _ in range(2))
    move_(moved)
    torch._dynamo.reset()
    runs = {
        "original": run(typed.compiled(model), inputs),
        "unmoved": run(ccrewrite.lower(rewritten, inputs).model, inputs),
        "moved": run(ccrewrite.lower(moved, inputs).model, inputs),
    }
    found: dict[str, Any] = {"name": name, "inference": table_of(timed(runs, ROUNDS), "original")}
    if name in TRAINED:
        torch._dynamo.reset()
        lowered = ccrewrite.lower(moved, inputs, mode="training", measured=False)
        steps = {"original": step(typed.compiled(model), inputs), "moved": step(lowered.model, inputs)}
        found["training"] = table_of(timed(steps, ROUNDS), "original")
    return found


def compile_times() -> dict[str, float]:
    """Seconds of the first step of ``SITES`` dilated convolutions of two shapes, in turn, the faster of two each."""
    x = torch.randn(1, 16, 17, 17)
    best: dict[str, float] = {}
    for kind in KINDS:
        convolutions = [nn.Conv2d(16, 16, 3, dilation=d, padding=d) for d in (2, 3) * (SITES // 2)]
        followed = [nn.Sequential(c, nn.BatchNorm2d(16), nn.ReLU()) for c in convolutions]
        model = nn.Sequential(*(convolutions if kind == "bare" else followed))
        rewritten = ccrewrite.rewrite(model, x).model
        makers: dict[str, Callable[[], nn.Module]] = {
            "original, training": lambda m=model: typed.compiled(m.train()),
            "lowered, training": lambda m=rewritten: (
                ccrewrite.lower(m.train(), x, mode="training", measured=False, verify=False).model
            ),
            "original, inference": lambda m=model: torch.compile(m.eval()),  # pyright: ignore[reportAssignmentType]
            "lowered, inference": lambda m=rewritten: ccrewrite.lower(m.eval(), x, verify=False).model,
        }
        for _ in range(2):
            for name, make in makers.items():
                torch._dynamo.reset()
                start = processor_seconds()
                compiled = make()
                (step if "training" in name else run)(compiled, (x,))()
                what = f"{kind}, {name}"
                best[what] = min(best.get(what, float("inf")), processor_seconds() - start)
    return best


def processor_seconds() -> float:
    """Of this process and of those that it has waited for: the C++ compiler."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def written(results: list[dict[str, Any]], compiled: dict[str, float], command: str) -> str:
    def cell(entry: dict[str, float]) -> str:
        return f"{entry['ratio']:.2f} ({entry['q1']:.2f} to {entry['q3']:.2f})"

    rows = [
        {
            "model": r["name"],
            "original, ms": f"{r['inference']['original']['ms']:.1f}",
            "unmoved": cell(r["inference"]["unmoved"]),
            "moved": cell(r["inference"]["moved"]),
            "training step, original, ms": f"{r['training']['original']['ms']:.1f}" if "training" in r else "",
            "training step, moved": cell(r["training"]["moved"]) if "training" in r else "",
        }
        for r in results
    ]
    times = [
        {
            "first step of": f"{SITES} dilated convolutions, {KINDS[kind]}, {mode}",
            "original, s": f"{compiled[f'{kind}, original, {mode}']:.1f}",
            "lowered, s": f"{compiled[f'{kind}, lowered, {mode}']:.1f}",
            "ratio": f"{compiled[f'{kind}, lowered, {mode}'] / compiled[f'{kind}, original, {mode}']:.2f}",
        }
        for kind in KINDS
        for mode in ("training", "inference")
    ]
    return "\n".join(
        [
            "# Whole models, lowered",
            "",
            f"`{command}` · torch {torch.__version__}, {platform.processor() or platform.machine()}, one thread · "
            f"{datetime.now(UTC):%Y-%m-%d}",
            "",
            'Ratios to the original under torch.compile: median (quartiles) of interleaved rounds. "Unmoved": rewritten, not '
            'fine-tuned, `ccrewrite.lower` for inference (target <= 1.05). "Moved": every position, shift and residual moved '
            "at random (target <= 1.5 for the DeepLab and ERFNet). Training: forms by estimate.",
            "",
            tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True),
            "",
            "Compile time (processor time, the C++ compiler's included, first step, Inductor's caches off; target <= 1.3):",
            "",
            tabulate(times, headers="keys", tablefmt="github", disable_numparse=True),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="corpus models; none: all of them")
    parser.add_argument("--out", type=Path, default=REPORT)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(ROOT / "tests"))
    torch.set_num_threads(1)
    import torch._inductor.config as inductor

    inductor.compile_threads = 1
    torch._dynamo.config.recompile_limit = 64  # a model whose parts are compiled one by one, times its variants
    from corpus.models import MODELS

    command = " ".join(["python benchmarks/speed/lowered_models.py", *options.names])
    inductor.force_disable_caches = True
    compiled = compile_times()
    print(json.dumps(compiled), flush=True)
    inductor.force_disable_caches = False
    options.out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    for name in options.names or MODELS:
        torch.manual_seed(0)
        results.append(measured(name))
        print(json.dumps(results[-1]), flush=True)
        # After every model: what is measured is kept.
        (options.out / "lowered_models.json").write_text(
            json.dumps({"models": results, "compile_s": compiled}, separators=(",", ":")) + "\n"
        )
        (options.out / "lowered_models.md").write_text(written(results, compiled, command))


if __name__ == "__main__":
    main()
