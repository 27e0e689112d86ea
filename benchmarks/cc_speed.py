"""What a CC layer costs, next to the plain layer: at its native size, and at others.

    python benchmarks/cc_speed.py                # writes reports/cc/speed.json and .md; about a minute

One thread, no gradients, batch 4, interleaved in one process after a warm-up; medians over rounds of the ratio within a round.
"Interpolated" is ``F.interpolate`` (bicubic, antialiased where it shrinks: what the layer's own filter does) of the input to
the size at which the plain layer has the asked output size, then the plain layer; "bilinear" the same with linear interpolation
and a layer of ``basis="linear"``.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import nn

import ccrewrite
from ccrewrite.nn import CCConv2d, CCConvTranspose2d, cc_functions

REPORT = Path(__file__).parents[1] / "reports" / "cc"
Case = tuple[str, nn.Module, tuple[int, ...], int]
"""(name, plain layer, input shape, asked output size; 0: native)"""


def cases() -> list[Case]:
    def conv(channels: int, taps: int = 3, inputs: int | None = None) -> nn.Conv2d:
        return nn.Conv2d(inputs or channels, channels, taps, 2, taps // 2)

    found: list[Case] = []
    for channels, size, sizes in ((64, 56, (0, 42, 37, 24, 20, 14)), (128, 28, (0, 20, 12, 10)), (256, 14, (0, 10, 6, 5))):
        for asked in sizes:
            name = f"{channels} channels, {size} -> {size // 2}" + (f", asked for {asked}" if asked else "")
            found.append((name, conv(channels), (4, channels, size, size), asked))
    stem = "stem 7x7, 224 -> 112"
    found += [(stem, conv(64, 7, 3), (4, 3, 224, 224), 0), (f"{stem}, asked for 96", conv(64, 7, 3), (4, 3, 224, 224), 96)]
    for asked in (0, 40, 72):
        name = f"transposed 4x4, 64 channels, 28 -> 56{f', asked for {asked}' if asked else ''}"
        found.append((name, nn.ConvTranspose2d(64, 64, 4, 2, 1), (4, 64, 28, 28), asked))
    return found


def milliseconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - start)


def forms_of(layer: Any, x: Any) -> str:
    """Which form the layer takes (``ccrewrite.nn.cc_functions._forms``)."""
    if isinstance(layer, nn.ConvTranspose2d):
        return "output"
    seen: list[str] = []
    chosen = cc_functions._forms

    def spy(*arguments: Any) -> dict[int, str]:
        forms = chosen(*arguments)
        seen.extend(forms.values())
        return forms

    cc_functions._forms = spy  # type: ignore[assignment]
    try:
        layer(x)
    finally:
        cc_functions._forms = chosen
    return seen[0] if seen else "plain"


def measure(plain: nn.Module, shape: tuple[int, ...], asked: int, basis: str, rounds: int) -> dict[str, Any]:
    kind = CCConvTranspose2d if isinstance(plain, nn.ConvTranspose2d) else CCConv2d
    layer: Any = kind.from_conv(plain, basis=basis)
    x, mode = torch.randn(shape), {"cubic": "bicubic", "linear": "bilinear"}[basis]
    reference: Callable[[], Any]
    if not asked:
        calls, reference = (50 if shape[1] > 3 else 5), lambda: plain(x)
    else:
        calls = 5
        layer.output_size = asked
        native = plain(x).shape[-1]
        shrinks = asked < native

        def resize(image: Any, size: int) -> Any:
            return F.interpolate(image, (size, size), mode=mode, antialias=shrinks)

        if isinstance(plain, nn.ConvTranspose2d):
            reference = lambda: resize(plain(x), asked)  # noqa: E731
        else:
            reference = lambda: plain(resize(x, 2 * asked))  # noqa: E731
    assert layer(x).shape == reference().shape
    taken: list[tuple[float, float]] = []
    for round_number in range(rounds + 2):
        ours = milliseconds(lambda: [layer(x) for _ in range(calls)]) / calls
        theirs = milliseconds(lambda: [reference() for _ in range(calls)]) / calls
        if round_number >= 2:
            taken.append((ours, theirs))
    ratios = sorted(a / b for a, b in taken)
    return {
        "ms": statistics.median(a for a, _ in taken),
        "reference ms": statistics.median(b for _, b in taken),
        "ratio": statistics.median(ratios),
        "quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
        "form": forms_of(layer, x) if asked else "plain",
    }


def spread(quartiles: list[float]) -> str:
    return f"{quartiles[0]:.2f} to {quartiles[1]:.2f}"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--report", type=Path, default=REPORT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results: dict[str, Any] = {}
    for name, plain, shape, asked in cases():
        for basis in ("cubic", "linear") if asked else ("cubic",):
            against = {"cubic": "interpolated", "linear": "bilinear"}[basis] if asked else "plain layer"
            results[f"{name} | {against}"] = measure(plain, shape, asked, basis, arguments.rounds)
    report = {
        "command": "python benchmarks/cc_speed.py",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}",
        "versions": {"ccrewrite": ccrewrite.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "rounds": arguments.rounds,
        "results": results,
    }
    rows = [
        [*name.split(" | "), v["form"], *(f"{v[k]:.2f}" for k in ("ms", "reference ms", "ratio")), spread(v["quartiles"])]
        for name, v in results.items()
    ]
    headers = ["layer", "against", "form", "CC, ms", "reference, ms", "ratio", "quartiles"]
    text = (
        f"# What CC layers cost\n\n`{report['command']}`, {report['date']}, {report['device']}, one thread, batch 4, torch "
        f"{torch.__version__}, Python {platform.python_version()}, {arguments.rounds} rounds.\n\n"
        + tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
        + "\n"
    )
    arguments.report.mkdir(parents=True, exist_ok=True)
    (arguments.report / "speed.json").write_text(json.dumps(report, indent=2) + "\n")
    (arguments.report / "speed.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
