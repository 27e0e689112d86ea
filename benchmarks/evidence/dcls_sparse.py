"""Large kernels made sparse: a ConvMixer on digits, dense against ``LargeToDcls`` and magnitude pruning, 5 seeds.

    python benchmarks/evidence/dcls_sparse.py             # writes reports/dcls/sparse.json and .md

scikit-learn's 8 x 8 digits at random places of a noisy 16 x 16 canvas; a ConvMixer (arXiv 2201.09792) with 9 x 9 depthwise
kernels. After training, its depthwise kernels are brought to a third of their parameters: positions and widths count for DCLS,
the places of the weights that are left don't for pruning (which keeps the largest of all layers together). All are fine-tuned
alike, and so is the dense network, for as many epochs.
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
from sklearn.datasets import load_digits
from tabulate import tabulate
from torch import Tensor, nn

import ccrewrite
from ccrewrite.families.dcls.sparsify import LargeToDcls
from ccrewrite.training import param_groups

REPORT = Path(__file__).parents[2] / "reports" / "dcls"
SIZE, TRAIN = 16, 1400
FRACTION = 1 / 3
METHODS: dict[str, dict[str, Any]] = {
    "gaussian": {"interpolation": "gaussian"},
    "linear": {"interpolation": "linear"},
}


class Residual(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


def convmixer(dim: int = 32, depth: int = 3, kernel: int = 9) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(1, dim, 3, padding=1), nn.GELU(), nn.BatchNorm2d(dim)]
    for _ in range(depth):
        mixing = nn.Conv2d(dim, dim, kernel, padding="same", groups=dim)
        layers += [Residual(mixing, nn.GELU(), nn.BatchNorm2d(dim)), nn.Conv2d(dim, dim, 1), nn.GELU(), nn.BatchNorm2d(dim)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(dim, 10))


def depthwise(model: nn.Module) -> list[nn.Conv2d]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]


def canvases(drawings: Tensor, random: torch.Generator) -> Tensor:
    """Each drawing somewhere on its own noisy canvas."""
    found = 0.2 * torch.randn(len(drawings), 1, SIZE, SIZE, generator=random)
    places = torch.randint(0, SIZE - 7, (len(drawings), 2), generator=random)
    for canvas, drawing, (top, left) in zip(found, drawings, places.tolist(), strict=True):
        canvas[0, top : top + 8, left : left + 8] += drawing
    return found


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training drawings and classes; test canvases and classes (four of each drawing). No drawing is in both."""
    pixels, classes = load_digits(return_X_y=True)
    drawings, labels = torch.tensor(pixels, dtype=torch.float32).view(-1, 8, 8) / 16, torch.tensor(classes)
    random = torch.Generator().manual_seed(0)
    test, test_labels = drawings[TRAIN:].repeat(4, 1, 1), labels[TRAIN:].repeat(4)
    return drawings[:TRAIN], labels[:TRAIN], canvases(test, random), test_labels


def train(
    model: nn.Module, drawings: Tensor, labels: Tensor, epochs: int, lr: float, seed: int, after: Callable[[], None]
) -> None:
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(param_groups(model, lr, 0.05))
    steps = epochs * (len(drawings) // 50)
    rates = [g["lr"] for g in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(drawings), generator=random).view(-1, 50):
            optimizer.zero_grad()
            logits = model(canvases(drawings[batch], random))
            nn.functional.cross_entropy(logits, labels[batch]).backward()
            optimizer.step()
            schedule.step()
            after()


@torch.no_grad()
def accuracy(model: nn.Module, canvases: Tensor, labels: Tensor) -> float:
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(canvases.split(200), labels.split(200), strict=True))
    return 100 * right / len(labels)


def pruned(model: nn.Module, keep: int) -> tuple[nn.Module, Callable[[], None]]:
    """A copy with the ``keep`` largest depthwise weights, and what holds the others at zero."""
    model = copy.deepcopy(model)
    weights = [layer.weight for layer in depthwise(model)]
    least = torch.cat([w.detach().abs().flatten() for w in weights]).topk(keep).values[-1]
    masks = [w.detach().abs() >= least for w in weights]

    @torch.no_grad()
    def hold() -> None:
        for weight, mask in zip(weights, masks, strict=True):
            weight.mul_(mask)

    hold()
    return model, hold


def one_seed(seed: int, epochs: int, tuning: int) -> dict[str, Any]:
    drawings, labels, test, test_labels = digits()
    torch.manual_seed(seed)
    dense = convmixer()
    train(dense, drawings, labels, epochs, 1e-2, seed, lambda: None)
    size = sum(layer.weight.numel() for layer in depthwise(dense))
    results: dict[str, Any] = {"seed": seed, "depthwise_parameters": size}

    def record(name: str, model: nn.Module, parameters: int, after: Callable[[], None] = lambda: None, **more: Any) -> None:
        right_after = accuracy(model, test, test_labels)
        train(model, drawings, labels, tuning, 3e-3, 100 + seed, after)
        tuned = accuracy(model, test, test_labels)
        results[name] = {"right_after": right_after, "tuned": tuned, "parameters": parameters, **more}
        print(seed, name, results[name], flush=True)

    for name, options in METHODS.items():
        dense.eval()
        start = time.perf_counter()
        found = ccrewrite.rewrite(dense, test[:2], rules=[LargeToDcls(budget=FRACTION, **options)])
        sites = {s.name: s.decision.message for s in found.plan.rewritten}
        layers = depthwise(found.model)
        parameters = sum(p.numel() for layer in layers for n, p in layer.named_parameters() if n != "bias")
        record(f"LargeToDcls, {name}", found.model, parameters, fit_seconds=time.perf_counter() - start, sites=sites)
    model, hold = pruned(dense, int(FRACTION * size))
    record("magnitude pruning", model, int(FRACTION * size), hold)
    record("dense", copy.deepcopy(dense), size)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--tuning", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    runs = [one_seed(seed, asked.epochs, asked.tuning) for seed in range(asked.seeds)]
    names = [name for name, value in runs[0].items() if isinstance(value, dict)]
    report = {
        "device": f"CPU {platform.machine()}, 1 thread",
        "versions": f"torch {torch.__version__}, Python {platform.python_version()}",
        "date": datetime.now(UTC).date().isoformat(),
        "epochs": asked.epochs,
        "tuning_epochs": asked.tuning,
        "runs": runs,
    }
    rows: list[list[Any]] = []
    for name in names:
        before, after = ([r[name][when] for r in runs] for when in ("right_after", "tuned"))
        shown = [f"{statistics.mean(v):.2f} ({min(v):.2f} to {max(v):.2f})" for v in (before, after)]
        rows.append([name, round(statistics.mean(r[name]["parameters"] for r in runs)), *shown])
    text = [
        "# Large kernels made sparse: a ConvMixer on digits",
        "",
        f"`python benchmarks/evidence/dcls_sparse.py`, {report['device']}, {report['versions']}, {report['date']}.",
        "",
        f"Test accuracy in %, mean and range over {asked.seeds} seeds; {asked.epochs} epochs of training, "
        f"then {asked.tuning} of fine-tuning for every row.",
        "",
        tabulate(rows, headers=["", "depthwise parameters", "right after", "after fine-tuning"], tablefmt="github"),
        "",
    ]
    REPORT.mkdir(parents=True, exist_ok=True)
    (REPORT / "sparse.json").write_text(json.dumps(report, separators=(",", ":")) + "\n")
    (REPORT / "sparse.md").write_text("\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    main()
