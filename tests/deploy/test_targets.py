"""What ``make quantize`` found about targets, as committed: what the original keeps on a target stays there once folded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ccrewrite.passes.targets import TARGETS

ROOT = Path(__file__).parents[2]
REPORT: dict[str, Any] = json.loads((ROOT / "reports" / "deploy" / "targets.json").read_text())
TOLERANCE = 1e-5
"""Of an output's largest magnitude, in float32."""
COMPUTED = "the form 'geometry'"
"""What is not taken of a layer that computes its weight in each call, as its original does: a product more for each site."""


@pytest.mark.parametrize("outcome", REPORT["outcomes"], ids=lambda o: f"{o['case']}-{o['target']}")
def test_outcome(outcome: dict[str, Any]) -> None:
    computed = [words for words in outcome["refused"] if COMPUTED in words]
    assert not computed or outcome["case"] == "standardised"
    assert len(outcome["refused"]) - len(computed) <= len(outcome["refused_original"])
    after, before = outcome.get("left", (0, 0))
    assert after <= before + len(computed)
    if TARGETS[outcome["target"]].runs_here and not outcome["refused_original"]:
        assert outcome["error"] <= TOLERANCE


def test_all_was_tried() -> None:
    cases = {o["case"] for o in REPORT["outcomes"]}
    assert {(o["case"], o["target"]) for o in REPORT["outcomes"]} == {(case, target) for case in cases for target in TARGETS}
    assert len(cases) == 9
