"""b. Dilated convolutions -> DCLS in causal temporal convolutional networks: digits as 64 steps, and irregular delays.

    python benchmarks/evidence/sequences.py      # writes reports/evidence/sequences.json, .md and .png

Both tasks are tried with several sets of dilations, because that is what decides: a stack of dilated layers reaches the sums of
its taps' delays. 1, 2, 4, 8 reaches every delay up to 30; 2, 4, 8 every second one up to 28; 4, 8 every fourth up to 24.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from common import Batch, Claim, run
from sklearn.datasets import load_digits
from torch import Tensor, nn

import ccrewrite

STEPS, DELAYS = 128, (3, 7, 13, 18, 22)
NOISE = 0.3


class Block(nn.Module):
    """Residual; three taps per channel, ``dilation`` steps apart, none in the future."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.past = 2 * dilation
        self.conv = nn.Conv1d(channels, channels, 3, dilation=dilation, groups=channels)
        self.norm = nn.BatchNorm1d(channels)
        self.mix = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(F.relu(self.norm(self.conv(F.pad(x, (self.past, 0))))))


class TCN(nn.Module):
    """Class scores of every step, ``(N, 1, T)`` to ``(N, classes, T)``; with ``pooled``, of the sequence, ``(N, classes)``."""

    def __init__(self, channels: int, classes: int, dilations: Sequence[int], pooled: bool) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, channels, 1)
        self.blocks = nn.Sequential(*(Block(channels, d) for d in dilations))
        self.head = nn.Conv1d(channels, classes, 1)
        self.pooled = pooled

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(self.stem(x))
        return self.head(F.relu(y.mean(-1, keepdim=True))).squeeze(-1) if self.pooled else self.head(F.relu(y))


@functools.cache
def digits(split: str) -> Batch:
    pixels, classes = load_digits(return_X_y=True)
    part = {"train": slice(0, 1100), "validation": slice(1100, 1400), "test": slice(1400, None)}[split]
    return torch.tensor(pixels[part], dtype=torch.float32)[:, None] / 8 - 1, torch.tensor(classes[part])


def digit_batch(random: torch.Generator, first: bool) -> Batch:
    x, y = digits("train")
    chosen = torch.randint(0, len(x), (32,), generator=random)
    return x[chosen] + NOISE * torch.randn(x[chosen].shape, generator=random), y[chosen]


@torch.no_grad()
def digit_score(model: nn.Module, split: str) -> dict[str, float]:
    x, y = digits(split)
    noise = NOISE * torch.randn((4, *x.shape), generator=torch.Generator().manual_seed(0))
    return {"accuracy, %": 100 * sum(float((model(x + n).argmax(1) == y).float().mean()) for n in noise) / 4}


def delayed(count: int, random: torch.Generator) -> Batch:
    """Smooth noise. The class of a step: which of three products of the signal at two of the delays are positive."""
    frequencies = torch.fft.rfftfreq(STEPS)
    spectrum = torch.fft.rfft(torch.randn(count, 1, STEPS, generator=random)) * (frequencies < 0.35) / (0.1 + frequencies)
    x = torch.fft.irfft(spectrum)
    x = x / x.std()
    a, b, c, d, e = (x[:, 0].roll(delay, -1) for delay in DELAYS)
    y = 4 * (a * c > 0).long() + 2 * (b * d > 0).long() + (c * e > 0).long()
    y[:, : max(DELAYS) + 8] = -100  # what cross_entropy ignores
    return x, y


def delay_batch(random: torch.Generator, first: bool) -> Batch:
    return delayed(16, random)


@torch.no_grad()
def delay_score(model: nn.Module, split: str) -> dict[str, float]:
    x, y = delayed(200, torch.Generator().manual_seed({"validation": 10**6, "test": 10**6 + 1}[split]))
    known = y >= 0
    return {"accuracy, %": 100 * float((model(x).argmax(1) == y)[known].float().mean())}


def dcls(steps: int, reach: int = 0) -> Callable[[nn.Module], nn.Module]:
    rule = ccrewrite.DilatedToDcls(reach=reach)
    return lambda model: ccrewrite.rewrite(model, torch.zeros(2, 1, steps), rules=[rule]).model


def claim(task: str, dilations: Sequence[int]) -> Claim:
    shown = ", ".join(map(str, dilations))
    common = {"loss": F.cross_entropy, "train_rate": 1e-2, "rates": (3e-3, 1e-2, 3e-2, 1e-1)}
    if task == "digits":
        return Claim(
            name=f"digits, dilations {shown}",
            about="Digits of 8 x 8 pixels, one pixel a step: the same column lies 8 steps apart.",
            network=lambda: TCN(16, 10, dilations, True),
            batch=digit_batch,
            score=digit_score,
            arms={"untouched": lambda m: m, "DCLS": dcls(64)},
            train_steps=300,
            tune_steps=200,
            **common,
        )
    return Claim(
        name=f"irregular delays, dilations {shown}",
        about=f"Smooth noise whose class depends on products at delays {', '.join(map(str, DELAYS))}; 8 classes.",
        network=lambda: TCN(16, 8, dilations, False),
        batch=delay_batch,
        score=delay_score,
        arms={"untouched": lambda m: m, "DCLS": dcls(STEPS)},
        train_steps=400,
        tune_steps=250,
        **common,
    )


CLAIMS = [claim("delays", (4, 8)), claim("delays", (2, 4, 8)), claim("delays", (1, 2, 4, 8))]
CLAIMS += [claim("digits", (3, 9)), claim("digits", (1, 2, 4, 8))]

if __name__ == "__main__":
    run("sequences", "Dilated convolutions made DCLS in temporal convolutional networks", CLAIMS)
