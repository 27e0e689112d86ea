"""How fast the forms of a DCLS convolution are on a GPU, how exact, and what Inductor makes of them.

    make gpu                                                        # all sections, under reports/gpu
    python benchmarks/speed/gpu.py --sections depthwise --minutes 9 --wheels FOLDER

Unattended and without a network: nothing is installed. PyPI ``dcls`` is compared with where it is installed, or where its wheel
lies in FOLDER. What an earlier run on the same device and versions has measured is kept and not measured again: run it until it
says that nothing is left. Times are CUDA events' around calls in a row, variants in turn; with small inputs they are those of
the launches. A case that fails is reported with its error, and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gpu_moved
import gpu_sections
import torch
from gpu_sections import Clock, Named
from tabulate import tabulate

import ccrewrite

REPORT = Path(__file__).parents[2] / "reports" / "gpu"
SECTIONS = ("checks", "depthwise", "shared", "moved", "models")


def environment(device: torch.device) -> dict[str, Any]:
    """What must be the same for measurements to be kept together."""
    found: dict[str, Any] = {
        "ccrewrite": ccrewrite.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    for package in ("triton", "dcls"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    if device.type != "cuda":
        return {"device": f"CPU {platform.machine()}", **found}
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError) as error:
        driver = f"unknown ({error})"
    name = torch.cuda.get_device_name(device)
    return {"device": name, "driver": driver, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), **found}


def add_wheel(folder: Path | None) -> str | None:
    """Make PyPI ``dcls`` importable from its wheel; returns why it isn't compared with, or None."""
    wheels = sorted(folder.glob("[dD][cC][lL][sS]-*.whl")) if folder else []
    if wheels:
        sys.path.insert(0, str(wheels[-1]))
    return None if find_spec("DCLS") else "PyPI `dcls` is neither installed nor in the folder of --wheels: not compared with."


def load(file: Path, where: dict[str, Any]) -> dict[str, Any]:
    """The report to go on with: that in ``file``, if it is of this device and these versions."""
    known = json.loads(file.read_text()) if file.exists() else {}
    return known if known.get("environment") == where else {"environment": where, "results": {}}


def run(report: dict[str, Any], section: str, cases: Named, deadline: float, save: Callable[[], None]) -> int:
    """Measure what is missing until the time is up. Returns how many cases are left."""
    results = report["results"].setdefault(section, {})
    left = 0
    for name, measure in cases:
        if name in results and "error" not in results[name]:
            continue
        if time.monotonic() > deadline:
            left += 1
            continue
        torch._dynamo.reset()
        started = time.monotonic()
        try:
            results[name] = measure()
        except Exception as error:  # one form's failure must not lose the others' measurements
            traceback.print_exc()
            results[name] = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(f"{section}: {name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        save()
    return left


def markdown(report: dict[str, Any]) -> str:
    where = ", ".join(f"{k} {v}" for k, v in report["environment"].items() if k != "device")
    lines = [
        f"# Forms on a GPU: {report['environment']['device']}",
        "",
        f"`{report['command']}`, {where}, {report['date']}.",
        "",
    ]
    rates = report["rates"]
    lines += [f"Measured: a copy moves {rates['copy'] / 1e12:.2f} TB/s (read and written); matrix products reach "]
    lines[-1] += ", ".join(f"{v / 1e12:.0f} TFLOP/s in {k}" for k, v in rates.items() if k != "copy") + "."
    lines += ["The floor is the time in which a case's inputs and outputs could be moved once, or its taps multiplied."]
    lines += [*(f"\n{note}" for note in report["notes"]), ""]
    failed = [[s, n, r["error"]] for s, rs in report["results"].items() for n, r in rs.items() if "error" in r]
    wrong = [[s, n, "inexact"] for s, rs in report["results"].items() for n, r in rs.items() if not r.get("exact", True)]
    if failed or wrong:
        lines += ["## Failed", "", table([dict(zip(("section", "case", "what"), f, strict=True)) for f in failed + wrong]), ""]
    for section, results in report["results"].items():
        shown = checked if section == "checks" else compared
        if rows := [shown(name, r) for name, r in results.items() if "error" not in r]:
            lines += [f"## {section.capitalize()}", "", table(rows), ""]
    return "\n".join(lines)


def table(rows: list[dict[str, Any]]) -> str:
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def checked(name: str, result: dict[str, Any]) -> dict[str, Any]:
    errors = {f"{k}, error": f"{v:.0e}" for k, v in result["relative_errors"].items()}
    return {"case": name, **errors, "kernels": result["kernels"], "atomics": result["atomics"]}


def compared(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """Our best form against the others; all forms' times (and peak MB)."""
    variants = result["variants"]
    ours = {n: v for n, v in variants.items() if n not in ("plain", "dcls")}
    best = min(ours, key=lambda n: ours[n]["ms"]["median"])
    row: dict[str, Any] = {"case": name, "best": best, "ms": f"{ours[best]['ms']['median']:.3f}"}
    for baseline in ("plain", "dcls"):
        ratio = ours[best]["ratios"].get(baseline)
        row[f"times {baseline}"] = f"{ratio['median']:.2f} ({ratio['q1']:.2f} to {ratio['q3']:.2f})" if ratio else ""
    row["times the floor"] = f"{ours[best]['times_floor']:.1f}" if "times_floor" in ours[best] else ""
    peaks = {n: "" if v["peak_mb"] is None else f" ({v['peak_mb']:.0f})" for n, v in variants.items()}
    row["ms (peak MB) of all"] = ", ".join(f"{n} {v['ms']['median']:.3f}{peaks[n]}" for n, v in variants.items())
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--minutes", type=float, default=9, help="start no case after so many; the rest is for the next run")
    parser.add_argument("--wheels", type=Path, help="folder with the wheel of PyPI dcls")
    parser.add_argument("--out", type=Path, default=REPORT)
    parser.add_argument("--quick", action="store_true", help="one tiny case of each kind: does it run?")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; without one: make gpu-code")
    deadline = time.monotonic() + 60 * asked.minutes
    device, clock = torch.device(asked.device), Clock(torch.device(asked.device))
    logging.disable(logging.WARNING)  # the reference says at import that it would like a CUDA extension
    missing = add_wheel(asked.wheels)
    file = asked.out / "gpu.json"
    report = load(file, environment(device))
    report |= {
        "command": "python benchmarks/speed/gpu.py",
        "date": datetime.now(UTC).date().isoformat(),
        "notes": [missing] if missing else [],
    }
    report.setdefault("rates", gpu_sections.ceilings(device, clock, asked.quick))

    def save() -> None:
        asked.out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report, separators=(",", ":")) + "\n")
        file.with_suffix(".md").write_text(markdown(report))

    timed = partial(gpu_sections.timed, device=device, clock=clock, quick=asked.quick, rates=report["rates"])
    cases: dict[str, Callable[[], Named]] = {
        "checks": lambda: gpu_sections.checks(device, asked.quick, asked.out / "source"),
        "depthwise": lambda: timed("depthwise"),
        "shared": lambda: timed("shared"),
        "moved": lambda: gpu_moved.moved(device, clock, asked.quick),
        "models": lambda: gpu_sections.models(device, clock, asked.quick),
    }
    left = sum(run(report, section, cases[section](), deadline, save) for section in asked.sections)
    print(markdown(report))
    print(f"{left} cases are left: run it again." if left else "Nothing is left.")
    results = [r for section in report["results"].values() for r in section.values()]
    return int(any("error" in r or not r.get("exact", True) for r in results))


if __name__ == "__main__":
    sys.exit(main())
