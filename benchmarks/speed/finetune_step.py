"""What a step of fine-tuning costs: the rewritten model's over the original's, eager and compiled.

    .venv-corpus/bin/python benchmarks/speed/finetune_step.py    # reports/cpu/finetune_step.json and .md

For the DeepLab and the ERFNet of the corpus (tests/corpus): a whole step (forward, backward of the mean square, AdamW of
``param_groups``), of the original and of the rewritten model with every geometry moved at random, eager; of the original under
torch.compile, and of the moved model lowered for training, forms by estimate, as ``FinetuneConfig(compile=True)`` does. With
the corpus's own inputs (one image, norms as in evaluation, since one image has no batch statistics), and, eager alone, with
eight images in training mode. One thread, thread time, interleaved rounds; ratios are medians over the rounds with quartiles.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lowered_models import REPORT, ROUNDS, table_of
from moving import ROOT, move_
from rounds import timed
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import ccrewrite
from ccrewrite.training import param_groups

NAMES = ("hf_mobilenetv2_deeplab", "pcv_erfnet")
EAGER, COMPILED = ("original", "rewritten"), ("original compiled", "lowered")
CASES = ((1, (*EAGER, *COMPILED)), (8, EAGER))
"""Images, and what is measured with them."""
WANTED = 1.5


def step(model: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    optimizer = torch.optim.AdamW(param_groups(model, lr=1e-4))

    def whole() -> None:
        outputs = [o for o in tree_leaves(model(*inputs)) if isinstance(o, Tensor) and o.requires_grad]
        torch.stack([o.square().mean() for o in outputs]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return whole


def measured(name: str, batch: int, variants: tuple[str, ...]) -> dict[str, Any]:
    from corpus.models import build

    steps: dict[str, Callable[[], object]] = {}
    torch._dynamo.reset()
    for variant in variants:  # each its own model, for a step changes it
        model: Any
        model, inputs = build(name)
        if variant in ("rewritten", "lowered"):
            model = ccrewrite.rewrite(model, inputs).model
            move_(model)
        inputs = tuple(torch.randn(batch, *x.shape[1:]) for x in inputs)
        model.train(batch > 1)
        if variant == "original compiled":
            model = torch.compile(model)
        if variant == "lowered":
            model = ccrewrite.lower(model, inputs, mode="training", measured=False).model
        steps[variant] = step(model, inputs)
    times = timed(steps, ROUNDS)
    firsts = [f for f in ("original", "original compiled") if f in variants]
    return {"name": name, "batch": batch} | {f"to {first}": table_of(times, first) for first in firsts}


def written(results: list[dict[str, Any]], command: str) -> str:
    def cell(result: dict[str, Any], variant: str, over: str) -> str:
        entry = result.get(f"to {over}", {}).get(variant)
        return f"{entry['ratio']:.2f} ({entry['q1']:.2f} to {entry['q3']:.2f})" if entry else ""

    rows = [
        {
            "model": r["name"],
            "images": r["batch"],
            "original, ms": f"{r['to original']['original']['ms']:.0f}",
            "rewritten / original": cell(r, "rewritten", "original"),
            "lowered / compiled": cell(r, "lowered", "original compiled"),
            "lowered / original": cell(r, "lowered", "original"),
            "compiled / original": cell(r, "original compiled", "original"),
        }
        for r in results
    ]
    return "\n".join(
        [
            "# What a step of fine-tuning costs",
            "",
            f"`{command}` · torch {torch.__version__}, {platform.processor() or platform.machine()}, one thread · "
            f"{datetime.now(UTC):%Y-%m-%d}",
            "",
            "Forward, backward and AdamW. Ratios: median (quartiles) of interleaved rounds; "
            f'target <= {WANTED}. "Rewritten / original": both eager, what `finetune` does by default. "Lowered / compiled": '
            "the original under torch.compile, the rewritten model as with `compile=True`. One image: the corpus's inputs.",
            "",
            tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPORT)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(ROOT / "tests"))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    import torch._inductor.config as inductor

    inductor.compile_threads = 1
    torch._dynamo.config.recompile_limit = 64
    results: list[dict[str, Any]] = []
    for name in NAMES:
        for batch, variants in CASES:
            results.append(measured(name, batch, variants))
            print(json.dumps(results[-1]), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    command = "python benchmarks/speed/finetune_step.py"
    (options.out / "finetune_step.md").write_text(text := written(results, command))
    (options.out / "finetune_step.json").write_text(
        json.dumps({"command": command, "results": results}, separators=(",", ":")) + "\n"
    )
    print(text)


if __name__ == "__main__":
    main()
