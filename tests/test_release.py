"""What a release says of itself, in one place each; and that the versions of development agree."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import ccrewrite

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins(name: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for package, version in re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE):
        found.setdefault(package.lower(), set()).add(version)
    return found


def test_the_version_is_in_one_place() -> None:
    assert "version" not in PROJECT
    assert PROJECT["dynamic"] == ["version"]
    assert metadata("ccrewrite")["Version"] == ccrewrite.__version__
    assert f"## {ccrewrite.__version__}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_lock_agrees_with_the_constraints() -> None:
    """Else: `make lock`."""
    locked, constrained = pins("dev.lock"), pins("constraints.txt")
    assert {name: versions for name, versions in locked.items() if name in constrained and versions != constrained[name]} == {}
    wanted = [*PROJECT["dependencies"], *(d for extra in PROJECT["optional-dependencies"].values() for d in extra)]
    names = {re.split(r"[\[<>=]", d)[0].lower() for d in wanted} - {"ccrewrite"}
    assert names - set(locked) == set()


def test_the_lock_names_no_address() -> None:
    assert "://" not in (ROOT / "dev.lock").read_text(encoding="utf-8")
