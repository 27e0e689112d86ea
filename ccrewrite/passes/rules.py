"""Rules as users give them: objects, names, mappings as in a TOML file, or patterns of site names with a rule each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, cast

from ccrewrite.errors import InputError, likely
from ccrewrite.families.family import default_rules, rules
from ccrewrite.families.rule import Rule
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.names import patterns_of
from ccrewrite.ir.sites import Site

OneRule = Rule | str | Mapping[str, Any]
"""A rule; its name; or a mapping with its name under "rule", and its options."""
Rules = OneRule | Sequence[OneRule] | Mapping[str, OneRule | Sequence[OneRule] | None] | None
"""One rule, several in order, or patterns of site names with a rule or several for each; None: the families' default rules."""


@dataclass(frozen=True)
class LeaveAlone(Rule):
    """Leaves what its ``include`` hits as it is. ``None`` after a pattern of ``rules`` is short for it."""

    name: ClassVar[str] = "leave-alone"

    def takes(self, site: Site) -> bool:
        return True

    def sampling(self, site: Site, **factory: Any) -> Sampling:
        raise NotImplementedError("nothing is put where a site is left alone")

    def describe(self, site: Site) -> str:
        return f"left alone by rules: {', '.join(self.include)}"


def rule_for(site: Site, rules: Sequence[Rule]) -> Rule | None:
    """The first of ``rules`` that wants ``site`` and doesn't refuse it."""
    for rule in rules:
        with rule.asked_about(site):
            if rule.wants(site) and rule.refuses(site) is None:
                return rule
    return None


def make_rule(options: Mapping[str, Any] | str) -> Rule:
    """A rule from a name, or from a mapping with a ``rule`` key and its options (a table of a TOML file).

    >>> make_rule({"rule": "dilated-to-dcls", "sharing": "out"}).sharing
    'out'
    """
    options = {"rule": options} if isinstance(options, str) else dict(options)
    name, known_rules = options.pop("rule", None), {**rules(), LeaveAlone.name: LeaveAlone}
    if not isinstance(name, str) or name not in known_rules:
        raise InputError(f"unknown rule {name!r}; the rules are {', '.join(known_rules)}{likely(name, known_rules)}")
    kind = known_rules[name]
    known = {f.name: f for f in fields(kind)}
    for option in options:
        if option not in known:
            said = f"rule {name} has no option {option!r}; its options are {', '.join(known)}"
            raise InputError(said + likely(option, known))
    return kind(**options)


def check_rules(given: Rules) -> tuple[Rule, ...]:
    """``given`` as a tuple of rules.

    A mapping without a "rule" key has patterns of site names (``ccrewrite.ir.names``) in order, with a rule or several for
    each. The first pattern that hits a site says what becomes of it; None leaves it alone.

    >>> [(rule.name, rule.include, rule.exclude) for rule in check_rules({"head": None, "*": "strided-to-cc"})]
    [('leave-alone', ('head',), ()), ('strided-to-cc', ('*',), ('head',))]

    Raises ``InputError`` for what is no rule, and for a rule with an ``include`` of its own after a pattern.
    """
    if given is None:
        return default_rules()
    if isinstance(given, Mapping) and "rule" not in given:
        return tuple(_of_patterns(cast("Mapping[str, object]", given)))
    return tuple(_each(given))


def _each(given: object) -> Iterable[Rule]:
    several = cast("Sequence[object]", given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    for rule in several:
        if not isinstance(rule, (Rule, str, Mapping)):
            kinds = ", ".join(kind.__name__ for kind in rules().values())
            raise InputError(f"a rule must be one of {kinds}, its name, or a mapping with its options; found {rule!r}")
        yield rule if isinstance(rule, Rule) else make_rule(cast("str | Mapping[str, Any]", rule))


def _of_patterns(given: Mapping[str, object]) -> Iterable[Rule]:
    before: tuple[str, ...] = ()
    for pattern in patterns_of(tuple(given), "rules"):
        for rule in [LeaveAlone()] if given[pattern] is None else _each(given[pattern]):
            if rule.include != ("*",):
                raise InputError(
                    f"rules[{pattern!r}]: rule {rule.name} is for what the pattern hits, found its own include={rule.include}"
                )
            yield replace(rule, include=(pattern,), exclude=(*rule.exclude, *before))
        before = *before, pattern
