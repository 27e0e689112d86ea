"""What is too slow for every change runs in a lane: nothing is left out everywhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"^([a-z-]+):.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE))
(LANES,) = re.findall(r"^LANES=\((.*)\)$", (ROOT / ".ci" / "lanes").read_text(encoding="utf-8"), re.MULTILINE)
MARKED = sorted(
    (marker, file.relative_to(ROOT))
    for file in (ROOT / "tests").rglob("test_*.py")
    for marker in set(re.findall(r"pytest\.mark\.(slow|browser)\b", file.read_text(encoding="utf-8")))
)


def test_lanes_are_targets() -> None:
    assert set(LANES.split()) <= set(RECIPES)


@pytest.mark.parametrize(("marker", "file"), MARKED, ids=lambda x: str(x))
def test_marked_tests_run_in_a_lane(marker: str, file: Path) -> None:
    runs = [line for lane in LANES.split() for line in RECIPES[lane].splitlines() if re.search(rf"-m \S*{marker}", line)]
    given = {Path(word) for line in runs for word in line.split() if word.startswith("tests/")}
    assert given & {file, *file.parents}, f"no lane has {marker} tests of {file}"
