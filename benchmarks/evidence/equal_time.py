"""The claims of the evidence lane at equal time: the untouched network trains on for as long as the rewritten one takes.

    python benchmarks/evidence/equal_time.py --work build/equal_time     # goes on where it was stopped

At equal steps a rewritten network takes longer. Here the untouched one gets as many more steps as a step of the rewritten one
takes longer: both timed in turn, in processor time of this thread alone, so that what else the machine does counts little.
Learning rates are those that the reports found. Results are added to ``runs.jsonl`` of the folder, a line for each seed.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import classification
import denoising
import segmentation
import sequences
import torch
import unet
from common import REPORTS, Claim, fit, original, tuned
from torch import nn

from ccrewrite.ir.timing import Case, Effort, time_cases

CLAIMS = (*sequences.CLAIMS, classification.CLAIM, segmentation.CLAIM, denoising.CLAIM, unet.CLAIM)
ROUNDS, STEPS = 7, 5


def arm_of(claim: Claim) -> str:
    """The rewritten arm: the one after the untouched."""
    return list(claim.arms)[1]


def rates(claim: Claim) -> dict[str, float]:
    """Of each arm, as the committed report found them."""
    for file in REPORTS.glob("*.json"):
        for result in json.loads(file.read_text()).get("results", ()):
            if result.get("claim") == claim.name:
                return result["rates"]
    raise SystemExit(f"no report has the claim {claim.name}")


def step_of(claim: Claim, model: nn.Module) -> Callable[[], object]:
    """One training step, which changes nothing: its learning rate is 0."""
    random = torch.Generator().manual_seed(0)
    batches = [claim.batch(random, False) for _ in range(STEPS)]
    optimizer = torch.optim.AdamW(model.parameters(), 0.0)
    state = {"at": 0}

    def step() -> None:
        x, y = batches[state["at"] % STEPS]
        state["at"] += 1
        loss = claim.loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def slower(claim: Claim, trained: nn.Module) -> float:
    """How many times a step of the untouched network one of the rewritten network takes, its geometry off the start."""
    models = [claim.arms[arm](copy.deepcopy(trained)).train() for arm in list(claim.arms)[:2]]
    fit(claim, models[1], 0, 2, rates(claim)[arm_of(claim)], False)
    steps = [step_of(claim, model) for model in models]
    cases = {str(n): Case(lambda s=s: [s() for _ in range(STEPS)], nullcontext, "0") for n, s in enumerate(steps)}
    return time_cases(cases, Effort(0.0, (ROUNDS, ROUNDS), 0.0), clock=time.thread_time)["1"].ratio


def trained_network(claim: Claim, seed: int, work: Path) -> nn.Module:
    """The original of this seed; trained once, then read from ``work``."""
    file = work / "originals" / f"{claim.name.replace(' ', '_').replace(',', '')}-{seed}.pt"
    if file.exists():
        model = claim.network()
        model.load_state_dict(torch.load(file, weights_only=True))
        return model.eval()
    model = original(claim, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    torch.save(model.state_dict(), part)
    part.rename(file)
    return model


class Lines:
    """A file of JSON lines that is only added to."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter([json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else [])

    def add(self, **entry: Any) -> None:
        with self.file.open("a") as out:
            out.write(json.dumps(entry) + "\n")
        print(json.dumps(entry), flush=True)


def one(claim: Claim, seed: int, work: Path, ratio: float) -> dict[str, Any]:
    """Scores of both arms at equal time, for one seed."""
    trained, found = trained_network(claim, seed, work), rates(claim)
    arm = arm_of(claim)
    longer = replace(claim, tune_steps=round(claim.tune_steps * ratio))
    untouched = tuned(longer, "untouched", trained, seed, found["untouched"], "test")
    rewritten = tuned(claim, arm, trained, seed, found[arm], "test")
    steps = {"untouched": longer.tune_steps, "rewritten": claim.tune_steps}
    return {"steps": steps, "untouched": untouched, "rewritten": rewritten}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/equal_time"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lines = Lines(asked.work / "runs.jsonl")
    for seed in range(asked.seeds):
        for claim in CLAIMS:
            if asked.only not in claim.name or any((e["claim"], e["seed"]) == (claim.name, seed) for e in lines):
                continue
            ratio = next((e["ratio"] for e in lines if e["claim"] == claim.name), None)
            ratio = slower(claim, trained_network(claim, seed, asked.work)) if ratio is None else ratio
            lines.add(claim=claim.name, seed=seed, ratio=ratio, **one(claim, seed, asked.work, ratio))


if __name__ == "__main__":
    main()
