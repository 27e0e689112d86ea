"""Building DCLS kernels, forward and backward: this package against the reference (PyPI ``dcls``), in one run.

    python benchmarks/speed/dcls_construction.py       # writes reports/dcls/construction.json and .md

ConvNeXt-T's four depthwise shapes with 34 elements in a 17 x 17 window, each of the reference's versions; and what is kept for
the backward, there and for a dense layer. One thread, float32, interleaved after a warm-up, medians of
processor time.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import DCLS.construct.modules as reference  # pyright: ignore[reportMissingImports]
import torch
from tabulate import tabulate
from torch import Tensor

from ccrewrite.families.dcls.checkpoints import INTERPOLATION_OF, convert_dcls_checkpoint
from ccrewrite.ir.timing import Case, Effort, samples
from ccrewrite.nn import DclsConv2d

REPORT = Path(__file__).parents[2] / "reports" / "dcls"
CHANNELS = (96, 192, 384, 768)
COLUMNS = {
    "channels": "channels",
    "version": "version",
    "reference_ms": "dcls ms",
    "ccrewrite_ms": "ccrewrite ms",
    "faster": "times faster",
    "reference_kept_mb": "dcls kept MB",
    "ccrewrite_kept_mb": "ccrewrite kept MB",
    "less_kept": "times less kept",
    "relative_error": "kernels differ",
}
Build = Callable[[], Tensor]


def pair(version: str, channels: int, groups: int, elements: int, window: int) -> tuple[tuple[Build, list[Tensor]], ...]:
    """(kernel builder, its parameters) of the reference and of this package, on the same values."""
    torch.manual_seed(0)
    old = reference.Dcls2d(channels, channels, elements, dilated_kernel_size=window, groups=groups, version=version)
    kind = INTERPOLATION_OF[version]
    new = DclsConv2d(channels, channels, groups=groups, elements=elements, window=window, interpolation=kind, sharing="full")
    new.load_state_dict(convert_dcls_checkpoint(old.state_dict(), version=version, window=window))
    theirs = [p for p in (old.weight, old.P, old.SIG) if p is not None]
    ours = [new.weight, *new.sampling.parameters()]
    return (lambda: old.DCK(old.weight, old.P, old.SIG), theirs), (lambda: new.sampling.kernel(new.weight), ours)


def kept_for_backward(build: Build) -> int:
    """Bytes of all distinct tensors that the graph of one call holds."""
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        kernel = build()
    assert kernel.requires_grad
    return sum(found.values())


@contextmanager
def warmed(run: Callable[[], object]) -> Generator[None]:
    """The first call of a turn pays for memory that the other side made the allocator give back."""
    run()
    yield


def case(version: str, channels: int, rounds: int) -> dict[str, Any]:
    sides = pair(version, channels, channels, 34, 17)
    kernels = [build() for build, _ in sides]
    gradient = torch.randn_like(kernels[0])
    error = float((kernels[0] - kernels[1]).detach().abs().max() / kernels[0].detach().abs().max())

    def run(build: Build, parameters: list[Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(build(), parameters, gradient)

    runs = {name: run(*side) for name, side in zip(("theirs", "ours"), sides, strict=True)}
    cases = {name: Case(run, partial(warmed, run), name) for name, run in runs.items()}
    times = samples(cases, Effort(0.0, (3 * rounds, 3 * rounds), 0.0), clock=time.process_time)
    theirs, ours = (1e3 * statistics.median(times[name]) for name in runs)
    kept = [kept_for_backward(build) for build, _ in sides]
    return {
        "version": version,
        "channels": channels,
        "reference_ms": theirs,
        "ccrewrite_ms": ours,
        "faster": theirs / ours,
        "reference_kept_mb": kept[0] / 1e6,
        "ccrewrite_kept_mb": kept[1] / 1e6,
        "less_kept": kept[0] / kept[1],
        "relative_error": error,
    }


def dense(version: str) -> dict[str, Any]:
    kept = [kept_for_backward(build) / 1e6 for build, _ in pair(version, 256, 1, 9, 7)]
    return {"version": version, "reference_kept_mb": kept[0], "ccrewrite_kept_mb": kept[1]}


def markdown(report: dict[str, Any]) -> str:
    rows = [[c[k] for k in COLUMNS] for c in report["depthwise"]]
    formats = ("d", "", ".1f", ".2f", ".1f", ".0f", ".2f", ".0f", ".0e")
    wide = [[d["version"], f"{d['reference_kept_mb']:.0f}", f"{d['ccrewrite_kept_mb']:.0f}"] for d in report["dense"]]
    return "\n".join(
        [
            "# DCLS kernels: construction, forward and backward",
            "",
            f"`python benchmarks/speed/dcls_construction.py`, {report['device']}, {report['versions']}, {report['date']}.",
            "",
            "Depthwise, 34 elements in a 17 x 17 window (ConvNeXt-T's four stages); medians of processor time.",
            "",
            tabulate(rows, headers=[*COLUMNS.values()], tablefmt="github", floatfmt=formats),
            "",
            "`DclsConv2d(256, 256, elements=9, window=7, sharing='full')`: kept for the backward, MB.",
            "",
            tabulate(wide, headers=["version", "dcls", "ccrewrite"], tablefmt="github"),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    report: dict[str, Any] = {
        "device": f"CPU {platform.machine()}, 1 thread",
        "versions": f"torch {torch.__version__}, dcls {version_of('dcls')}, Python {platform.python_version()}",
        "date": datetime.now(UTC).date().isoformat(),
        "depthwise": [case(v, c, rounds) for c in CHANNELS for v in INTERPOLATION_OF],
        "dense": [dense(v) for v in INTERPOLATION_OF],
    }
    REPORT.mkdir(parents=True, exist_ok=True)
    (REPORT / "construction.json").write_text(json.dumps(report, separators=(",", ":")) + "\n")
    (REPORT / "construction.md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
