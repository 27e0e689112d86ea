"""Patterns of site names."""

from __future__ import annotations

from typing import Any

import pytest

from ccrewrite.errors import InputError
from ccrewrite.ir.names import hits, paths, patterns_of


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("a.b", "a.b"),
        ("a", "a.b.c"),
        ("a.*", "a.b.c"),
        ("*.c", "a.b.c"),
        ("a.[bc]", "a.b"),
        ("up", "up:conv1d"),
        ("up.*", "up.kernel"),
        ("*:conv1d", "up:conv1d"),
        ("d.a[0]", "d.a[0]"),  # the key of a ModuleDict
        ("d.a[0]", "d.a[0].conv"),
        ("d.a[0]", "d.a0"),
        ("re:conv1d", "re:conv1d"),  # a functional call in a module called re
        ("re:.*b", "a.b"),
        (r"re:a\.\d+", "a.17"),
        ("re:(?!.*depth).*", "a.b"),
    ],
)
def test_hits(pattern: str, name: str) -> None:
    assert hits(pattern, [name])
    assert hits(pattern, ["another", name])


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("a", "ab"),
        ("b", "a.b"),
        ("", "a"),
        ("A", "a"),
        ("a.b.c", "a.b"),
        ("kernel", "kernel#2"),
        ("re:a", "a.b"),  # the whole name
        ("re:b", "a.b"),
        ("re:(?!.*depth).*", "a.depth.b"),
    ],
)
def test_misses(pattern: str, name: str) -> None:
    assert not hits(pattern, [name])


def test_paths() -> None:
    assert paths("(root)") == ["(root)"]
    assert paths("a.b.up:conv2d#2") == ["a", "a.b", "a.b.up", "a.b.up:conv2d#2"]


def test_patterns_of() -> None:
    assert patterns_of("a", "include") == patterns_of(["a"], "include") == patterns_of({"a"}, "include") == ("a",)
    assert patterns_of((), "include") == ()


@pytest.mark.parametrize("given", [0, None, 1.5, [0], ["a", None], b"a", [["a"]]])
def test_what_is_no_pattern(given: Any) -> None:
    with pytest.raises(InputError, match=r"include takes names, globs or 're:\.\.\.' of sites, one or a list of them; found"):
        patterns_of(given, "include")


def test_what_is_no_regular_expression() -> None:
    with pytest.raises(InputError, match=r"'re:\(a' is no regular expression: missing \)"):
        patterns_of(["b", "re:(a"], "include")
