"""What ``ccrewrite.rewrite`` costs: against capture alone, with the number of sites, and in memory.

    python benchmarks/speed/rewrite_cost.py            # writes reports/cpu/rewrite_cost.json and .md

Interleaved in one process after a warm-up, one thread, median and interquartile range. Peak memory is the growth of the
process's resident set over the copy of the model, each case in a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rounds import ratios, timed
from tabulate import tabulate
from torch import nn

import ccrewrite
from ccrewrite.ir.capture import capture
from ccrewrite.passes.substitute import copied

REPORT = Path(__file__).parents[2] / "reports" / "cpu"


def network(convolutions: int, channels: int = 8) -> nn.Sequential:
    """Convolutions with batch norms, every fourth one dilated, every 50th strided."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i in range(convolutions):
        dilation, stride = (2 if i % 4 == 0 else 1), (2 if i % 50 == 49 and i < 150 else 1)
        layers += [nn.Conv2d(channels, channels, 3, stride, dilation, dilation), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers).eval()


@contextmanager
def collected() -> Generator[None]:
    """An exported graph is full of cycles: nobody pays for the garbage of the case before."""
    gc.collect()
    yield


def spread(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": median, "q1": low, "q3": high}


def times(rounds: int) -> dict[str, Any]:
    """Capture and rewrite of 100 and 1,000 convolutions, interleaved."""
    x = torch.randn(1, 8, 64, 64)
    models = {n: network(n) for n in (100, 1000)}
    cases: dict[str, Callable[[], object]] = {}
    for n, model in models.items():
        cases[f"capture {n}"] = lambda m=model: capture(m, x)
        cases[f"rewrite {n}"] = lambda m=model: ccrewrite.rewrite(m, x, verify=False)
    measured = timed(cases, rounds, clock=time.perf_counter, context=collected)
    found = {f"rewrite / capture, {n} convolutions": ratios(measured, f"rewrite {n}", f"capture {n}") for n in models}
    found["time per convolution, 1000 / 100"] = [r / 10 for r in ratios(measured, "rewrite 1000", "rewrite 100")]
    return {"seconds": {k: spread(v) for k, v in measured.items()}, "ratios": {k: spread(v) for k, v in found.items()}}


def peak_megabytes(what: str) -> float:
    """Growth of the peak resident set over a process that has just the model (about 470 MB of weights), after a warm-up."""
    here = str(Path(__file__).parent)
    script = f"import sys; sys.path.insert(0, {here!r}); import rewrite_cost; rewrite_cost.measure_peak({what!r})"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return float(done.stdout)


def measure_peak(what: str) -> None:
    torch.set_num_threads(1)
    x = torch.randn(1, 8, 64, 64)
    ccrewrite.rewrite(network(8), x)  # whatever is loaded and cached on first use
    device, width = ("meta", 16384) if what == "meta" else ("cpu", 1024)
    with torch.device(device):
        wide = torch.randn(1, width, 4, 4)
        layers = [nn.Conv2d(width, width, 3, padding=d, dilation=d) for d in (1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1)]
    model = nn.Sequential(*layers).eval()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = copied(model) if what == "copy" else ccrewrite.rewrite(model, wide, verify=what == "verified rewrite")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    del kept
    print((after - before) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {
        "command": "make bench",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}",
        "threads": 1,
        "rounds": arguments.rounds,
        "versions": {"ccrewrite": ccrewrite.__version__, "torch": torch.__version__, "python": platform.python_version()},
        **times(arguments.rounds),
    }
    copy, quiet, verified, meta = (peak_megabytes(what) for what in ("copy", "rewrite", "verified rewrite", "meta"))
    weights = 13 * (1024 * 1024 * 9 + 1024) * 4 / 2**20
    report["megabytes"] = {
        "weights of the model": weights,
        "peak growth: the copy alone": copy,
        "peak growth: rewrite without verification": quiet,
        "peak growth: rewrite": verified,
        "above the original and its copy, without verification, share": (quiet - copy) / (2 * weights),
        "above the original and its copy, share": (verified - copy) / (2 * weights),
        "peak growth: rewrite of 117 GB of weights on the meta device": meta,
    }
    REPORT.mkdir(parents=True, exist_ok=True)
    (REPORT / "rewrite_cost.json").write_text(json.dumps(report, separators=(",", ":")) + "\n")
    rows = [[k, f"{v['median']:.3f}", f"{v['q1']:.3f} to {v['q3']:.3f}"] for k, v in report["ratios"].items()]
    rows += [[f"{k} (s)", f"{v['median']:.3f}", f"{v['q1']:.3f} to {v['q3']:.3f}"] for k, v in report["seconds"].items()]
    rows += [[k if "share" in k else f"{k} (MB)", f"{v:.3f}", ""] for k, v in report["megabytes"].items()]
    heading = (
        f"# What rewriting costs\n\n`make bench`, {report['date']}, {report['device']}, one thread, "
        f"torch {torch.__version__}, Python {platform.python_version()}, {arguments.rounds} rounds.\n\n"
    )
    table = tabulate(rows, headers=["quantity", "median", "interquartile range"], tablefmt="github", disable_numparse=True)
    (REPORT / "rewrite_cost.md").write_text(heading + table + "\n")
    print(table)


if __name__ == "__main__":
    main()
