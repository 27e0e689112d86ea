"""Plan -> rewritten and verified model: substitute, compare, put back what fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import nn

from ccrewrite.errors import ModelRunError
from ccrewrite.families.rule import Rule
from ccrewrite.families.stored import settle_
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.check import TOLERANCE, Check
from ccrewrite.ir.progress import step
from ccrewrite.ir.sites import Decision, Plan, Site
from ccrewrite.passes.gradients import Reference
from ccrewrite.passes.rules import rule_for
from ccrewrite.passes.substitute import Substitution, copied, substitute_
from ccrewrite.passes.verify import built_error, called, compare_outputs, culprits, outputs_of

log = logging.getLogger(__name__)


def carry_out_(
    model: nn.Module, original: nn.Module | None, planned: Plan, inputs: Inputs, *, gradients: bool = True
) -> tuple[Plan, Check]:
    """Rewrite the sites of ``planned`` in ``model``, compare with ``original`` (None: with ``model`` as it is now) and
    put back what fails, in ``gradients`` too; the plan as carried out, and the comparison. Where it raises, ``model`` is as it
    was.

    Sites of rules that are not exact are rewritten after the comparison: they change the outputs by design.
    """
    rule_of = {site.name: cast(Rule, rule_for(site, planned.rules)) for site in planned.rewritten}
    exact = {site.name: site for site in planned.rewritten if rule_of[site.name].exact}
    approximate = [site for site in planned.rewritten if site.name not in exact]
    step("rewrite", f"building the kernels of {len(exact)} sites")
    built = {name: built_error(site, rule_of[name]) for name, site in exact.items()}
    largest = max(built.values(), default=0.0)
    failures = {n: f"its kernel is off by {e:.1e} at the start" for n, e in built.items() if e > TOLERANCE[torch.float64]}
    good = [name for name in exact if name not in failures]
    if any(t.is_meta for t in inputs.tensors()) or any(site.device.type == "meta" for site in planned.sites):
        substitute_(model, [*(exact[name] for name in good), *approximate], planned.rules)
        return _with_failures(planned, failures), Check((), False, "nothing to run on the meta device", largest)

    step("rewrite", "comparing outputs with the original's")
    before = outputs_of(model if original is None else original, inputs)
    rewriting = _Rewriting(model, exact, planned.rules)
    plain = rewriting.plain if original is None else lambda: copied(original)
    reference = Reference(model if original is None else original, inputs, plain) if gradients and good else None
    try:
        found, note = _search(good, lambda names: _failure(rewriting.only_(names), exact, model, before, inputs, reference))
        rewriting.only_([name for name in good if name not in found])
        check = Check(compare_outputs(before, outputs_of(model, inputs)), True, note, largest)
        if not check.ok and not note:
            check = replace(check, note="two runs of the rewritten model differ as well: it is not deterministic")
        if reference is not None and reference.missing:
            check = replace(check, note="; ".join(filter(None, (check.note, f"gradients not compared: {reference.missing}"))))
        elif reference is not None:
            check = replace(check, gradients=reference.last)
        if approximate:
            substitute_(model, approximate, planned.rules)
            which = approximate[0].name if len(approximate) == 1 else f"{len(approximate)} sites"
            check = replace(check, note="; ".join(filter(None, (check.note, f"compared before {which} became approximate"))))
    except BaseException:
        rewriting.only_([])
        raise
    return _with_failures(planned, failures | found), check


class _Rewriting:
    """Which of ``sites`` are rewritten in ``model`` at the moment."""

    def __init__(self, model: nn.Module, sites: Mapping[str, Site], rules: Sequence[Rule]) -> None:
        self.model, self.sites, self.rules = model, sites, rules
        self.done: dict[str, Substitution] = {}

    def only_(self, names: Sequence[str]) -> Mapping[str, Substitution]:
        """Rewrite ``names``, and put back all others."""
        for name in [n for n in self.done if n not in names]:
            self.done.pop(name).undo()
        settle_(self.model)
        self.done |= substitute_(self.model, [self.sites[n] for n in names if n not in self.done], self.rules)
        return self.done

    def plain(self) -> nn.Module:
        """A copy of the model as it was before."""
        names = list(self.done)
        self.only_([])
        try:
            return copied(self.model)
        finally:
            self.only_(names)


def _search(names: Sequence[str], failure: Callable[[Sequence[str]], str]) -> tuple[dict[str, str], str]:
    """The sites among ``names`` that must be put back, with reasons, and a note where none can be told.

    ``failure(some)`` says what is wrong with the model where just ``some`` are rewritten; empty: nothing.
    """
    if not failure(names):
        return {}, ""
    if failure([]):
        return {}, "two runs of the original differ as well: it is not deterministic, so nothing was put back"
    found = {name: failure([name]) for name in culprits(names, lambda some: not failure(some))}
    rest = [name for name in names if name not in found]
    if failure(rest):
        found |= dict.fromkeys(rest, "right by itself, wrong together with the others")
    return found, ""


def _with_failures(planned: Plan, failures: Mapping[str, str]) -> Plan:
    for name, reason in failures.items():
        log.info("put back %s: %s", name, reason)
    decided = (
        replace(s, decision=Decision(False, "verification-failed", failures[s.name])) if s.name in failures else s
        for s in planned.sites
    )
    return replace(planned, sites=tuple(decided))


def _failure(
    done: Mapping[str, Substitution],
    sites: Mapping[str, Site],
    model: nn.Module,
    before: Mapping[str, object],
    inputs: Inputs,
    reference: Reference | None,
) -> str:
    """What is wrong with ``model`` after the substitutions ``done`` of some of ``sites``; empty where nothing is."""
    try:
        with called({name: substitution.sampling for name, substitution in done.items()}) as seen:
            after = outputs_of(model, inputs)
    except ModelRunError as error:
        return f"the rewritten model raised {type(error.__cause__).__name__}: {error.__cause__}"
    for name in done:
        if not seen[name]:
            return f"the call of {name} is not made by a function of torch.nn.functional, so it did not reach its sampling"
        if seen[name] != sites[name].calls:
            return f"of a run's convolutions {sites[name].calls} should reach the sampling of {name}, but {seen[name]} do"
    worst = max((c for c in compare_outputs(before, after) if not c.ok), key=lambda c: c.max_rel_error, default=None)
    if worst is None:
        return "" if reference is None else reference.failure(model, {n: s.sampling for n, s in done.items()})
    return worst.note or f"{worst.path} changed by {worst.max_rel_error:.1e} of its largest magnitude"
