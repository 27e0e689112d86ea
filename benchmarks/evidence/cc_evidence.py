"""What CC layers bring to a trained classifier, on real drawings: other input resolutions, scale ensembles, shifts.

    python benchmarks/evidence/cc_evidence.py    # writes reports/cc/evidence.json and .md; about ten minutes on one core

scikit-learn's handwritten digits (8x8), drawn at random sub-pixel places, sizes and angles on 32x32 canvases; 1400 drawings
for training, the other 397 for testing. A small network with batch norm is trained for each of five seeds, rewritten, and
evaluated:

- at other input resolutions: the original fed as it is; after resizing images back to 32; CC, whose stem is asked for the
  output size of 32 pixels whatever the input; and both of the latter after the same fine-tuning over resolutions;
- at other internal sizes, and as a scale ensemble, with and without recalibrated batch norms;
- for shifts: consistency over crops and equivariance of the features, before and after fine-tuning with the paper's centred
  grid, next to the same fine-tuning of the original.
"""

from __future__ import annotations

import argparse
import copy
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
from sklearn.datasets import load_digits
from tabulate import tabulate
from torch import Tensor, nn

import ccrewrite
from ccrewrite.families.cc.sampling import CCSampling
from ccrewrite.passes.scales.resize import resized
from ccrewrite.report.metrics import accuracy, resize_images, resolution_accuracy, shift_consistency, translation_equivariance
from ccrewrite.training.ensemble import ScaleEnsemble
from ccrewrite.training.recalibrate import load_statistics_, recalibrate

REPORT = Path(__file__).parents[2] / "reports" / "cc"
NATIVE, STEM = 32, 16
RESOLUTIONS = (14, 16, 20, 24, 28, 32, 40, 48)
SETTINGS = ({"0": 15 / 16}, {}, {"0": 17 / 16})
TRAIN = 1400


def drawings() -> tuple[Tensor, Tensor]:
    pixels, classes = load_digits(return_X_y=True)
    return torch.tensor(pixels).view(-1, 1, 8, 8).float() / 16, torch.tensor(classes)


