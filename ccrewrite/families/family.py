"""A family: one kind of learnable layer, known to the rest of the package by name alone.

``register_family`` makes one known for the running program. A package that is installed makes its families known by itself,
through entry points of the group ``ccrewrite.families``: then TOML files, the command line and ``load`` know them as well.
docs/writing-a-family.md shows how to write one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import cast

from ccrewrite.errors import InputError
from ccrewrite.families.rule import Rule, require_name
from ccrewrite.families.sampling import Sampling
from ccrewrite.families.scratch import ScratchConv
from ccrewrite.ir.threads import one_at_a_time

ENTRY_POINTS = "ccrewrite.families"
BUILT_IN = ("ccrewrite.families.dcls", "ccrewrite.families.cc")
"""Packages whose ``FAMILY`` comes with the package. Their default rules are asked in this order."""


@dataclass(frozen=True)
class Family:
    """All that the package knows of one kind of learnable layer.

    Args:
        name: a word, e.g. "dcls".
        samplings: its ``Sampling`` classes. ``save`` writes their class names, so these must be unique.
        layers: classes of its layers, for building them from scratch (subclasses of ``ccrewrite.families.ScratchConv``). May be
            left out: rewriting makes what it needs.
        rules: its ``Rule`` classes, known by their ``name`` in TOML files and on the command line.
        default_rules: those that ``plan`` and ``rewrite`` use where no rules are given. Usually none: a family that is merely
            installed should change nothing.
        title: how reports call it, e.g. "DCLS"; by default its name.

    >>> [family.name for family in families()][:2]
    ['dcls', 'cc']
    """

    name: str
    samplings: tuple[type[Sampling], ...]
    layers: tuple[type[ScratchConv], ...] = ()
    rules: tuple[type[Rule], ...] = ()
    default_rules: tuple[Rule, ...] = ()
    title: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", self.title or self.name)
        for field, base in (("samplings", Sampling), ("layers", ScratchConv), ("rules", Rule)):
            given: object = getattr(self, field)
            classes = tuple(cast("Iterable[object]", given)) if isinstance(given, Iterable) else (given,)
            wrong: list[object] = [one for one in classes if not (isinstance(one, type) and issubclass(one, base))]
            if wrong:
                raise InputError(f"family {self.name!r}: {field} must be classes of {base.__name__}s, found {wrong[0]!r}")
            object.__setattr__(self, field, classes)
        for kind in self.rules:
            require_name(kind)


_registered: dict[str, Family] = {}
_loaded: set[str] = set()
"""Modules and entry points that were loaded already."""


def register_family(family: Family) -> Family:
    """Make a family known. The same one again is no error.

    Args:
        family: its name, and the names of its rules and samplings, must be new.

    Returns:
        ``family``.

    Raises:
        InputError: where another family has its name, or the name of one of its rules or samplings.

    >>> register_family(families()[0]).name
    'dcls'
    """
    if not isinstance(family, Family):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"register_family takes a Family, found {family!r}")
    _load_built_in()
    known = _registered.get(family.name)
    if known is not None and known != family:
        raise InputError(f"a family called {family.name!r} is registered already: {known}")
    for other in _registered.values():
        if other.name == family.name:
            continue
        for what, mine, theirs in (
            ("rule", [r.name for r in family.rules], [r.name for r in other.rules]),
            ("sampling", [s.__name__ for s in family.samplings], [s.__name__ for s in other.samplings]),
        ):
            both = set(mine) & set(theirs)
            if both:
                raise InputError(f"family {family.name!r} brings a {what} called {min(both)!r}, as family {other.name!r} does")
    _registered[family.name] = family
    return family


def families() -> tuple[Family, ...]:
    """All families: those of the package, those of installed packages, those registered since.

    >>> [family.title for family in families()][:2]
    ['DCLS', 'CC']
    """
    _load_built_in()
    for point in entry_points(group=ENTRY_POINTS):
        if point.value not in _loaded:
            _load(point)
            _loaded.add(point.value)
    return tuple(_registered.values())


def rules() -> dict[str, type[Rule]]:
    """Every rule by its name."""
    return {rule.name: rule for family in families() for rule in family.rules}


def default_rules() -> tuple[Rule, ...]:
    """What ``plan`` and ``rewrite`` use where no rules are given: the first rule that takes a site rewrites it."""
    return tuple(rule for family in families() for rule in family.default_rules)


def sampling_classes() -> dict[str, type[Sampling]]:
    """Every sampling class by its name."""
    return {kind.__name__: kind for family in families() for kind in family.samplings}


def family_of(sampling: Sampling) -> Family:
    """The family that ``sampling`` belongs to. Raises ``InputError`` where none is registered for its class."""
    for family in families():
        if type(sampling) in family.samplings:
            return family
    raise InputError(
        f"no family is registered for a {type(sampling).__name__}; ccrewrite.register_family makes it known "
        "(docs/writing-a-family.md)"
    )


def title_of(sampling: Sampling) -> str:
    """How reports call what ``sampling`` makes of a convolution: its family's title. Where no family is registered for it, its
    class's name."""
    for family in families():
        if type(sampling) in family.samplings:
            return family.title
    return type(sampling).__name__.removesuffix("Sampling")


def _load_built_in() -> None:
    with one_at_a_time(), warnings.catch_warnings():  # sympy, which torch imports here, adds a filter of its own
        for module in BUILT_IN:
            if module not in _loaded and find_spec(module) is not None:
                _loaded.add(module)
                family: Family = import_module(module).FAMILY
                _registered[family.name] = family


def _load(point: EntryPoint) -> None:
    package = point.dist.name if point.dist is not None else "?"
    where = f"the family {point.name!r} of the installed package {package}, {point.value}"
    try:
        family = point.load()
    except Exception as error:
        raise InputError(
            f"{where}, can't be loaded: {type(error).__name__}: {error}. Mend or uninstall that package"
        ) from error
    if not isinstance(family, Family):
        raise InputError(f"{where}, must be a ccrewrite.Family, found {family!r}")
    try:
        register_family(family)
    except InputError as error:
        raise InputError(f"{where}, can't be registered: {error}. Mend or uninstall that package") from error
