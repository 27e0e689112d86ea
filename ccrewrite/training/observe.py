"""Watch geometry while it trains: where taps go, what shapes continuous kernels take, which sites never move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.families.cc.profile import profile
from ccrewrite.families.cc.sampling import CCSampling
from ccrewrite.families.dcls.sampling import DclsSampling
from ccrewrite.families.sampling import Sampling
from ccrewrite.training.sharded import gathered

FINENESS = 8
"""Places per sample that a continuous kernel is recorded at."""


@dataclass(frozen=True)
class Movement:
    """How far one site's geometry has gone since the recording began.

    ``largest``: of DCLS layers the longest way of a tap, in samples; of CC layers the largest change of a tap's continuous
    kernel, whose height is 1. ``graded``: whether any of its parameters ever had a gradient other than 0.
    """

    site: str
    kind: str
    largest: float
    graded: bool


class Recorder:
    """Records the geometry of all rewritten sites of ``model``, now and then after every ``every`` steps.

    Call ``step()`` after the optimizer's step and before gradients are cleared (``finetune(..., schedules=[recorder])`` does);
    in several processes, in all of them. Recordings are copies on the CPU, in float32. Raises ``InputError`` where nothing is
    rewritten. Drawn by ``ccrewrite.training.pictures``.

    - ``steps``: the steps recorded, 0 first;
    - ``positions``: by site of a DCLS layer, a ``(axes, A, B, *taps)`` tensor for each, in samples from the window's centre;
    - ``profiles``: by site of a CC layer, for each a list over axes of ``(taps, places)``, the continuous kernels of its taps
      at ``FINENESS`` places per sample, centred.

    >>> from ccrewrite.nn import DclsConv1d
    >>> model = nn.Sequential(DclsConv1d(1, 1, 3, dilation=2))
    >>> recorder = Recorder(model)
    >>> _ = model[0].sampling.offset.data[..., 0].add_(0.5)
    >>> recorder.step()
    >>> print(recorder)
    site    kind      largest move  gradient
    ------  ------  --------------  ----------
    0       DCLS               0.5  never
    """

    def __init__(self, model: nn.Module, *, every: int = 1) -> None:
        if every < 1:
            raise InputError(f"every must be at least 1 step, found {every}")
        named = [(name, m) for name, m in model.named_modules() if isinstance(m, Sampling)]
        self._samplings = {name.removesuffix("sampling").removesuffix(".") or "model": m for name, m in named}
        if not named:
            raise InputError("nothing in the model is rewritten, so there is no geometry to record")
        self.model, self.every, self.done = model, every, 0
        self.steps: list[int] = []
        self.positions: dict[str, list[Tensor]] = {n: [] for n, m in self._samplings.items() if isinstance(m, DclsSampling)}
        self.profiles: dict[str, list[list[Tensor]]] = {n: [] for n, m in self._samplings.items() if isinstance(m, CCSampling)}
        self.graded: set[str] = set()
        self.windows = {name: tuple(sampling.window) for name, sampling in self._samplings.items()}
        self.axes = {name: m.axes for name, m in self._samplings.items() if isinstance(m, DclsSampling)}
        self._record()

    def step(self) -> None:
        """One step on: look at the gradients, and record if it is time."""
        self.done += 1
        for name, sampling in self._samplings.items():
            if name not in self.graded and any(_graded(p) for p in sampling.parameters()):
                self.graded.add(name)
        if self.done % self.every == 0:
            self._record()

    @torch.no_grad()
    def _record(self) -> None:
        self.steps.append(self.done)
        with gathered(self.model):
            for name, sampling in self._samplings.items():
                if isinstance(sampling, DclsSampling):
                    self.positions[name].append(sampling.positions().float().cpu().clone())
                elif isinstance(sampling, CCSampling):
                    self.profiles[name].append(_profiles(sampling))

    def movements(self) -> list[Movement]:
        """One for each site, in the model's order."""
        found: list[Movement] = []
        for name in self._samplings:
            if name in self.positions:
                first, last = self.positions[name][0], self.positions[name][-1]
                kind, largest = "DCLS", (last - first).square().sum(0).sqrt().max()
            else:
                pairs = zip(self.profiles[name][0], self.profiles[name][-1], strict=True)
                kind, largest = "CC", torch.stack([(last - first).abs().max() for first, last in pairs]).max()
            found.append(Movement(name, kind, float(largest), name in self.graded))
        return found

    def __str__(self) -> str:
        rows = [(m.site, m.kind, f"{m.largest:.3g}", "yes" if m.graded else "never") for m in self.movements()]
        return tabulate(
            rows,
            ["site", "kind", "largest move", "gradient"],
            colalign=("left", "left", "right", "left"),
            disable_numparse=True,
        )

    def state_dict(self) -> dict[str, Any]:
        """All that was recorded."""
        kept = {"positions": self.positions, "profiles": self.profiles}
        return {"done": self.done, "steps": self.steps, "graded": sorted(self.graded), **kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a stored state."""
        self.done, self.steps, self.graded = state["done"], list(state["steps"]), set(state["graded"])
        self.positions, self.profiles = state["positions"], state["profiles"]


def _profiles(sampling: CCSampling) -> list[Tensor]:
    found: list[Tensor] = []
    for axis, along in enumerate(sampling._along()):
        half = along.twice_support / 2
        taps = torch.arange(sampling.kernel_size[axis], device=along.layers[0].device)
        places = torch.linspace(-half, half, round(2 * half * FINENESS) + 1, dtype=along.dtype, device=taps.device)
        found.append(profile(places, taps, along)[0].float().cpu())
    return found


def _graded(parameter: nn.Parameter) -> bool:
    gradient: Any = parameter.grad
    if gradient is None:
        return False
    return bool((gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient).any())
