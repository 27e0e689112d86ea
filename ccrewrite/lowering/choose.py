"""Which form each site takes: by measurement on this device, or else by estimate."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ccrewrite.errors import InputError
from ccrewrite.families.sampling import Sampling
from ccrewrite.families.sites import rewritten_sites
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.choice import Choice
from ccrewrite.ir.progress import step
from ccrewrite.lowering.calls import SiteCall
from ccrewrite.lowering.measure import measure, measure_folded
from ccrewrite.lowering.times import Times, cache_key
from ccrewrite.passes.fold.choose import Question, chosen

WORTH_MEASURING = 5.0
"""Forms whose estimate is so many times the best one's are not measured."""


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
    found: dict[str, Choice] = {}
    for done, (name, site) in enumerate(calls.items()):
        step("lower", f"choosing the form of {name}", done / len(calls))
        found[name] = _choice(site, forced.get(name), times)
    if times is not None:
        times.keep()
    return found


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
    """The form of each site that can be folded to several, unless it is ``forced``; compiled, and timed."""
    times = Times()

    def judge(question: Question) -> Choice:
        key = cache_key(question.input.device, "inference", question.key)
        seconds, known = times.of(key, question.forms, lambda: measure_folded(question))
        return Choice.fastest("cached" if known else "measured", seconds)

    found = chosen(model, inputs, [name for name in rewritten_sites(model) if name not in forced], judge)
    times.keep()
    return found
