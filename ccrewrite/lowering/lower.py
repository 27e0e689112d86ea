"""``lower``: a compiled model in which every site runs in its cheapest form."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

import torch
from tabulate import tabulate
from torch import nn

from ccrewrite.errors import InputError
from ccrewrite.families.adopt import RewrittenConv
from ccrewrite.families.dcls.sampling import DclsSampling
from ccrewrite.ir.capture import Inputs
from ccrewrite.lowering import inductor
from ccrewrite.lowering.calls import SiteCall, layer_shapes, site_calls
from ccrewrite.lowering.estimate import estimates
from ccrewrite.lowering.measure import cache_key, load_times, measure, measure_folded, save_times
from ccrewrite.passes.fold.fold import alternatives, find, fold, sampling_at

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
    of ``model`` don't reach it. "training": ``model`` itself, with its parameters; each DCLS site's choice is written to
    ``sampling.form``, which eager code ignores where the form only pays when compiled.

    Where a site can take several forms (``sampling.forms`` in training, in inference "dense" or what
    ``ccrewrite.passes.fold.fold.alternatives`` says), they are compiled and timed on this device at the shapes that
    ``example_inputs`` give (``measured``; the times are kept on disk, see ``ccrewrite.lowering.measure.cache_file``), or else
    an estimate decides. ``forms`` forces a choice: site name -> form. Inputs of other sizes run too, in the form chosen for
    these.

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
        chosen = _choose_folded(model, Inputs.of(example_inputs), forced) if measured else dict[str, Choice]()
        folded = fold(model, example_inputs, forms={n: c.form for n, c in chosen.items()} | forced)
        choices = tuple(_folded_choice(site.name, site.code, chosen, forced) for site in folded)
        model = folded.model.eval()
    else:
        samplings = {name: sampling_at(model, place) for name, place in places.items()}
        dcls = {name: s for name, s in samplings.items() if isinstance(s, DclsSampling)}
        _check_forced(forced, dcls)
        calls = site_calls(model, Inputs.of(example_inputs), dcls)
        chosen = _choose(calls, forced, measured)
        for sampling in samplings.values():
            sampling.opaque = True
        for name, sampling in dcls.items():
            sampling.form = chosen[name].form if name in chosen else forced.get(name)
        choices = tuple(chosen.get(n) or _without_choice(n, s) for n, s in samplings.items())
    compiled = torch.compile(model, dynamic=dynamic, fullgraph=fullgraph, options=inductor.options())
    return Lowered(cast(nn.Module, compiled), mode, choices)


def _folded_choice(name: str, code: str, chosen: Mapping[str, Choice], forced: Mapping[str, str]) -> Choice:
    if name in forced:
        return Choice(name, code, "forced", {})
    return replace(chosen[name], form=code) if name in chosen else Choice(name, code, "folded", {})


def _choose_folded(model: nn.Module, inputs: Inputs, forced: Mapping[str, str]) -> dict[str, Choice]:
    places = find(model)
    # Where one is clearly dearer, its dense kernel may be gigabytes of zeros: not tried.
    near = {
        name: other
        for name, other in alternatives(model).items()
        if name not in forced and 1 / WORTH_MEASURING < other.cost_of_dense < WORTH_MEASURING
    }
    layers = {name: cast(RewrittenConv, model.get_submodule(places[name].module)) for name in near}
    timed = _Timed()
    chosen: dict[str, Choice] = {}
    for name, shape in (layer_shapes(model, inputs, layers) if layers else {}).items():
        layer, other = layers[name], near[name]
        key = cache_key(
            next(layer.parameters()).device, "inference", tuple(shape), str(layer), other.form, other.kernel, other.samples
        )
        forms = (other.form, "dense")
        times, how = timed(key, lambda layer=layer, shape=shape, forms=forms: measure_folded(layer, shape, forms))
        chosen[name] = Choice(name, _fastest(times), how, _milliseconds(times))
    timed.keep()
    return chosen


class _Timed:
    """Times that are measured once: those on disk, and those of this run, which ``keep`` adds to them."""

    def __init__(self) -> None:
        self._known = load_times()
        self._new: dict[str, dict[str, float]] = {}

    def __call__(self, key: str, measured: Callable[[], dict[str, float]]) -> tuple[dict[str, float], str]:
        """(Seconds by form, "measured" or "cached")."""
        how = "cached" if key in self._known else "measured"
        if key not in self._known:
            self._known[key] = self._new[key] = measured()
        return self._known[key], how

    def keep(self) -> None:
        if self._new:
            save_times(self._new)


def _fastest(times: Mapping[str, float]) -> str:
    return min(times, key=lambda form: times[form])


def _milliseconds(seconds: Mapping[str, float]) -> dict[str, float]:
    return {form: 1e3 * s for form, s in seconds.items()}


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
    timed = _Timed() if measured else None
    chosen: dict[str, Choice] = {}
    for name, site in calls.items():
        guessed = {form: 1e-9 * ns for form, ns in estimates(site, training=True).items()}
        worth = [form for form, seconds in guessed.items() if seconds <= WORTH_MEASURING * min(guessed.values())]
        if name in forced:
            how, times = "forced", {forced[name]: guessed[forced[name]]}
        elif len(guessed) == 1:
            how, times = "only", guessed
        elif timed is None or len(worth) == 1:
            how, times = "estimated", guessed
        else:
            key = cache_key(site.device, "training", site.key())
            times, how = timed(key, lambda site=site, worth=worth: measure(site, worth))
        chosen[name] = Choice(name, _fastest(times), how, _milliseconds(times))
    if timed is not None:
        timed.keep()
    return chosen
