"""What ``make deploy`` found, as committed: every runtime takes every form, but for what is written down here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .models import CASES
from .table import table

ROOT = Path(__file__).parents[2]
REPORT: dict[str, Any] = json.loads((ROOT / "reports" / "deploy" / "runtimes.json").read_text())
TOLERANCE = 1e-5
"""Of an output's largest magnitude, in float32."""

REFUSED = {
    # Circular padding fixes the batch size.
    ("ExecuTorch", "around"): "at batch 3, RuntimeError: method->set_inputs()",
    ("ExecuTorch, XNNPACK", "around"): "at batch 3, RuntimeError: method->set_inputs()",
    # Convolutions are of one or two dimensions.
    ("ExecuTorch", "unet-3d"): "at batch 2, RuntimeError: method->execute()",
    ("ExecuTorch, XNNPACK", "unet-3d"): "at batch 2, RuntimeError: method->execute()",
}
"""(runtime, model) -> words of the refusal."""


@pytest.mark.parametrize("outcome", REPORT["outcomes"], ids=lambda o: f"{o['runtime']}-{o['case']}")
def test_outcome(outcome: dict[str, Any]) -> None:
    words = REFUSED.get((outcome["runtime"], outcome["case"]))
    if words is None:
        assert outcome["refused"] is None
        assert outcome["error"] <= TOLERANCE
    else:
        assert words in outcome["refused"]
        assert outcome["refused_original"], "rewriting must not be what a runtime refuses"


def test_all_was_tried() -> None:
    assert {o["case"] for o in REPORT["outcomes"]} == CASES.keys()
    forms = {form for o in REPORT["outcomes"] for form in o["forms"]}
    assert forms >= {"original", "convolution", "padded", "shifted", "gathered", "sparse", "geometry", "resized", "size-input"}


def test_the_documentation_shows_it() -> None:
    for page in ("docs/deploy.md", "reports/deploy/runtimes.md"):
        assert table(REPORT) in (ROOT / page).read_text(), "make deploy writes it"
