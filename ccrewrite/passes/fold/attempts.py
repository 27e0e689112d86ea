"""A model folded in several ways, until it computes what it did before: ``fold_verified``."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import cast

from torch import nn

from ccrewrite.errors import ModelRunError
from ccrewrite.families.adopt import RewrittenConv
from ccrewrite.families.sites import RewrittenSite, rewritten_sites
from ccrewrite.families.stored import settle_
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.check import Check, OutputCheck
from ccrewrite.ir.torch_private import submodules_of
from ccrewrite.ir.typed import named_modules
from ccrewrite.passes.fold.layers import fold_hosted_, fold_layer_
from ccrewrite.passes.fold.resized import Shapes, resized_layer
from ccrewrite.passes.fold.sites import Answer, Folded, FoldedSite
from ccrewrite.passes.fold.snap import Loss
from ccrewrite.passes.fold.weights import evaluating
from ccrewrite.passes.noise import JUDGED, Judged, judged, with_noise
from ccrewrite.passes.substitute import copied
from ccrewrite.passes.targets import Target
from ccrewrite.passes.verify import compare_outputs, culprits, outputs_of


class Way(IntEnum):
    """How a site is folded. A site that changes the outputs when it is folded in one way is folded in the next."""

    OWN_WEIGHT = 0
    """Its layer gets the weight and the attributes that suit the geometry."""
    SAME_WEIGHT = 1
    """Weight and attributes stay, for something else reads them; the geometry is applied to the weight at each call."""
    LEFT = 2
    """It stays learnable."""


Ways = Mapping[str, Way]
"""The selected sites, by name, and how each one is folded."""


@dataclass(frozen=True)
class Attempt:
    """A copy of the model with its sites folded in some ways, what became of each, and its outputs compared."""

    model: nn.Module
    sites: tuple[FoldedSite, ...]
    outputs: tuple[OutputCheck, ...]
    fault: str = ""
    """What is wrong with its sites, where the outputs differ."""
    noise: str = ""
    """What rounding does to the model, where the outputs differ by that alone."""

    @property
    def failure(self) -> str:
        """What is wrong with the outputs; empty where nothing is."""
        wrong = next((o for o in self.outputs if not o.ok), None)
        return "" if wrong is None else self.fault or wrong.note or f"{wrong.path} changed by {wrong.max_rel_error:.1e}"

    def folded(self, note: str = "") -> Folded:
        return Folded(self.model, self.sites, Check(self.outputs, True, note or self.noise))


@dataclass
class Attempts:
    """A rewritten model that is to be folded, and what is known of its sites.

    ``before`` are its outputs. ``forms`` are what sites are forced to become, ``shapes`` what the layers that ask for a size
    are called with, ``losses`` what snapping did, ``target`` what must take the layers. ``reasons`` says why a site can't be
    folded in the way that was tried last.
    """

    model: nn.Module
    inputs: Inputs
    before: Mapping[str, object]
    forms: Mapping[str, str]
    shapes: Shapes
    losses: Mapping[str, Loss]
    target: Target | None = None
    reasons: dict[str, str] = field(default_factory=dict[str, str])

    def of(self, ways: Ways) -> Attempt:
        """A copy with the sites folded in these ways."""
        model = copied(self.model)
        sites: list[FoldedSite] = []
        for name, site in rewritten_sites(model).items():
            layer, window = site.layer, site.sampling.window
            model, answer = self._with_site(model, site, ways.get(name))
            sites.append(FoldedSite(name, layer, window, *answer, *self.losses.get(name, Loss())))
        settle_(model)
        return self._settled(Attempt(model, tuple(sites), compared(self.before, model, self.inputs)))

    def _settled(self, attempt: Attempt) -> Attempt:
        """``attempt``, where its outputs differ: whether a site does so, or rounding alone."""
        if all(o.ok or o.max_rel_error == math.inf for o in attempt.outputs):
            return attempt

        def run(inputs: Inputs) -> Mapping[str, object]:
            return outputs_of(self.model, inputs)

        modules, pairs = dict(named_modules(attempt.model)), list[Judged]()
        for name, site in rewritten_sites(self.model).items():
            path = site.path if site.key is None else site.sampling_paths[0]
            if path in modules:  # else the original call is back
                pairs.append((name, modules[path], (site.module if site.key is None else site.sampling).forward))
        with evaluating(self.model):
            fault = judged(lambda: outputs_of(attempt.model, self.inputs), pairs, self.before)
        if fault:
            return replace(attempt, fault=fault)
        outputs, noise = with_noise(attempt.outputs, run, self.inputs, roundings=JUDGED)
        return replace(attempt, outputs=outputs, noise=noise)

    def right_with(self, names: Sequence[str], ways: Ways, least: Way) -> bool:
        """Whether the outputs stay the same with ``names`` in their ``ways``, every other site in ``least`` or a later one."""
        tried = {name: way if name in names else max(way, least) for name, way in ways.items()}
        failure = self.of(tried).failure
        if failure and len(names) == 1:
            self.reasons[names[0]] = failure
        return not failure

    def _with_site(self, model: nn.Module, site: RewrittenSite, way: Way | None) -> tuple[nn.Module, Answer]:
        """``model`` with one site folded, in place or (where it is that site) another one; what became of the site."""
        if way is None:
            return model, Answer("not-selected", "still learnable")
        if way is Way.LEFT:
            return model, Answer("verification-failed", self.reasons.get(site.name, ""))
        if site.key is not None:
            return model, fold_hosted_(site.module, site.key)
        layer = cast(RewrittenConv, site.module)
        resized = resized_layer(layer, self.shapes[site.name]) if site.name in self.shapes else None
        if resized is not None:
            size = "x".join(map(str, resized.size))
            return _exchanged(model, layer, resized), Answer("resized", f"for inputs of {size} samples")
        return model, fold_layer_(layer, keep=way is Way.SAME_WEIGHT, form=self.forms.get(site.name), target=self.target)


def fold_verified(attempts: Attempts, chosen: Sequence[str]) -> Folded:
    """``attempts``'s model with each site of ``chosen`` folded in the first way that leaves the outputs as they are."""
    ways = dict.fromkeys(chosen, Way.OWN_WEIGHT)
    attempt = attempts.of(ways)
    if not attempt.failure:
        return attempt.folded()
    again = outputs_of(attempts.model, attempts.inputs)
    if not all(o.ok for o in compare_outputs(attempts.before, again)):
        return attempt.folded("two runs of the rewritten model differ as well: it is not deterministic")
    for way in (Way.SAME_WEIGHT, Way.LEFT):
        candidates = [name for name, now in ways.items() if now < way]
        failing = culprits(candidates, functools.partial(attempts.right_with, ways=ways, least=way))
        ways |= dict.fromkeys(failing, way)
        attempt = attempts.of(ways)
        if not attempt.failure:
            return attempt.folded()
    return attempt.folded("sites that are right by themselves differ together")


def compared(before: Mapping[str, object], folded: nn.Module, inputs: Inputs) -> tuple[OutputCheck, ...]:
    """The outputs of a folded model, or the error that it raises, against those of the model ``before``."""
    try:
        return compare_outputs(before, outputs_of(folded, inputs))
    except ModelRunError as error:
        note = f"the folded model raised {type(error.__cause__).__name__}: {error.__cause__}"
        return (OutputCheck("output", "", (), math.inf, math.inf, 0, False, note),)


def _exchanged(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """``model`` with one module for another, wherever it is registered."""
    for path, module in list(named_modules(model, remove_duplicate=False)):
        if module is old and path:
            owner, _, name = path.rpartition(".")
            submodules_of(model.get_submodule(owner))[name] = new
    return new if model is old else model
