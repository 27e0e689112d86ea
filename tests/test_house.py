"""The borders between the rooms: which module may know which."""

from __future__ import annotations

import ast
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ccrewrite"
FILES = sorted(PACKAGE.rglob("*.py"))
LEVELS = (
    ("errors",),
    ("ir",),
    ("gathering",),
    ("folded",),
    ("families",),
    ("nn",),
    ("passes",),
    ("api", "lowering"),
    ("training",),
    ("forecasting",),
    ("export", "saving", "report"),
    ("demo",),
    ("cli",),
)
"""Rooms from the ground up. A module imports from its own room and from those below it."""
FACADES = ("__init__.py", "nn/__init__.py", "families/family.py")
OWN = ("ccrewrite.families.dcls", "ccrewrite.families.cc")


def name(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


def imports(file: Path) -> Iterator[str]:
    """Every module of ours that ``file`` imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ccrewrite":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "ccrewrite")


@pytest.mark.parametrize("file", FILES, ids=name)
def test_imports_point_down(file: Path) -> None:
    level = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
    room = name(file).split("/")[0].removesuffix(".py")
    if room not in level:
        assert name(file) in ("__init__.py", "__main__.py"), "nothing lies loose"
        return
    above = [i for i in imports(file) if len(i.split(".")) > 1 and level.get(i.split(".")[1], -1) > level[room]]
    assert not above


@pytest.mark.parametrize("file", [f for f in FILES if "families/" not in name(f)], ids=name)
def test_a_family_is_known_by_its_protocol(file: Path) -> None:
    if name(file) not in FACADES:
        assert not [i for i in imports(file) if i.startswith(OWN)]


@pytest.mark.parametrize("file", [f for f in FILES if "families/" not in name(f)], ids=name)
def test_no_family_is_asked_for_by_name(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    names = {
        "dilated-to-dcls",
        "strided-to-cc",
        "transposed-to-cc",
        "large-to-dcls",
        "DclsSampling",
        "CCSampling",
        "dcls",
        "cc",
    }
    compared = [
        side.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Compare)
        for side in (node.left, *node.comparators)
        if isinstance(side, ast.Constant)
    ]
    assert not names & {value for value in compared if isinstance(value, str)}


@pytest.mark.parametrize("family", ["dcls", "cc"])
def test_families_know_nothing_of_each_other(family: str) -> None:
    other = {"dcls": "ccrewrite.families.cc", "cc": "ccrewrite.families.dcls"}[family]
    for file in (PACKAGE / "families" / family).rglob("*.py"):
        assert not [i for i in imports(file) if i.startswith(other)], name(file)


def test_files_are_short() -> None:
    lines = {name(f): len(f.read_text(encoding="utf-8").splitlines()) for f in FILES}
    assert not {n: count for n, count in lines.items() if count > 300}
    assert statistics.median(lines.values()) <= 120


def without(family: str, folder: Path) -> dict[str, str]:
    """An environment in which the package lacks the folder of one family."""
    shutil.copytree(PACKAGE, folder / "ccrewrite", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(folder / "ccrewrite" / "families" / family)
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT / "tests" / "helpers")))}


def test_a_family_can_be_taken_away(tmp_path: Path) -> None:
    code = """
import tempfile, torch, ccrewrite
from torch import nn
model, x = nn.Sequential(nn.Conv1d(4, 4, 3, dilation=2), nn.Conv1d(4, 4, 3, stride=2)), torch.randn(1, 4, 20)
result = ccrewrite.rewrite(model, x)
assert [site.code for site in result.plan] == ["dilated-to-dcls", "no-rule"], result.plan
with torch.no_grad():
    result.model[0].sampling.offset.fill_(0.3)
assert ccrewrite.fold(result.model, x).check.ok
assert ccrewrite.training.param_groups(result.model, lr=0.1)
with tempfile.TemporaryDirectory() as folder:
    ccrewrite.save(result, folder)
    ccrewrite.load(nn.Sequential(nn.Conv1d(4, 4, 3, dilation=2), nn.Conv1d(4, 4, 3, stride=2)), folder)
print(ccrewrite.__file__)
"""
    environment = without("cc", tmp_path)
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "ccrewrite" / "__init__.py")


@pytest.mark.slow
def test_every_dcls_test_passes_without_cc(tmp_path: Path) -> None:
    environment = without("cc", tmp_path)
    shutil.copytree(ROOT / "tests" / "families" / "dcls", tmp_path / "tests")
    for file in ("conftest.py",):
        shutil.copy(ROOT / "tests" / file, tmp_path / "tests" / file)
    arguments = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", "tests"]
    done = subprocess.run(
        [*arguments, "-m", "not slow", "--ignore=tests/test_dcls_examples.py"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
