"""The words of a plan: ``Site``, ``Decision``, ``Plan``, and the codes that say why a site was left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ccrewrite.ir.costs import Cost
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.json_types import JsonObject
from ccrewrite.ir.names import hits
from ccrewrite.ir.outcome import SiteTable

REASONS: dict[str, str] = {
    "plain": "an undilated convolution of stride 1: its sampling grid has nothing to learn",
    "large": "a large dense kernel: the rule that makes those sparse is not exact, and off unless asked for",
    "not-selected": "left out by include, exclude, kinds, or a pattern of rules",
    "no-rule": "no rule in `rules` takes it",
    "refused": "a rule takes its kind, but not this one",
    "never-called": "registered, but the example inputs don't reach it",
    "already-rewritten": "a layer of ccrewrite's already",
    "complex-dtype": "complex weights",
    "scripted": "inside a TorchScript module, whose code can't be changed from Python",
    "quantized": "a quantized convolution: its integer weights have no gradient",
    "opaque": "called by native code or as an operator, not as a function of torch's",
    "control-flow": "called in a branch or loop of `torch.cond`, `torch.while_loop` or their like, which trace what they run",
    "autograd-function": "called inside a `torch.autograd.Function`, whose backward knows nothing of the geometry",
    "other-object": "a method of an object that is no module, but holds one or its weight, makes the call",
    "wrapped-function": "called in a function that an fx graph calls as a whole (`torch.fx.wrap`)",
    "shared-weight": "a functional call on the weight of a convolution module that is called too",
    "several-calls": "a convolution class whose own forward makes several different convolutions",
    "ambiguous-call": "its weight is computed, and another call below the same module looks the same",
    "name-taken": "an attribute is called `sampling`, or `ccrewrite` of a functional call's host, where the geometry would go",
    "adapter": "part of an adapter (PEFT's LoRA), whose merging knows nothing of geometry",
    "verification-failed": "the outputs changed when it was rewritten, so it was put back",
}
"""Code -> what it means, in general; a decision's message gives the values. docs/reasons.md has a section for each."""


ROOT = "(root)"
"""Name of a site that is the model itself."""


@dataclass(frozen=True)
class Decision:
    """What happens to a site. ``code`` is the name of the rule that rewrites it, or a key of ``REASONS``."""

    rewritten: bool
    code: str
    message: str


UNDECIDED = Decision(False, "undecided", "")


@dataclass(frozen=True)
class Site:
    """A convolution of the model: all the calls with one weight and geometry.

    ``name`` is the module's path, or for a functional call that of its weight (``"up.kernel"``) or of the module whose forward
    calls it and the function (``"up:conv1d"``); a second one is ``"up:conv1d#2"``. ``aliases`` are the names at other paths
    under which the module is registered. ``functional``: its calls are of a torch function, not of a convolution module.
    ``calls`` counts the calls in one run; ``input_shapes`` and ``output_shapes`` are theirs. ``module`` is the path of the
    calling module; ``weight`` the name of the parameter or buffer, None if computed.
    """

    name: str
    aliases: tuple[str, ...]
    functional: bool
    layer: str
    geometry: ConvGeometry
    calls: int
    input_shapes: tuple[tuple[int, ...], ...]
    output_shapes: tuple[tuple[int, ...], ...]
    module: str
    weight: str | None
    dtype: torch.dtype
    device: torch.device
    decision: Decision = UNDECIDED

    @property
    def kinds(self) -> tuple[str, ...]:
        """See ``ConvGeometry.kinds``."""
        return self.geometry.kinds

    @property
    def code(self) -> str:
        """The decision's."""
        return self.decision.code

    @property
    def message(self) -> str:
        """The decision's."""
        return self.decision.message

    @property
    def written_form(self) -> str:
        """``functional``, as files have it since version 0.1.0."""
        return "functional" if self.functional else "module"

    def matches(self, pattern: str) -> bool:
        """Whether a name, glob or ``re:...`` hits this site under its name or an alias (``ccrewrite.ir.names``)."""
        return hits(pattern, (self.name, *self.aliases))

    def to_dict(self) -> JsonObject:
        plain = {"form": self.written_form, "dtype": str(self.dtype).removeprefix("torch."), "device": str(self.device)}
        told = {name: value for name, value in asdict(self).items() if name != "functional"}
        return told | {"kinds": self.kinds} | plain


@dataclass(frozen=True)
class Plan(SiteTable[Site]):
    """Every convolution site of a run with its decision, in the order of the run. ``print`` shows what is rewritten,
    ``table(all=True)`` is the whole, ``to_json()`` has it as data.

    ``how`` says how the run was captured ("export", "observed" or "graph"), ``note`` why export was not used. ``costs`` has
    what each rewritten site costs once it has moved, by name, where ``plan(..., costs=True)`` asked for it.
    """

    sites: tuple[Site, ...]
    rules: tuple[Any, ...]
    how: str
    note: str = ""
    costs: Mapping[str, Cost] = field(default_factory=dict[str, Cost])

    @property
    def rewritten(self) -> tuple[Site, ...]:
        return tuple(s for s in self.sites if s.decision.rewritten)

    def summary(self) -> str:
        """One line: how many sites, how many rewritten, the others by code."""
        codes = Counter(s.code for s in self.sites if not s.decision.rewritten)
        others = ", ".join(f"{n} {code}" for code, n in codes.most_common())
        return f"{len(self.sites)} sites: {len(self.rewritten)} rewritten" + (f"; left alone: {others}" if others else "")

    def rows(self) -> list[dict[str, str]]:
        return [
            {
                "site": s.name,
                "layer": s.layer,
                "kinds": " ".join(s.kinds),
                "geometry": s.geometry.describe(),
                "calls": str(s.calls),
                "decision": s.code,
                **self._cost(s),
                "message": s.message,
            }
            for s in self.sites
        ]

    def notes(self) -> list[str]:
        """What to do about sites that cost much."""
        advice = [cost.advice(name) for name, cost in self.costs.items()]
        where = "time and step: inference and a training step once moved, over the plain convolution's" if self.costs else ""
        return [line for line in (where, *advice) if line]

    def _cost(self, site: Site) -> dict[str, str]:
        if not self.costs:
            return {}
        found = self.costs.get(site.name)
        return dict.fromkeys(next(iter(self.costs.values())).cells(), "") if found is None else found.cells()

    def shown(self) -> list[dict[str, str]]:
        """The rows of sites that are rewritten, or were put back; where there are none, all: they say why not."""
        told = [
            row
            for site, row in zip(self.sites, self.rows(), strict=True)
            if site.decision.rewritten or site.code == "verification-failed"
        ]
        return told or self.rows()

    def to_dict(self) -> JsonObject:
        """As plain data: ``{"how", "note", "rules", "sites"}``, and ``"costs"`` by site where they were asked for."""
        rules = [{"rule": rule.name, **asdict(rule)} for rule in self.rules]
        found = {"how": self.how, "note": self.note, "rules": rules, "sites": [s.to_dict() for s in self.sites]}
        return found | ({"costs": {name: cost.to_dict() for name, cost in self.costs.items()}} if self.costs else {})
