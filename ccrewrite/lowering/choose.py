"""Which form each site takes: by measurement on this device, or else by estimate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

from torch import nn

from ccrewrite.errors import InputError
from ccrewrite.families.adopt import RewrittenConv
from ccrewrite.families.sampling import Sampling
from ccrewrite.families.sites import rewritten_sites
from ccrewrite.folded.alternative import Alternative
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.observe import Like, module_calls
from ccrewrite.ir.progress import step
from ccrewrite.lowering.calls import SiteCall
from ccrewrite.lowering.measure import measure, measure_folded
from ccrewrite.lowering.times import Seconds, Times, cache_key
from ccrewrite.passes.fold import alternatives
from ccrewrite.passes.fold.layers import DENSE

WORTH_MEASURING = 5.0
"""Forms whose estimate is so many times the best one's are not measured."""


class Choice(NamedTuple):
    """A form, how it was chosen (a key of ``ccrewrite.lowering.lowered.HOW``), and the times that it was chosen by."""

    form: str
    how: str
    seconds: Seconds

    @classmethod
    def fastest(cls, how: str, seconds: Seconds) -> Choice:
        return cls(min(seconds, key=lambda form: seconds[form]), how, seconds)


def check_forced(forced: Mapping[str, str], samplings: Mapping[str, Sampling]) -> None:
    """Raise ``InputError`` where a site has no such form."""
    for name, form in forced.items():
        forms = samplings[name].forms
        if form not in forms:
            has = "the forms" if len(forms) > 1 else "one form only,"
            raise InputError(f"site {name} can't take the form {form!r}; it has {has} {', '.join(forms)}")


def choose(calls: Mapping[str, SiteCall], forced: Mapping[str, str], measured: bool) -> dict[str, Choice]:
    """The form of each site in training. Where a site has several, those whose estimate comes near the best are measured."""
    times = Times() if measured else None
    chosen: dict[str, Choice] = {}
    for done, (name, site) in enumerate(calls.items()):
        step("lower", f"choosing the form of {name}", done / len(calls))
        chosen[name] = _choice(site, forced.get(name), times)
    if times is not None:
        times.keep()
    return chosen


def _choice(site: SiteCall, forced: str | None, times: Times | None) -> Choice:
    if forced is None and len(site.sampling.forms) == 1:
        return Choice(site.sampling.default_form, "only", {})
    guessed = site.sampling.estimates(site.shapes, training=True)
    if forced is not None:
        return Choice(forced, "forced", {forced: guessed[forced]})
    order = sorted(guessed, key=lambda form: guessed[form])
    near = [form for form in order if guessed[form] <= WORTH_MEASURING * guessed[order[0]]]
    if times is None or len(near) == 1:
        return Choice.fastest("estimated", guessed)
    seconds, known = times.of(key_of(site), near, lambda: measure(site, near))
    return Choice.fastest("cached" if known else "measured", seconds)


def key_of(site: SiteCall) -> str | None:
    """Equal for sites that are evaluated alike; None where the sampling doesn't say its options."""
    s = site.sampling
    try:
        options = s.options()
    except InputError:
        return None
    kind = f"{type(s).__module__}.{type(s).__qualname__}"
    return cache_key(site.shapes.device, "training", kind, s.geometry, options, s.forms, site.shapes)


def choose_folded(model: nn.Module, inputs: Inputs, forced: Mapping[str, str]) -> dict[str, Choice]:
    """The form of each site that can be folded to several. Where one is clearly dearer it is not tried: its dense kernel may be
    gigabytes of zeros."""
    sites, near = rewritten_sites(model), dict[str, list[Alternative]]()
    for name, offered in alternatives(model).items():
        worth = [a for a in offered if 1 / WORTH_MEASURING < a.cost_of_dense < WORTH_MEASURING]
        if worth and name not in forced:
            near[name] = worth
    layers = {name: cast(RewrittenConv, sites[name].module) for name in near}
    times = Times()
    chosen: dict[str, Choice] = {}
    for done, (name, calls) in enumerate(module_calls(model, inputs, layers).items()):
        step("lower", f"choosing the form of {name}", done / len(layers))
        if not calls:
            continue
        layer, input = layers[name], cast(Like, calls[0].args[0])
        forms = (*(a.name for a in near[name]), DENSE)
        told = [(a.name, a.cost_of_dense, a.kernel, a.samples) for a in near[name]]
        key = cache_key(input.device, "inference", input.shape, str(layer), told)
        seconds, known = times.of(
            key, forms, lambda layer=layer, input=input, forms=forms: measure_folded(layer, input.shape, forms)
        )
        chosen[name] = Choice.fastest("cached" if known else "measured", seconds)
    times.keep()
    return chosen
