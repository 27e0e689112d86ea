"""What compiling the rewritten layers alone costs and saves: steps over the original's, and first steps with nothing cached.

    python benchmarks/speed/sites_compiled.py [wavenet] [separable] [unet] [--without-lowered]

One thread, thread times, medians of interleaved rounds. Geometry is off its start. Each compiled variant compiles anew; what
that takes includes the C++ compiler's processes.
"""

from __future__ import annotations

import copy
import itertools
import os
import platform
import statistics
import sys
from collections.abc import Callable
from datetime import date
from typing import Any

import torch
import torch._inductor.config as inductor_config
import torch.nn.functional as F
from moving import move_
from rounds import ratios, timed
from torch import Tensor, nn

import ccrewrite
from ccrewrite.ir.typed import compiled

ROUNDS = 9


class WaveNet(nn.Module):
    """Causal, gated; ``separable``: depthwise dilated layers, then pointwise ones."""

    def __init__(self, channels: int = 64, layers: int = 9, separable: bool = False) -> None:
        super().__init__()
        wide = 2 * channels
        self.start = nn.Conv1d(1, channels, 1)
        kernel, groups = (3, channels) if separable else (2, 1)
        outputs = channels if separable else wide
        self.dilated = nn.ModuleList(nn.Conv1d(channels, outputs, kernel, dilation=2**i, groups=groups) for i in range(layers))
        self.gates = nn.ModuleList(nn.Conv1d(channels, wide, 1) if separable else nn.Identity() for _ in range(layers))
        self.mixed = nn.ModuleList(nn.Conv1d(channels, channels, 1) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        dilated: Any
        for dilated, gate, mix in zip(self.dilated, self.gates, self.mixed, strict=True):
            past = (dilated.kernel_size[0] - 1) * dilated.dilation[0]
            a, b = gate(dilated(F.pad(x, (past, 0)))).chunk(2, 1)
            x = x + mix(a.tanh() * b.sigmoid())
        return x


class UNet(nn.Module):
    def __init__(self, channels: tuple[int, ...] = (32, 64, 128, 256)) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(channels))
        self.first = nn.Conv2d(1, channels[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairs)
        self.within = nn.ModuleList(nn.Conv2d(b, b, 3, padding=1) for _, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in reversed(pairs))
        self.after = nn.ModuleList(nn.Conv2d(2 * a, a, 3, padding=1) for a, _ in reversed(pairs))

    def forward(self, x: Tensor) -> Tensor:
        skips = [self.first(x).relu()]
        for down, within in zip(self.down, self.within, strict=True):
            skips.append(within(down(skips[-1]).relu()).relu())
        x = skips.pop()
        for up, after in zip(self.up, self.after, strict=True):
            x = after(torch.cat([up(x), skips.pop()], 1)).relu()
        return x


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "wavenet": (WaveNet, (1, 1, 4000)),
    "separable": (lambda: WaveNet(256, separable=True), (1, 1, 2000)),
    "unet": (UNet, (1, 1, 128, 128)),
}


def stepping(model: nn.Module, x: Tensor) -> Callable[[], None]:
    def step() -> None:
        model.zero_grad()
        model(x).square().mean().backward()

    return step


def first(prepare: Callable[[], nn.Module], x: Tensor) -> tuple[nn.Module, float]:
    """The prepared model, and CPU seconds from preparing it to the end of its first step."""
    torch._dynamo.reset()
    begin = sum(os.times()[:4])
    model = prepare()
    stepping(model, x)()
    return model, sum(os.times()[:4]) - begin


def main() -> None:
    torch.set_num_threads(1)
    inductor_config.compile_threads = 1
    inductor_config.force_disable_caches = True
    print(f"{date.today()}, {platform.machine()}, torch {torch.__version__}, ccrewrite {ccrewrite.__version__}, one thread\n")
    print("| model | sites compiled | eager | sites | lowered | first step, CPU s: original compiled | sites | lowered |")
    print("|---|---|---|---|---|---|---|---|")
    with_lowered = "--without-lowered" not in sys.argv
    for name in [argument for argument in sys.argv[1:] if argument in MODELS] or MODELS:
        make, shape = MODELS[name]
        torch.manual_seed(0)
        original, x = make(), torch.randn(shape)
        rewritten = ccrewrite.rewrite(original, x).model
        move_(rewritten)
        own = copy.deepcopy(rewritten)
        torch._dynamo.reset()
        _, of_original = first(lambda model=original: compiled(copy.deepcopy(model)), x)
        lowered = ccrewrite.lower(own, x, mode="training", scope="sites", verify=False)
        sites, of_sites = first(lambda model=own: model, x)
        models, seconds = [original, rewritten, sites], [of_original, of_sites]
        if with_lowered:
            whole, of_whole = first(lambda model=rewritten, x=x: _lowered(model, x), x)
            models, seconds = [*models, whole], [*seconds, of_whole]
        told_ratios = [f"{ratio:.2f}" for ratio in _ratios([stepping(model, x) for model in models])]
        codes = [site.code for site in lowered]
        told = ", ".join(f"{codes.count(code)} {code}" for code in dict.fromkeys(codes))
        cells = [name, told, *[*told_ratios, "-"][:3], *[*(f"{s:.0f}" for s in seconds), "-"][:3]]
        print(f"| {' | '.join(cells)} |", flush=True)


def _lowered(model: nn.Module, x: Tensor) -> nn.Module:
    return ccrewrite.lower(copy.deepcopy(model), x, mode="training", measured=False, verify=False).model


def _ratios(steps: list[Callable[[], Any]]) -> list[float]:
    """Medians of each step's time over the first one's, in the same round."""
    found = timed({str(number): step for number, step in enumerate(steps)}, ROUNDS)
    return [statistics.median(ratios(found, name, "0")) for name in list(found)[1:]]


if __name__ == "__main__":
    main()
