"""Patterns of site names, as ``include``, ``exclude`` and ``rules`` take them: names, globs and regular expressions."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import cast

from ccrewrite.errors import InputError

REGEX = "re:"
"""What a regular expression starts with."""


def hits(pattern: str, names: Collection[str]) -> bool:
    """Whether ``pattern`` hits one of a site's ``names``.

    A name itself always hits. A glob (``fnmatch``) is matched against the name and the modules around the site, so that
    ``"backbone"`` hits all that is below it. ``"re:..."`` is a regular expression that the whole name must match.

    >>> hits("backbone", ["backbone.0.up:conv2d"]), hits("*.up", ["backbone.0.up:conv2d"]), hits("a[0]", ["a[0]"])
    (True, True, True)
    >>> hits("re:.*(up|down).*", ["backbone.0.up:conv2d"]), hits("re:backbone", ["backbone.0"])
    (True, False)
    """
    if pattern in names:
        return True
    if pattern.startswith(REGEX):
        return any(_regex(pattern).fullmatch(name) for name in names)
    return any(path == pattern or fnmatchcase(path, pattern) for name in names for path in paths(name))


def paths(name: str) -> list[str]:
    """The paths of the modules around a site, the outermost first, then its own name.

    >>> paths("decoder.up:conv1d")
    ['decoder', 'decoder.up', 'decoder.up:conv1d']
    """
    return [name[: mark.start()] for mark in re.finditer(r"[.:]", name)] + [name]


def patterns_of(given: object, argument: str) -> tuple[str, ...]:
    """``given``, one pattern or several, as a tuple. Raises ``InputError`` for anything else, in the name of ``argument``."""
    patterns = (given,) if isinstance(given, str) else given
    several = isinstance(patterns, Collection) and not isinstance(patterns, Mapping)
    if not several or not all(isinstance(p, str) for p in cast("Collection[object]", patterns)):
        raise InputError(f"{argument} takes names, globs or 're:...' of sites, one or a list of them; found {given!r}")
    found = tuple(cast("Collection[str]", patterns))
    for pattern in found:
        if pattern.startswith(REGEX):
            _regex(pattern)
    return found


def _regex(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern.removeprefix(REGEX))
    except re.error as error:
        raise InputError(f"{pattern!r} is no regular expression: {error}") from error
