"""The reports in the repository."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(p.parent for p in (ROOT / "reports").rglob("report.json"))
SCHEMA = json.loads((ROOT / "docs" / "report-schema.json").read_text())


def test_the_demo_and_the_corpus_are_there() -> None:
    names = [f.relative_to(ROOT / "reports").as_posix() for f in FOLDERS]
    assert "demo" in names
    assert sum(n.startswith("corpus/") for n in names) == 15
    index = (ROOT / "reports" / "README.md").read_text()
    assert sorted(re.findall(r"\]\((\S+)/report\.md\)", index)) == names


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_a_committed_report(folder: Path) -> None:
    text = (folder / "report.json").read_text()
    data = json.loads(text)
    jsonschema.validate(data, SCHEMA)
    assert data["command"].startswith("make reports")
    assert all(o["max_abs_error"] == 0 for o in data["variants"][1]["outputs"]), "rewriting changed nothing"
    page = (folder / "report.html").read_text()
    assert len(page) < 3e6
    for written in (text, page, (folder / "report.md").read_text()):
        assert not re.search(r"/(home|root|tmp|work|Users)/", written)
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=(?!\"data:)", page), "nothing is asked for from outside"
