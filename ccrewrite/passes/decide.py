"""Sites and rules -> plan: one decision per site."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from torch import nn

from ccrewrite.errors import InputError, SelectionError, SelectionWarning, likely
from ccrewrite.families.rule import Rule
from ccrewrite.ir.geometry import LARGE
from ccrewrite.ir.names import patterns_of
from ccrewrite.ir.sites import UNDECIDED, Decision, Site
from ccrewrite.passes.rules import LeaveAlone, rule_for

KINDS = ("dilated", "strided", "transposed", "large", "plain")
Patterns = str | Sequence[str] | Callable[[Site], bool] | None


@dataclass(frozen=True)
class Selection:
    """Which sites the rules may touch. ``include`` and ``exclude`` are patterns of site names (``ccrewrite.ir.names``) or a
    predicate on the site; ``kinds`` keeps sites that have one of these kinds.

    Raises ``InputError`` for values of other types, unknown kinds, and what is no regular expression after ``re:``.
    """

    include: Patterns = None
    exclude: Patterns = None
    kinds: str | Sequence[str] | None = None

    @property
    def reasons(self) -> Mapping[str, str]:
        """By name of a site, why ``include`` leaves it out, where that says so (a forecast's ``choose``)."""
        return getattr(self.include, "left_out", {})

    def __post_init__(self) -> None:
        for name, value in (("include", self.include), ("exclude", self.exclude)):
            if value is not None and (isinstance(value, type) or not callable(value)):
                object.__setattr__(self, name, patterns_of(value, name))
        if self.kinds is not None:
            object.__setattr__(self, "kinds", _kinds(self.kinds))

    def left_out_by(self, site: Site) -> str | None:
        """What leaves ``site`` out, in words; None where it is selected."""
        if self.include is not None and not _hit(self.include, site):
            return self.reasons.get(site.name) or f"not in include={_shown(self.include)}"
        if self.exclude is not None and _hit(self.exclude, site):
            return f"in exclude={_shown(self.exclude)}"
        if self.kinds is not None and not set(self.kinds) & set(site.kinds):
            return f"not of kinds={','.join(self.kinds)}"
        return None

    def check(self, sites: Sequence[Site], rules: Sequence[Rule]) -> None:
        """Raise ``SelectionError`` where nothing is selected; warn of each pattern, of ``rules`` too, that hits no site."""
        patterns = *_patterns(self.include), *_patterns(self.exclude), *(p for rule in rules for p in rule.include if p != "*")
        for pattern in dict.fromkeys(patterns):
            if sites and not any(site.matches(pattern) for site in sites):
                # stacklevel: the caller of plan or rewrite
                warnings.warn(f"{pattern!r} hits no convolution", SelectionWarning, stacklevel=5)
        if sites and all(self.left_out_by(site) for site in sites):
            names = ", ".join(s.name for s in sites[:8]) + (", ..." if len(sites) > 8 else "")
            asked = ", ".join(
                f"{name}={_shown(value)}"
                for name, value in (("include", self.include), ("exclude", self.exclude), ("kinds", self.kinds))
                if value is not None
            )
            raise SelectionError(f"{asked} selects none of the {len(sites)} convolutions: {names}")


def prepare(model: nn.Module, sites: Sequence[Site], rules: Sequence[Rule], selection: Selection) -> tuple[Rule, ...]:
    """``rules``, each ready for the sites that it would rewrite."""
    left = [s for s in sites if s.decision is UNDECIDED and not selection.left_out_by(s)]
    return tuple(rule.prepared(model, [s for s in left if rule_for(s, rules) is rule]) for rule in rules)


def decide(sites: Sequence[Site], rules: Sequence[Rule], selection: Selection) -> tuple[Site, ...]:
    """``sites`` with a decision each: the first rule that wants a site, and doesn't refuse it, rewrites it."""
    selection.check(sites, rules)
    return tuple(s if s.decision is not UNDECIDED else replace(s, decision=_decision(s, rules, selection)) for s in sites)


def _decision(site: Site, rules: Sequence[Rule], selection: Selection) -> Decision:
    left_out_by = selection.left_out_by(site)
    if left_out_by is None:
        rule = rule_for(site, rules)
        if isinstance(rule, LeaveAlone):
            left_out_by = rule.describe(site)
        elif rule is not None:
            with rule.asked_about(site):
                return Decision(True, rule.name, rule.describe(site))
        elif refused := [f"{rule.name}: {why}" for rule in rules if rule.wants(site) and (why := rule.refuses(site))]:
            return Decision(False, "refused", "; ".join(refused))
    if site.kinds == ("plain",):
        return Decision(False, "plain", "stride 1, dilation 1")
    if left_out_by is not None:
        return Decision(False, "not-selected", left_out_by)
    if site.kinds == ("large",):
        return Decision(False, "large", f"{max(site.geometry.kernel_size)} taps along an axis, at least {LARGE}")
    return Decision(False, "no-rule", f"{' '.join(site.kinds)}, and rules are {', '.join(r.name for r in rules) or 'empty'}")


def _kinds(given: object) -> tuple[str, ...]:
    kinds: object = (given,) if isinstance(given, str) else given
    if not isinstance(kinds, Sequence):
        raise InputError(f"kinds takes some of {', '.join(KINDS)}, found {given!r}")
    for kind in cast("Sequence[object]", kinds):
        if kind not in KINDS:
            raise InputError(f"unknown kind {kind!r}; the kinds are {', '.join(KINDS)}{likely(kind, KINDS)}")
    return tuple(cast("Sequence[str]", kinds))


def _patterns(given: Patterns) -> tuple[str, ...]:
    return () if given is None or callable(given) else tuple(given)


def _hit(patterns: Patterns, site: Site) -> bool:
    return bool(patterns(site)) if callable(patterns) else any(site.matches(p) for p in _patterns(patterns))


def _shown(value: Patterns) -> str:
    return getattr(value, "__name__", repr(value)) if callable(value) else ",".join(_patterns(value))
