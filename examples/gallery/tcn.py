"""A causal temporal network with gaps in its dilations: learned positions reach the delays that the grid can't.

The target adds up the signal at irregular delays. Dilations 4 and 8 reach every fourth delay; no weights can express the rest,
moved taps can.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ccrewrite

DELAYS = (3, 7, 13, 18, 22)


class Block(nn.Module):
    """Residual; three taps per channel, ``dilation`` steps apart, none in the future."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.past = 2 * dilation
        self.conv = nn.Conv1d(channels, channels, 3, dilation=dilation, groups=channels)
        self.mix = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(F.relu(self.conv(F.pad(x, (self.past, 0)))))


def network() -> nn.Module:
    return nn.Sequential(nn.Conv1d(1, 32, 1), Block(32, 4), Block(32, 8), nn.Conv1d(32, 1, 1))


def signals(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Smooth noise, and its sum at the delays."""
    noise = torch.randn(count, 1, 168, generator=torch.Generator().manual_seed(seed))
    smooth = F.avg_pool1d(F.avg_pool1d(noise, 3, 1), 3, 1)
    smooth = smooth / smooth.std()
    target = sum(smooth.roll(delay, dims=-1) for delay in DELAYS)
    return smooth[..., 36:], target[..., 36:] / len(DELAYS) ** 0.5  # pyright: ignore[reportIndexIssue]


def train(model: nn.Module, steps: int, lr: float) -> None:
    optimizer = torch.optim.AdamW(ccrewrite.training.param_groups(model, lr))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [g["lr"] for g in optimizer.param_groups], steps)
    for step in range(steps):
        x, y = signals(32, seed=step)
        loss = F.mse_loss(model(x)[..., 30:], y[..., 30:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def error(model: nn.Module) -> float:
    x, y = signals(200, seed=10**6)
    return float(F.mse_loss(model(x)[..., 30:], y[..., 30:]) / y[..., 30:].var())


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = network()
    train(model, steps=200, lr=1e-2)

    x, _ = signals(1, seed=0)
    result = ccrewrite.rewrite(model, x)
    untouched = copy.deepcopy(model)
    for name, tuned in (("original", untouched), ("rewritten", result.model)):
        before = error(tuned)
        train(tuned, steps=250, lr=2e-2)
        print(f"{name}: {before:.2f} of the target's variance unexplained, {error(tuned):.2f} fine-tuned")

    # Nothing of the future is seen, before or after: the last input doesn't reach an earlier output.
    probe = x.clone().requires_grad_()
    (seen,) = torch.autograd.grad(result.model(probe)[..., 50].sum(), probe)
    assert not seen[..., 51:].any()
    folded = ccrewrite.fold(result, x)
    print("folded to plain layers:", ", ".join(site.name for site in folded), "| outputs the same:", folded.check.ok)


if __name__ == "__main__":
    main()
