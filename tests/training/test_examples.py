"""The fine-tuning examples run, and improve what they fine-tune."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trainer", "lightning"])
def test_trainers(name: str) -> None:
    command = [sys.executable, str(EXAMPLES / f"finetune_{name}.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    check(done.stdout)


def test_loop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    runpy.run_path(str(EXAMPLES / "finetune_loop.py"), run_name="__main__")
    check(capsys.readouterr().out)


def check(printed: str) -> None:
    found = re.search(r"test accuracy (\S+) before, (\S+) after", printed)
    assert found is not None, printed
    assert float(found[2]) >= float(found[1])
    table = printed.splitlines()[-3:]
    assert [row.split()[1] for row in table] == ["CC", "DCLS", "CC"]
    assert all(row.endswith("yes") and float(row.split()[2]) > 0 for row in table)
