"""The fine-tuning examples run, and improve what they fine-tune."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    "name", ["loop", pytest.param("trainer", marks=pytest.mark.slow), pytest.param("lightning", marks=pytest.mark.slow)]
)
def test_example(name: str) -> None:
    command = [sys.executable, "-W", "error::UserWarning:ccrewrite", str(EXAMPLES / f"finetune_{name}.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = re.search(r"test accuracy (\S+) before, (\S+) after", done.stdout)
    assert found is not None, done.stdout
    assert float(found[2]) >= float(found[1])
    table = done.stdout.splitlines()[-3:]
    assert [row.split()[1] for row in table] == ["CC", "DCLS", "CC"]
    assert all(row.endswith("yes") and float(row.split()[2]) > 0 for row in table)
