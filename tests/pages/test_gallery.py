"""The programs of the gallery run, each in less than three minutes of processor time, and say what docs/gallery.md shows."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
SHOWN = dict(re.findall(r"\]\(\.\./examples/gallery/(\w+)\.py\).*?```text\n(.*?)```", PAGE, re.DOTALL))
SECONDS = 180
NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")


def test_every_program_is_shown() -> None:
    assert sorted(SHOWN) == sorted(file.stem for file in (ROOT / "examples" / "gallery").glob("*.py"))
    assert len(SHOWN) == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_a_program_says_what_is_shown(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / "gallery" / f"{name}.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert NUMBER.sub("#", done.stdout) == NUMBER.sub("#", SHOWN[name])
    assert after.ru_utime - before.ru_utime < SECONDS


def gains(printed: str) -> tuple[float, float]:
    """What fine-tuning left of the original and of the rewritten network."""
    original, rewritten = (
        re.search(rf"^{who}: .*, (\S+) fine-tuned$", printed, re.MULTILINE) for who in ("original", "rewritten")
    )
    assert original is not None
    assert rewritten is not None
    return float(original[1]), float(rewritten[1])


def test_what_is_shown_is_a_gain() -> None:
    original, rewritten = gains(SHOWN["deeplab"])
    assert rewritten > original
    original, rewritten = gains(SHOWN["tcn"])
    assert rewritten < original
