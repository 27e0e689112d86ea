"""Watch geometry while it trains: where taps go, what shapes continuous kernels take, which sites never move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.families.family import title_of
from ccrewrite.families.learnable import Recording
from ccrewrite.families.sites import named_samplings, rewritten_sites
from ccrewrite.ir.outcome import GivenModel, model_of
from ccrewrite.ir.sites import ROOT
from ccrewrite.training.sharded import Sharded, gathered


@dataclass(frozen=True)
class Movement:
    """How far one site's geometry has gone since the recording began.

    ``kind``: its family's title. ``largest``: of DCLS layers the longest way of a tap, in samples; of CC layers the largest
    change of a tap's continuous kernel, whose height is 1; of others as ``Recording.change`` says. ``graded``: whether any of
    its parameters ever had a gradient other than 0.
    """

    site: str
    kind: str
    largest: float
    graded: bool


class Recorder:
    """Records the geometry of all rewritten sites of a model, now and then after every ``every`` steps.

    Call ``step()`` after the optimizer's step and before gradients are cleared (``finetune(..., schedules=[recorder])`` does);
    in several processes, in all of them. Drawn by ``ccrewrite.training.pictures``.

    ``steps`` has the steps recorded, 0 first, and ``recordings`` by site a ``Recording`` for each of them, whose tensors are
    copies on the CPU, in float32. Of a DCLS layer that is a ``(axes, A, B, *taps)`` tensor, in samples from the window's
    centre; of a CC layer, for each axis, ``(taps, places)``, the continuous kernels of its taps; of others what their
    ``Sampling.recording`` gives, by default their parameters.

    Args:
        model: a rewritten model, or what ``rewrite`` returned.
        every: steps from one recording to the next.

    Raises:
        InputError: where nothing is rewritten.

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

    def __init__(self, model: GivenModel, *, every: int = 1) -> None:
        if every < 1:
            raise InputError(f"every must be at least 1 step, found {every}")
        self.model, self.every, self.done = model_of(model), every, 0
        self._samplings = named_samplings(self.model)
        if not self._samplings:
            raise InputError("nothing in the model is rewritten, so there is no geometry to record")
        self.steps: list[int] = []
        self.recordings: dict[str, list[Recording]] = {name: [] for name in self._samplings}
        self.graded: set[str] = set()
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
                now = sampling.recording()
                kept = [t.detach().to("cpu", torch.float32, copy=True) for t in now.tensors]
                self.recordings[name].append(now._replace(tensors=kept))

    def movements(self) -> list[Movement]:
        """One for each site, in the model's order."""
        return [
            Movement(name, title_of(sampling), found[-1].change(found[0].tensors), name in self.graded)
            for (name, sampling), found in zip(self._samplings.items(), self.recordings.values(), strict=True)
        ]

    def __str__(self) -> str:
        rows = [(m.site, m.kind, f"{m.largest:.3g}", "yes" if m.graded else "never") for m in self.movements()]
        return tabulate(
            rows,
            ["site", "kind", "largest move", "gradient"],
            colalign=("left", "left", "right", "left"),
            disable_numparse=True,
        )

    def state_dict(self) -> dict[str, Any]:
        """All that was recorded, as plain values and tensors."""
        kept = {name: [r.tensors for r in found] for name, found in self.recordings.items()}
        return {"done": self.done, "steps": self.steps, "graded": sorted(self.graded), "recorded": kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a stored state, of the same model."""
        if "recorded" not in state:
            state = _since_version_1(state, self.model)
        self.done, self.steps, self.graded = state["done"], list(state["steps"]), set(state["graded"])
        recorded: dict[str, list[list[Tensor]]] = state["recorded"]
        for name, found in self.recordings.items():
            self.recordings[name] = [found[0]._replace(tensors=tensors) for tensors in recorded[name]]


def _since_version_1(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """A state that ccrewrite 0.1.0 stored: positions one tensor each, profiles a list of one for each axis; functional sites
    had the names of their samplings, and a model that is itself the layer was called "model"."""
    names = {alias: name for name, site in rewritten_sites(model).items() for alias in site.aliases} | {"model": ROOT}
    recorded = {name: [[positions] for positions in found] for name, found in state["positions"].items()} | state["profiles"]
    graded = [names.get(name, name) for name in state["graded"]]
    return {**state, "graded": graded, "recorded": {names.get(name, name): found for name, found in recorded.items()}}


def _graded(parameter: nn.Parameter) -> bool:
    gradient = parameter.grad
    if gradient is None:
        return False
    return bool((gradient.full_tensor() if isinstance(gradient, Sharded) else gradient).any())
