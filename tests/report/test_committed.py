"""The reports in the repository."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest

from ccrewrite.report import Comparison

ROOT = Path(__file__).parents[2]
REPORTS = ROOT / "reports"
FOLDERS = sorted(p.parent for p in REPORTS.rglob("report.json"))
SCHEMA = json.loads((ROOT / "docs" / "report-schema.json").read_text())


def test_the_demo_and_the_corpus_are_there() -> None:
    names = [f.relative_to(REPORTS).as_posix() for f in FOLDERS]
    assert "demo" in names
    assert sum(n.startswith("corpus/") for n in names) == 15
    index = (REPORTS / "README.md").read_text()
    assert sorted(re.findall(r"\]\((\S+)/report\.md\)", index)) == names


def test_they_are_small() -> None:
    """Data without white space, one page; those of the corpus are made from the data, and not kept in git."""
    assert "reports/corpus/*/report.html" in (ROOT / ".gitignore").read_text().splitlines()
    files = [p for p in REPORTS.rglob("*") if not p.match("corpus/*/report.html")]
    assert sum(p.stat().st_size for p in files) < 4e6
    for file in REPORTS.rglob("*.json"):
        text = file.read_text().rstrip()
        assert len(text) == len(json.dumps(json.loads(text), separators=(",", ":"))), f"white space in {file}"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_a_committed_report(folder: Path) -> None:
    text = (folder / "report.json").read_text()
    data = json.loads(text)
    jsonschema.validate(data, SCHEMA)
    assert data["command"].startswith("make reports")
    assert all(o["max_abs_error"] == 0 for o in data["variants"][1]["outputs"]), "rewriting changed nothing"
    page = Comparison(data).to_html()
    assert len(page) < 3e6
    committed = (folder / "report.html").read_text() if folder.name == "demo" else ""
    for written in (text, page, committed, (folder / "report.md").read_text()):
        assert not re.search(r"/(home|root|tmp|work|Users)/", written)
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=(?!\"data:)", page), "nothing is asked for from outside"
    assert text.strip() in committed.replace("\\u003c", "<") or folder.name != "demo", "the page shows this very data"
