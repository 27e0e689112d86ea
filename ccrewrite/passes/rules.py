"""Rules as users give them: objects, names, or mappings as in a TOML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ccrewrite.errors import InputError
from ccrewrite.families.family import default_rules, rules
from ccrewrite.families.rule import Rule
from ccrewrite.ir.sites import Site


def rule_for(site: Site, rules: Sequence[Rule]) -> Rule | None:
    """The first of ``rules`` that admits ``site``."""
    return next((rule for rule in rules if rule.admits(site)), None)


def make_rule(options: Mapping[str, Any] | str) -> Rule:
    """A rule from a name, or from a mapping with a ``rule`` key and its options (a table of a TOML file).

    >>> make_rule({"rule": "dilated-to-dcls", "sharing": "out"}).sharing
    'out'
    """
    options = {"rule": options} if isinstance(options, str) else dict(options)
    name, known_rules = options.pop("rule", None), rules()
    if name not in known_rules:
        raise InputError(f"unknown rule {name!r}; the rules are {', '.join(known_rules)}")
    kind = known_rules[name]
    known = {f.name: f for f in fields(kind)}
    for option in options:
        if option not in known:
            raise InputError(f"rule {name} has no option {option!r}; its options are {', '.join(known)}")
    return kind(**options)


def check_rules(given: Sequence[Any] | None) -> tuple[Rule, ...]:
    """``given`` as a tuple of rules (names and mappings made into them); None: the families' default rules."""
    if given is None:
        return default_rules()
    if isinstance(given, (str, Mapping, Rule)):
        given = [given]
    for rule in given:
        if not isinstance(rule, (Rule, str, Mapping)):
            raise InputError(f"a rule must be one of {', '.join(k.__name__ for k in rules().values())}, found {rule!r}")
    return tuple(rule if isinstance(rule, Rule) else make_rule(rule) for rule in given)