def place(digits: Tensor, generator: torch.Generator, size: int = NATIVE, canvas: float = 1.0) -> Tensor:
    """Each digit at a random sub-pixel place, of 0.55 to 0.8 of 32 pixels, turned by up to 12 degrees, on ``size`` squared
    pixels that show ``canvas`` times 32, with noise."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(digits), generator=generator)

    angle, scale = uniform(-0.21, 0.21), canvas / uniform(0.55, 0.8)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    x, y = uniform(-0.25, 0.25), uniform(-0.25, 0.25)
    # Rows of the map from the canvas to the drawing; places are in halves of 32 pixels.
    theta = torch.stack([cos, -sin, -(cos * x - sin * y) / canvas, sin, cos, -(sin * x + cos * y) / canvas], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, [len(digits), 1, size, size], align_corners=False)
    images = F.grid_sample(F.pad(digits, (1, 1, 1, 1)), grid * 0.8, mode="bicubic", align_corners=False)
    return images + 0.1 * torch.randn(images.shape, generator=generator)


def network() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 5, 2, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    layers += [nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    layers += [nn.Conv2d(32, 48, 3, 2, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))


def fit(
    model: nn.Module, data: tuple[Tensor, Tensor], seed: int, epochs: int, rate: float, prepare: Callable[[Tensor, int], Tensor]
) -> nn.Module:
    """Adam with one cycle; ``prepare`` makes a batch of native canvases into what the model sees."""
    digits, labels = data
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters())
    steps = epochs * (len(digits) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.2)
    model.train()
    for step in range(steps):
        chosen = torch.randperm(len(digits), generator=generator)[:64]
        images = prepare(place(digits[chosen], generator), step)
        loss = F.cross_entropy(model(images), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def as_is(images: Tensor, step: int) -> Tensor:
    return images


def any_resolution(images: Tensor, step: int) -> Tensor:
    return resize_images(images, RESOLUTIONS[step % len(RESOLUTIONS)])


def ask_stem(model: Any, rescaled: bool) -> Any:
    model[0].sampling.output_size = STEM
    model[0].sampling.rescaled = rescaled
    return model


def centre(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, CCSampling):
            module.alignment = "centred"
    return model


def one_seed(seed: int, epochs: int, tuning: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    digits, classes = drawings()
    train, test = (digits[:TRAIN], classes[:TRAIN]), (digits[TRAIN:], classes[TRAIN:])
    generator = torch.Generator().manual_seed(1000 + seed)
    batches = [(place(test[0], generator), test[1]) for _ in range(4)]
    calibration = [place(train[0][i : i + 200], generator) for i in range(0, TRAIN, 200)]
    original = fit(network(), train, seed, epochs, 1e-2, as_is)
    cc: Any = ccrewrite.rewrite(original, batches[0][0]).model
    sizes = list(RESOLUTIONS)
    found: dict[str, Any] = {"native": {"original": accuracy(original, batches), "CC": accuracy(cc, batches)}}

    # Other input resolutions. The same fine-tuning for both: the same images, steps and rates.
    tuned = fit(ask_stem(copy.deepcopy(cc), True), train, 50 + seed, tuning, 2e-3, any_resolution)
    back = fit(
        copy.deepcopy(original), train, 50 + seed, tuning, 2e-3, lambda x, i: resize_images(any_resolution(x, i), NATIVE)
    )
    found["resolution"] = {
        "original at the resolution": resolution_accuracy(original, batches, sizes),
        "images resized to 32, original": resolution_accuracy(original, batches, sizes, back=NATIVE),
        "CC, taps a sample apart": resolution_accuracy(ask_stem(copy.deepcopy(cc), False), batches, sizes),
        "CC": resolution_accuracy(ask_stem(copy.deepcopy(cc), True), batches, sizes),
        "images resized to 32, original fine-tuned": resolution_accuracy(back, batches, sizes, back=NATIVE),
        "CC fine-tuned": resolution_accuracy(tuned, batches, sizes),
    }

    # Other internal sizes, and ensembles over them.
    own = recalibrate(cc, calibration, SETTINGS)
    sized = {}
    for setting, values in zip(SETTINGS, own, strict=True):
        name = f"stem at {round(16 * setting.get('0', 1))}"
        with resized(cc, setting):
            sized[name] = accuracy(cc, batches)
            kept = copy.deepcopy(cc.state_dict())
            load_statistics_(cc, values)
            sized[f"{name}, recalibrated"] = accuracy(cc, batches)
            cc.load_state_dict(kept)
    soft = {"average": lambda y: y.softmax(1)}
    sized["ensemble of the three"] = accuracy(ScaleEnsemble(cc, SETTINGS, **soft).eval(), batches)
    sized["ensemble of the three, recalibrated"] = accuracy(
        ScaleEnsemble(cc, SETTINGS, **soft).recalibrate(calibration).eval(), batches
    )
    found["internal size"] = sized

    # Shifts: canvases of 40 pixels, crops of 32.
    wide = place(test[0], torch.Generator().manual_seed(2000 + seed), 40, 40 / 32)
    again = fit(copy.deepcopy(original), train, 90 + seed, tuning, 2e-3, as_is)
    native = fit(copy.deepcopy(cc), train, 90 + seed, tuning, 2e-3, as_is)
    centred = fit(centre(copy.deepcopy(cc)), train, 90 + seed, tuning, 2e-3, as_is)
    models = {
        "original": original,
        "CC centred, not fine-tuned": centre(copy.deepcopy(cc)),
        "original fine-tuned": again,
        "CC fine-tuned": native,
        "CC fine-tuned, centred": centred,
    }
    found["shift"] = {
        name: {
            "accuracy": accuracy(model, batches),
            "shift consistency": shift_consistency(model, wide, size=32, pairs=8),
            "EQ-T of the features, dB": translation_equivariance(model[:3], wide, stride=2),  # type: ignore[index]
        }
        for name, model in models.items()
    }
    return found


def summary(values: list[float]) -> dict[str, Any]:
    return {"mean": statistics.mean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0, "values": values}


def merged(found: list[Any]) -> Any:
    """The runs' nested numbers, each as mean, standard deviation and values."""
    if isinstance(found[0], dict):
        return {str(key): merged([f[key] for f in found]) for key in found[0]}
    return summary(found)


