"""Every name of the package that README, the pages and docstrings mention is there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import ccrewrite

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODULES = sorted((ROOT / "ccrewrite").rglob("*.py"))
NAME = re.compile(r"(?<![\w./\"'-])ccrewrite(?:\.[A-Za-z_]\w*)+(?!\.?[\w/]|\.(?:md|toml))")
METADATA = {"ccrewrite.module", "ccrewrite.site", "ccrewrite.from"}
"""Keys in ONNX files."""


def is_there(name: str) -> bool:
    found: object = ccrewrite
    path = "ccrewrite"
    for part in name.split(".")[1:]:
        path += f".{part}"
        if hasattr(found, part):
            found = getattr(found, part)
            continue
        try:
            found = importlib.import_module(path)
        except ImportError:
            return False
    return True


@pytest.mark.parametrize("file", [*PAGES, *MODULES], ids=lambda file: str(file.relative_to(ROOT)))
def test_names_are_there(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        text = "\n".join(re.findall(r"``[^`\n]+``", text))
    named = {name for name in NAME.findall(text) if not name.endswith(".md")} - METADATA
    assert not sorted(name for name in named if not is_there(name))
