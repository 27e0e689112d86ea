"""Plan -> rewritten and verified model: substitute, compare, put back what fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from ccrewrite.errors import ModelRunError
from ccrewrite.families.rule import Rule
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.check import Check
from ccrewrite.ir.sites import Decision, Plan
from ccrewrite.passes.rules import rule_for
from ccrewrite.passes.substitute import Substitution, substitute_
from ccrewrite.passes.verify import TOLERANCE, built_error, compare_outputs, culprits, modules_run, outputs_of


def carry_out_(model: nn.Module, original: nn.Module | None, planned: Plan, inputs: Inputs) -> tuple[Plan, Check]:
    """Rewrite the sites of ``planned`` in ``model``, compare with ``original`` (None: with ``model`` as it is now) and
    put back what fails; the plan as carried out, and the comparison. Where it raises, ``model`` is as it was."""
    rule_of = {site.name: cast(Rule, rule_for(site, planned.rules)) for site in planned.rewritten}
    sites = {site.name: site for site in planned.rewritten if rule_of[site.name].exact}
    approximate = [site for site in planned.rewritten if not rule_of[site.name].exact]
    built = {name: built_error(site, rule_of[name]) for name, site in sites.items()}
    largest = max(built.values(), default=0.0)
    failures = {n: f"its kernel is off by {e:.1e} at the start" for n, e in built.items() if e > TOLERANCE[torch.float64]}
    good = [name for name in sites if name not in failures]
    if any(t.is_meta for t in (*inputs.tensors(), *model.parameters())):
        substitute_(model, [*(sites[n] for n in good), *approximate], planned.rules)
        skipped = Check((), False, "nothing to run on the meta device", largest)
        return _with_failures(planned, failures), skipped

    before = outputs_of(original or model, inputs)
    done: dict[str, Substitution] = {}

    def passes(names: Sequence[str]) -> bool:
        """Whether ``model`` with just ``names`` rewritten computes what it did before, through their samplings."""
        for name in [n for n in done if n not in names]:
            done.pop(name).undo()
        done.update(substitute_(model, [sites[n] for n in names if n not in done], planned.rules))
        failure = _failure(model, before, inputs, done)
        if failure and len(names) == 1:
            failures[names[0]] = failure
        return not failure

    note = ""
    try:
        if not passes(good):
            if not passes([]):
                note = "two runs of the original differ as well: it is not deterministic, so nothing was put back"
            else:
                good = [n for n in good if n not in culprits(good, passes)]
            if not passes(good) and not note:
                failures.update(dict.fromkeys(good, "right by itself, wrong together with the others"))
                passes(good := [])
        after = outputs_of(model, inputs)
        if approximate:
            substitute_(model, approximate, planned.rules)
            which = approximate[0].name if len(approximate) == 1 else f"{len(approximate)} sites"
            note = "; ".join(filter(None, (note, f"compared before {which} became approximate")))
    except BaseException:
        for substitution in done.values():
            substitution.undo()
        raise
    final = Check(compare_outputs(before, after), True, note, largest)
    return _with_failures(planned, failures), final


def _with_failures(planned: Plan, failures: Mapping[str, str]) -> Plan:
    decided = (
        replace(s, decision=Decision(False, "verification-failed", failures[s.name])) if s.name in failures else s
        for s in planned.sites
    )
    return replace(planned, sites=tuple(decided))


def _failure(model: nn.Module, before: Mapping[str, Any], inputs: Inputs, done: Mapping[str, Substitution]) -> str:
    """What is wrong with ``model`` after the substitutions ``done``; empty where nothing is."""
    try:
        with modules_run() as seen:
            after = outputs_of(model, inputs)
    except ModelRunError as error:
        return f"the rewritten model raised {type(error.__cause__).__name__}: {error.__cause__}"
    unreached = [name for name, substitution in done.items() if id(substitution.sampling) not in seen]
    if unreached:
        return f"the call of {unreached[0]} is not made by a function of torch.nn.functional, so it did not reach its sampling"
    worst = max((c for c in compare_outputs(before, after) if not c.ok), key=lambda c: c.max_rel_error, default=None)
    if worst is None:
        return ""
    return worst.note or f"{worst.path} changed by {worst.max_rel_error:.1e} of its largest magnitude"
