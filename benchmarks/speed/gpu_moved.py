"""The layers of ``moved_cases.py`` on a GPU: training steps of moved geometry, eager and lowered, over the plain layer's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from gpu_sections import Clock, Named, spread
from moved_cases import CONTINUOUS, DEPTHWISE, SHARED, Layer
from moving import move_
from torch import Tensor, nn

import ccrewrite

QUICK = {"CC k3 s2, 4 -> 6, 9x9": Layer(2, (4, 6), 3, 9, stride=2)}


def moved(device: torch.device, clock: Clock, quick: bool) -> Named:
    """Every layer, batch 8, in fp32; forms by estimate."""
    for name, layer in (QUICK if quick else CONTINUOUS | DEPTHWISE | SHARED).items():

        def result(layer: Layer = layer) -> dict[str, Any]:
            torch.manual_seed(0)
            plain, one = layer.build()
            plain, x = plain.to(device), torch.cat([one] * (1 if quick else 8)).to(device)
            eager = ccrewrite.rewrite(plain, x).model
            move_(eager, 0.3)
            own = copy.deepcopy(eager)
            lowered = ccrewrite.lower(own, x, mode="training", measured=False, verify=False).model
            steps = {name: step(model, x) for name, model in (("plain", plain), ("eager", eager), ("lowered", lowered))}
            taken = clock.in_turn(steps, 3 if quick else 15)
            return {
                "variants": {
                    name: {
                        "ms": spread(times),
                        "peak_mb": clock.peak_megabytes(steps[name]),
                        "ratios": {"plain": spread([t / r for t, r in zip(times, taken["plain"], strict=True)])},
                    }
                    for name, times in taken.items()
                }
            }

        yield f"{name}, training", result


def step(model: nn.Module, x: Tensor) -> Callable[[], Any]:
    given = x.clone().requires_grad_()
    wanted = [given, *model.parameters()]

    def run() -> Any:
        return torch.autograd.grad(model(given).square().mean(), wanted, allow_unused=True)

    return run
