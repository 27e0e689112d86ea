"""What ``make quantize`` found, as committed: as many convolutions in int8 as in the original, as much right as in float."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
REPORT: dict[str, Any] = json.loads((ROOT / "reports" / "deploy" / "int8.json").read_text())
POINTS = 0.3
"""So much less may be right than in float."""
ERROR = 0.1
"""Of the outputs, relative (2-norms)."""


@pytest.mark.parametrize("outcome", REPORT["outcomes"], ids=lambda o: f"{o['way']}-{o['model']}")
def test_outcome(outcome: dict[str, Any]) -> None:
    (quantized, convolutions), (wanted, there) = outcome["folded"], outcome["original"]
    assert quantized >= wanted
    assert convolutions == there, "one convolution each"
    assert outcome["error"] <= ERROR
    if "int8" in outcome:
        assert outcome["int8"] >= outcome["float"] - POINTS


def test_trained_models_were_tried() -> None:
    right = {o["model"]: o["float"] for o in REPORT["outcomes"] if "float" in o}
    assert right.keys() == {"demo", "digits"}
    assert min(right.values()) > 75, "a model that is right"


@pytest.mark.slow
def test_positions_are_trained_under_fake_quantization() -> None:
    """The example: its model is as right in int8 as in float."""
    done = subprocess.run(
        [sys.executable, "int8_positions.py"], cwd=ROOT / "examples", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    before, after, small = (float(line.partition(": ")[2].split(";")[0]) for line in done.stdout.splitlines()[-3:])
    assert after > before
    assert small > after - 0.01
