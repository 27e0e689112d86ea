"""``lower``: a compiled model in which every site runs in its cheapest form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import torch
from tabulate import tabulate
from torch import nn

from ccrewrite.capture import Inputs
from ccrewrite.errors import InputError
from ccrewrite.lowering import inductor
from ccrewrite.lowering.calls import SiteCall, site_calls
from ccrewrite.lowering.estimate import estimates
from ccrewrite.lowering.measure import cache_key, load_times, measure, save_times
from ccrewrite.nn.dcls import DclsSampling
from ccrewrite.passes.fold import find, fold, sampling_at

MODES = ("inference", "training")
WORTH_MEASURING = 5.0
"""Forms whose estimate is so many times the best one's are not measured."""


@dataclass(frozen=True)
class Choice:
    """The form that a site takes, and why.

    ``how`` is "measured", "cached" (measured before), "estimated", "forced", "only" (there is no other), "not run", or in
    inference "folded". ``milliseconds`` are those of each form that was looked at, measured or estimated.
    """

    site: str
    form: str
    how: str
    milliseconds: dict[str, float]


@dataclass(frozen=True)
class Lowered:
    """What ``lower`` returns: ``model``, compiled, and the choice for every site."""

    model: nn.Module
    mode: str
    choices: tuple[Choice, ...]

    def explain(self) -> str:
        """The choices as a table."""
        rows = [
            {
                "site": c.site,
                "form": c.form,
                "how": c.how,
                "milliseconds": ", ".join(
                    f"{form} {ms:.3g}" for form, ms in sorted(c.milliseconds.items(), key=lambda i: i[1])
                ),
            }
            for c in self.choices
        ]
        return tabulate(rows, headers="keys", disable_numparse=True)

    def to_json(self) -> str:
        return json.dumps({"mode": self.mode, "choices": [asdict(c) for c in self.choices]}, indent=2)

    def __str__(self) -> str:
        return self.explain()


def lower(
    model: nn.Module,
    example_inputs: Any,
    *,
    mode: Literal["inference", "training"] = "inference",
    forms: Mapping[str, str] | None = None,
    measured: bool = True,
    dynamic: bool | None = None,
    fullgraph: bool = False,
) -> Lowered:
    """Compile a rewritten model with torch.compile and Inductor, every site in the cheapest form for its shapes.

    "inference": a copy without learnable geometry (``ccrewrite.fold``), so that no kernel is built at run time; later changes
    of ``model`` don't reach it. "training": ``model`` itself, with its parameters. Each DCLS site's form is chosen among those
    that its geometry allows (``sampling.forms``), for the shapes that ``example_inputs`` give: by compiling and timing them on
    this device (``measured``; the times are kept on disk, see ``ccrewrite.lowering.measure.cache_file``), or else by an
    estimate. ``forms`` forces a choice: site name -> form. The choice is written to ``sampling.form``; eager code ignores it
    where the form only pays when compiled. Inputs of other sizes run too, in the form chosen for these.

    ``dynamic`` and ``fullgraph`` are torch.compile's.

    Raises ``InputError`` for an unknown mode, site or form, and where nothing in ``model`` was rewritten.

    >>> import ccrewrite
    >>> model, x = nn.Conv2d(8, 8, 3, dilation=4, padding=4), torch.randn(1, 8, 16, 16)
    >>> lowered = lower(ccrewrite.rewrite(model, x).model, x, mode="training", measured=False)
    >>> [(c.site, c.how) for c in lowered.choices]
    [('(root)', 'estimated')]
    """
    if mode not in MODES:
        raise InputError(f"mode must be 'inference' or 'training', found {mode!r}")
    places = find(model)
    if not places:
        raise InputError(
            f"nothing in this {type(model).__name__} was rewritten, so there is nothing to lower; use torch.compile"
        )
    forced = dict(forms or {})
    unknown = forced.keys() - places.keys()
    if unknown:
        raise InputError(f"forms names {', '.join(sorted(unknown))}; the rewritten sites are {', '.join(places)}")
    if mode == "inference":
        if forced:
            raise InputError("forms are chosen by ccrewrite.fold in inference, which has no others; leave forms out")
        folded = fold(model, example_inputs)
        choices = tuple(Choice(site.name, site.code, "folded", {}) for site in folded)
        model = folded.model.eval()
    else:
        samplings = {name: sampling_at(model, place) for name, place in places.items()}
        dcls = {name: s for name, s in samplings.items() if isinstance(s, DclsSampling)}
        _check_forced(forced, dcls)
        calls = site_calls(model, Inputs.of(example_inputs), dcls)
        chosen = _choose(calls, forced, measured)
        for name, sampling in dcls.items():
            sampling.form = chosen[name].form if name in chosen else forced.get(name)
        choices = tuple(chosen.get(n) or _without_choice(n, s) for n, s in samplings.items())
    compiled = torch.compile(model, dynamic=dynamic, fullgraph=fullgraph, options=inductor.options())
    return Lowered(cast(nn.Module, compiled), mode, choices)


def _check_forced(forced: Mapping[str, str], dcls: Mapping[str, DclsSampling]) -> None:
    for name, form in forced.items():
        allowed = dcls[name].forms if name in dcls else ()
        if form not in allowed:
            has = f"has the forms {', '.join(allowed)}" if allowed else "has one form only"
            raise InputError(f"site {name} can't take the form {form!r}; it {has}")


def _without_choice(name: str, sampling: nn.Module) -> Choice:
    if isinstance(sampling, DclsSampling):
        return Choice(name, sampling.form or sampling.default_form, "not run", {})
    return Choice(name, "native", "only", {})


def _choose(calls: Mapping[str, SiteCall], forced: Mapping[str, str], measured: bool) -> dict[str, Choice]:
    known = load_times() if measured else {}
    new: dict[str, dict[str, float]] = {}
    chosen: dict[str, Choice] = {}
    for name, site in calls.items():
        guessed = {form: 1e-9 * ns for form, ns in estimates(site, training=True).items()}
        best = min(guessed.values())
        worth = [form for form, seconds in guessed.items() if seconds <= WORTH_MEASURING * best]
        if name in forced:
            how, times = "forced", {forced[name]: guessed[forced[name]]}
        elif len(guessed) == 1:
            how, times = "only", guessed
        elif not measured or len(worth) == 1:
            how, times = "estimated", guessed
        else:
            key = cache_key(site, training=True)
            how = "cached" if key in known else "measured"
            if key not in known:
                known[key] = new[key] = measure(site, worth, training=True)
            times = known[key]
        milliseconds = {form: 1e3 * seconds for form, seconds in times.items()}
        chosen[name] = Choice(name, min(times, key=lambda form: times[form]), how, milliseconds)
    if new:
        save_times(new)
    return chosen
