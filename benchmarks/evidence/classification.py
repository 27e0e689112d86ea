"""d. Large depthwise kernels -> few DCLS taps: a ConvMixer with a third of its depthwise parameters.

python benchmarks/evidence/classification.py # writes reports/evidence/classification.json, .md and .png
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import Batch, Claim, run
from dcls_sparse import canvases, convmixer, depthwise, digits
from torch import nn
from torch.nn.utils import prune

import ccrewrite
from ccrewrite.families.dcls.sparsify import LargeToDcls
from ccrewrite.families.interpolation import Interpolation

FRACTION = 1 / 3


@functools.cache
def drawn(split: str) -> Batch:
    """Canvases for validation (of 300 drawings kept from training) and testing."""
    drawings, labels, test, test_labels = digits()
    if split == "test":
        return test, test_labels
    kept, kept_labels = drawings[1100:].repeat(4, 1, 1), labels[1100:].repeat(4)
    return canvases(kept, torch.Generator().manual_seed(1)), kept_labels


@functools.cache
def training() -> Batch:
    drawings, labels, _, _ = digits()
    return drawings[:1100], labels[:1100]


def batch(random: torch.Generator, first: bool) -> Batch:
    drawings, labels = training()
    chosen = torch.randint(0, len(drawings), (25,), generator=random)
    return canvases(drawings[chosen], random), labels[chosen]


@torch.no_grad()
def score(model: nn.Module, split: str) -> dict[str, float]:
    x, y = drawn(split)
    found = torch.cat([model(part).argmax(1) for part in x.split(200)])
    return {"accuracy, %": 100 * float((found == y).float().mean())}


def sparse(interpolation: Interpolation) -> Callable[[nn.Module], nn.Module]:
    rule = LargeToDcls(budget=FRACTION, interpolation=interpolation)
    return lambda model: ccrewrite.rewrite(model, drawn("validation")[0][:2], rules=[rule]).model


def pruned(model: nn.Module) -> nn.Module:
    """The largest weights of all layers together stay, the others are held at zero."""
    prune.global_unstructured([(layer, "weight") for layer in depthwise(model)], prune.L1Unstructured, amount=1 - FRACTION)
    return model


CLAIM = Claim(
    name="classification",
    about="Digits at random places of 16 x 16 noisy pixels, 9 x 9 depthwise kernels. For DCLS, positions and widths count as "
    "parameters; pruning keeps the largest weights, whose places are not counted (its table entry has the masked ones, too).",
    network=lambda: convmixer(24, 2),
    batch=batch,
    loss=F.cross_entropy,
    score=score,
    arms={
        "untouched": lambda m: m,
        "DCLS, linear": sparse("linear"),
        "DCLS, gaussian": sparse("gaussian"),
        "magnitude pruning": pruned,
    },
    train_steps=150,
    train_rate=1e-2,
    weight_decay=0.05,
    tune_steps=100,
    rates=(3e-3, 1e-2, 3e-2),
)

if __name__ == "__main__":
    run("classification", "A ConvMixer with a third of its depthwise parameters", [CLAIM])