def wins(better: dict[str, Any], worse: dict[str, Any]) -> str:
    """Mean difference over seeds, paired, and in how many seeds it is positive."""
    differences = [a - b for a, b in zip(better["values"], worse["values"], strict=True)]
    return (
        f"{100 * statistics.mean(differences):+.1f} points, better in {sum(d > 0 for d in differences)} of {len(differences)}"
    )


def markdown(report: dict[str, Any]) -> str:
    def share(value: dict[str, Any]) -> str:
        return f"{100 * value['mean']:.1f} ± {100 * value['std']:.1f}"

    def decibels(value: dict[str, Any]) -> str:
        return f"{value['mean']:.2f} ± {value['std']:.2f}"

    results = report["results"]
    rows = [[name, *(share(v) for v in by_size.values())] for name, by_size in results["resolution"].items()]
    sizes = [f"{size} px" for size in RESOLUTIONS]
    parts = [
        "# CC layers on digits at sub-pixel places",
        f"`{report['command']}`, {report['date']}, {report['device']}, one thread, torch {report['versions']['torch']}, "
        f"Python {report['versions']['python']}, {report['seeds']} seeds, {report['seconds']:.0f} s. "
        "Accuracies in %, mean ± standard deviation over seeds; trained at 32 px.",
        "## Asked to work at other input resolutions",
        tabulate(rows, headers=["", *sizes], tablefmt="github", disable_numparse=True),
        "Fine-tuned CC against images resized to 32 px, paired by seed:",
    ]
    against = results["resolution"]
    rows = []
    for size in map(str, RESOLUTIONS):
        row = [f"{size} px", wins(against["CC fine-tuned"][size], against["images resized to 32, original"][size])]
        rows.append([*row, wins(against["CC fine-tuned"][size], against["images resized to 32, original fine-tuned"][size])])
    headers = ["", "over the original", "over the original with the same fine-tuning"]
    parts.append(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))
    sized = results["internal size"]
    parts += [
        "## Other internal sizes, and their ensemble",
        tabulate([[k, share(v)] for k, v in sized.items()], headers=["", "accuracy"], tablefmt="github", disable_numparse=True),
        "Recalibrated ensemble over the original: "
        + wins(sized["ensemble of the three, recalibrated"], results["native"]["original"])
        + "; over the ensemble without recalibration: "
        + wins(sized["ensemble of the three, recalibrated"], sized["ensemble of the three"])
        + ".",
        "## Shifts",
    ]
    rows = [
        [name, share(v["accuracy"]), share(v["shift consistency"]), decibels(v["EQ-T of the features, dB"])]
        for name, v in results["shift"].items()
    ]
    headers = ["", "accuracy", "shift consistency", "EQ-T of the first layer's features, dB"]
    parts.append(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--tuning", type=int, default=8, help="epochs of each fine-tuning")
    parser.add_argument("--report", type=Path, default=REPORT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    runs = []
    for seed in range(arguments.seeds):
        runs.append(one_seed(seed, arguments.epochs, arguments.tuning))
        print(f"seed {seed}: {time.perf_counter() - start:.0f} s")
    report = {
        "command": "python benchmarks/evidence/cc_evidence.py",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}",
        "versions": {"ccrewrite": ccrewrite.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "seeds": arguments.seeds,
        "seconds": time.perf_counter() - start,
        "results": merged(runs),
    }
    arguments.report.mkdir(parents=True, exist_ok=True)
    (arguments.report / "evidence.json").write_text(json.dumps(report, separators=(",", ":")) + "\n")
    (arguments.report / "evidence.md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
