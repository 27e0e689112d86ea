"""What comparing gradients costs in ``rewrite``: time over the original's forward, and peak memory beside a training step's.

    .venv-corpus/bin/python benchmarks/speed/verification_cost.py    # writes reports/cpu/verification_cost.json and .md

One thread. Times are of the thread, interleaved, medians; peaks are the growth of the process's resident set, each in a process
of its own.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from moved_cases import MODELS
from moved_corpus import resnet18
from rounds import timed
from tabulate import tabulate
from torch import nn

import ccrewrite
from ccrewrite.ir.capture import Inputs
from ccrewrite.passes.gradients import Reference
from ccrewrite.passes.substitute import copied

REPORT = Path(__file__).parents[2] / "reports" / "cpu"
ROUNDS = 5
CASES = {
    "ResNet-18, 224x224": resnet18,
    "WaveNet, 64 -> 128 channels, 4000 samples": MODELS["WaveNet, 64 -> 128 channels, 4000 samples"],
    "U-Net 2-d, 32 to 256 channels, 128x128": MODELS["U-Net 2-d, 32 to 256 channels, 128x128"],
}


def made(name: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model, x = CASES[name]()
    return model.eval(), x


def step(model: nn.Module, x: Any) -> None:
    model(x).sum().backward()
    model.zero_grad()


def times(name: str) -> dict[str, float]:
    """Seconds: a forward without gradients, a training step, and what ``rewrite`` does to compare gradients."""
    model, x = made(name)
    result, inputs = ccrewrite.rewrite(model, x), Inputs.of(x)
    samplings = {n: m for n, m in result.model.named_modules() if isinstance(m, ccrewrite.Sampling)}

    @torch.no_grad()
    def forward() -> None:
        model(x)

    def compare() -> None:
        fault = Reference(model, inputs, lambda: copied(model)).failure(result.model, samplings)
        assert not fault, fault

    found = timed({"forward": forward, "step": lambda: step(model, x), "compare": compare}, ROUNDS)
    return {what: statistics.median(seconds) for what, seconds in found.items()}


def peak(name: str, what: str) -> float:
    here = str(Path(__file__).parent)
    script = (
        f"import sys; sys.path.insert(0, {here!r}); import verification_cost; verification_cost.measure({name!r}, {what!r})"
    )
    return float(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout)


def measure(name: str, what: str) -> None:
    """Print the megabytes by which the process grows, once whatever is loaded on first use is there."""
    torch.set_num_threads(1)
    small = nn.Sequential(nn.Conv2d(2, 2, 3, 2), nn.Conv2d(2, 2, 3, dilation=2)).eval()
    ccrewrite.rewrite(small, torch.randn(1, 2, 16, 16))
    model, x = made(name)
    before = _peak()
    if what == "step":
        step(model, x)
    else:
        ccrewrite.rewrite(model, x, verify=True if what == "gradients" else "outputs")
    print((_peak() - before) / 1024)


def _peak() -> int:
    """Kilobytes, of this process alone: what ``resource`` tells begins with the peak of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in CASES:
        seconds = times(name)
        weights = sum(p.numel() * p.element_size() for p in made(name)[0].parameters()) / 2**20
        peaks = {what: peak(name, what) for what in ("step", "outputs", "gradients")}
        rows.append(
            {
                "network": name,
                "forward (ms)": 1e3 * seconds["forward"],
                "training step / forward": seconds["step"] / seconds["forward"],
                "comparing gradients / forward": seconds["compare"] / seconds["forward"],
                "weights (MB)": weights,
                "peak, training step (MB)": peaks["step"],
                'peak, rewrite(verify="outputs") (MB)': peaks["outputs"],
                "peak, rewrite (MB)": peaks["gradients"],
            }
        )
        print(json.dumps(rows[-1]))
    device = f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}"
    date, command = datetime.now(UTC).strftime("%Y-%m-%d"), "python benchmarks/speed/verification_cost.py"
    report = {"command": command, "date": date, "device": device, "torch": torch.__version__, "rounds": ROUNDS, "rows": rows}
    (REPORT / "verification_cost.json").write_text(json.dumps(report, separators=(",", ":")) + "\n")
    heading = f"# What comparing gradients costs\n\n`{command}`, {date}, {device}, one thread, torch {torch.__version__}.\n\n"
    table = tabulate(rows, headers="keys", tablefmt="github", floatfmt=".1f")
    (REPORT / "verification_cost.md").write_text(heading + table + "\n")


if __name__ == "__main__":
    main()
