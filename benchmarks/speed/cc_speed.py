"""What a CC layer costs, next to the plain layer: at its native size, at others, and off its start.

    python benchmarks/speed/cc_speed.py                # writes reports/cc/speed.json and .md; some minutes

One thread and its own CPU time, which other work on the machine disturbs little; batch 4 (volumes: 1), interleaved in one
process after a warm-up; medians over rounds of the ratio within a round. No gradients, except where a training step is named:
the output's sum differentiated by input and all parameters.

"Interpolated" is ``F.interpolate`` (bicubic, antialiased where it shrinks: what the layer's own filter does) of the input to
the size at which the plain layer has the asked output size, then the plain layer; "bilinear" the same with linear interpolation
and a layer of ``basis="linear"``. "Moved": every shift and residual off its start, so that the kernel is built; "window" is the
same layer with its kernel on the window, whatever is cheaper. "Polyphase": the same sums as one convolution for each fraction
of a sample (a transposed layer of stride 2: one of stride 1 with 4 times the outputs, shuffled); random weights, for the time.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import platform
import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rounds import Rounds, ratios, timed
from tabulate import tabulate
from torch import nn

import ccrewrite
from ccrewrite.families.cc import native as cc_native
from ccrewrite.families.cc import resized as cc_resized
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.nn import CCConv2d, CCConvTranspose2d

REPORT = Path(__file__).parents[2] / "reports" / "cc"
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


def summary(times: Rounds, reference: str) -> dict[str, Any]:
    """Of "ours": milliseconds, those of the ``reference``, and the ratios' median and quartiles."""
    found = sorted(ratios(times, "ours", reference))
    return {
        "ms": 1e3 * statistics.median(times["ours"]),
        f"{reference} ms": 1e3 * statistics.median(times[reference]),
        "ratio": statistics.median(found),
        "quartiles": [found[len(found) // 4], found[3 * len(found) // 4]],
    }


def times_over(run: Callable[[], object], calls: int) -> Callable[[], object]:
    return lambda: [run() for _ in range(calls)]


def forms_of(layer: Any, x: Any) -> str:
    """Which form the layer takes (``ccrewrite.families.cc.resized._forms``)."""
    if isinstance(layer, nn.ConvTranspose2d):
        return "output"
    seen: list[str] = []
    chosen = cc_resized._forms

    def spy(*arguments: Any) -> dict[int, Any]:
        forms = chosen(*arguments)
        seen.extend(forms.values())
        return forms

    cc_resized._forms = spy  # type: ignore[assignment]
    try:
        layer(x)
    finally:
        cc_resized._forms = chosen
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
    times = timed({"ours": times_over(lambda: layer(x), calls), "reference": times_over(reference, calls)}, rounds)
    of_one = {name: [seconds / calls for seconds in taken] for name, taken in times.items()}
    return summary(of_one, "reference") | {"form": forms_of(layer, x) if asked else "plain"}


def moved_cases() -> list[tuple[str, Any, tuple[int, ...]]]:
    """(name, plain layer, input shape)"""
    return [
        ("3x3, stride 2, 64 channels, 56", nn.Conv2d(64, 64, 3, 2, 1), (4, 64, 56, 56)),
        ("3x3, stride 2, 128 channels, 28", nn.Conv2d(128, 128, 3, 2, 1), (4, 128, 28, 28)),
        ("3x3, stride 2, 256 channels, 14", nn.Conv2d(256, 256, 3, 2, 1), (4, 256, 14, 14)),
        ("1x1, stride 2, 128 to 256 channels, 28", nn.Conv2d(128, 256, 1, 2), (4, 128, 28, 28)),
        ("2x2, stride 2, 96 to 192 channels, 28", nn.Conv2d(96, 192, 2, 2), (4, 96, 28, 28)),
        ("stem 7x7, stride 2, 3 to 64 channels, 224", nn.Conv2d(3, 64, 7, 2, 3), (4, 3, 224, 224)),
        ("depthwise 3x3, stride 2, 64 channels, 56", nn.Conv2d(64, 64, 3, 2, 1, groups=64), (4, 64, 56, 56)),
        ("transposed 4x4, stride 2, 64 channels, 28", nn.ConvTranspose2d(64, 64, 4, 2, 1), (4, 64, 28, 28)),
        ("transposed 2x2, stride 2, 64 to 32 channels, 28", nn.ConvTranspose2d(64, 32, 2, 2), (4, 64, 28, 28)),
        ("transposed 1x1x1, stride 2, 64 to 32 channels, 8", nn.ConvTranspose3d(64, 32, 1, 2), (1, 64, 8, 8, 8)),
        ("3x3x3, stride 2, 32 to 64 channels, 16", nn.Conv3d(32, 64, 3, 2, 1), (1, 32, 16, 16, 16)),
        ("k10, stride 5, 256 channels, 1600", nn.Conv1d(256, 256, 10, 5), (4, 256, 1600)),
    ]


def measure_moved(plain: Any, shape: tuple[int, ...], training: bool, rounds: int) -> dict[str, Any]:
    layer: Any = getattr(ccrewrite.nn, f"CC{type(plain).__name__}").from_conv(plain)
    for mover in layer.sampling.movers():
        mover += 0.1 * torch.randn_like(mover)
    x = torch.randn(shape, requires_grad=training)
    cheapest = cc_native.cheapest

    def run(module: Any, window: bool) -> Callable[[], object]:
        def once() -> object:
            cc_native.cheapest = (lambda *_: ()) if window else cheapest
            try:
                if not training:
                    return module(x)
                with torch.enable_grad():
                    return torch.autograd.grad(module(x).sum(), [x, *module.parameters()])
            finally:
                cc_native.cheapest = cheapest

        return once

    axes = cheapest(ConvGeometry.from_module(plain), layer.sampling.margin, shape[2:])
    form = "window" if not axes else "resampled" if len(axes) == len(shape) - 2 else f"resampled along {axes}"
    calls = {"ours": run(layer, False), "plain": run(plain, False), "window": run(layer, True)}
    times = timed(calls, rounds)
    return summary(times, "plain") | {"window ratio": statistics.median(ratios(times, "window", "plain")), "form": form}


def measure_polyphase(rounds: int) -> dict[str, Any]:
    """Name -> milliseconds of our form and of polyphase convolutions."""
    found: dict[str, Any] = {}

    def compare(name: str, ours: Callable[[], Any], phases: Callable[[], Any]) -> None:
        assert ours().shape == phases().shape
        said = summary(timed({"ours": ours, "polyphase": phases}, rounds), "polyphase")
        found[name] = {key: said[key] for key in ("ms", "polyphase ms", "ratio")}

    for channels, size in ((64, 56), (128, 28), (256, 16)):
        layer: Any = CCConv2d(channels, channels, 3, 2, 1)
        layer.output_size = 3 * size // 4
        x, count = torch.randn(4, channels, size, size), size // 4
        weight = torch.randn(channels, channels, 6, 6)  # 3 taps between samples, 4 samples each

        def phases(x: Any = x, weight: Any = weight, count: int = count) -> Any:
            out, padded = x.new_empty(4, x.shape[1], 3 * count, 3 * count), F.pad(x, (3, 5, 3, 5))
            for i, j in itertools.product(range(3), range(3)):
                out[:, :, i::3, j::3] = F.conv2d(padded[:, :, i:, j:], weight, stride=4)[:, :, :count, :count]
            return out

        name = f"3x3, stride 2, {channels} channels, {size} -> {size // 2}, asked for {layer.output_size[0]}"  # pyright: ignore[reportIndexIssue]
        compare(name, functools.partial(layer, x), phases)
    for taps in (2, 4):
        layer = CCConvTranspose2d(64, 64, taps, 2, taps // 2 - 1)
        for mover in layer.sampling.movers():
            mover += 0.1 * torch.randn_like(mover)
        x, wide = torch.randn(4, 64, 28, 28), (taps + 4) // 2
        weight = torch.randn(4 * 64, 64, wide, wide)
        low = (wide - 1) // 2

        def shuffled(x: Any = x, weight: Any = weight, low: int = low, high: int = wide - 1 - low) -> Any:
            return F.pixel_shuffle(F.conv2d(F.pad(x, (low, high, low, high)), weight), 2)

        compare(f"transposed {taps}x{taps}, stride 2, 64 channels, 28 -> 56, moved", functools.partial(layer, x), shuffled)
    return found


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
    moved = {
        f"{name} | {'training step' if training else 'forward'}": measure_moved(plain, shape, training, arguments.rounds)
        for training in (False, True)
        for name, plain, shape in moved_cases()
    }
    polyphase = measure_polyphase(arguments.rounds)
    report = {
        "command": "python benchmarks/speed/cc_speed.py",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}",
        "versions": {"ccrewrite": ccrewrite.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "rounds": arguments.rounds,
        "results": results,
        "moved": moved,
        "polyphase": polyphase,
    }
    rows = [
        [*name.split(" | "), v["form"], *(f"{v[k]:.2f}" for k in ("ms", "reference ms", "ratio")), spread(v["quartiles"])]
        for name, v in results.items()
    ]
    headers = ["layer", "against", "form", "CC, ms", "reference, ms", "ratio", "quartiles"]
    text = (
        f"# What CC layers cost\n\n`{report['command']}`, {report['date']}, {report['device']}, CPU time of one thread, torch "
        f"{torch.__version__}, Python {platform.python_version()}, {arguments.rounds} rounds.\n\n"
        + tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
        + "\n\n## Off its start, at its native size\n\n"
        + tabulate(
            [
                [
                    *name.split(" | "),
                    v["form"],
                    *(f"{v[k]:.2f}" for k in ("ms", "plain ms", "ratio")),
                    spread(v["quartiles"]),
                    f"{v['window ratio']:.2f}",
                ]
                for name, v in moved.items()
            ],
            headers=["layer", "", "form", "CC, ms", "plain, ms", "ratio", "quartiles", "ratio with the window"],
            tablefmt="github",
            disable_numparse=True,
        )
        + "\n\n## Polyphase\n\n"
        + tabulate(
            [[name, *(f"{v[k]:.2f}" for k in ("ms", "polyphase ms", "ratio"))] for name, v in polyphase.items()],
            headers=["layer", "CC, ms", "polyphase, ms", "polyphase / CC"],
            tablefmt="github",
            disable_numparse=True,
        )
        + "\n"
    )
    arguments.report.mkdir(parents=True, exist_ok=True)
    (arguments.report / "speed.json").write_text(json.dumps(report, separators=(",", ":")) + "\n")
    (arguments.report / "speed.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
