"""``ccrewrite lower`` and ``ccrewrite aot`` pass on what they are told. What those functions do is tested where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn
from typer.testing import CliRunner

import ccrewrite
from ccrewrite.cli.app import app
from ccrewrite.ir.check import Check, OutputCheck
from ccrewrite.lowering.lowered import Lowered

MODELS = """
import torch
import ccrewrite
def small():
    return ccrewrite.rewrite(torch.nn.Conv1d(2, 2, 3, dilation=2), torch.zeros(1, 2, 9)).model, torch.zeros(1, 2, 9)
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "compiling_models.py").write_text(MODELS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return "compiling_models:small"


@pytest.mark.parametrize(("right", "status"), [(True, 0), (False, 1)])
def test_lower(right: bool, status: int, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def lower(model: nn.Module, inputs: Any, **options: Any) -> Lowered:
        calls.append(options)
        return Lowered(model, "training", (), Check((OutputCheck("output", "float32", (1,), 0.0, 0.0, 0, right),), True))

    monkeypatch.setattr(ccrewrite, "lower", lower)
    done = CliRunner().invoke(app, ["lower", model, "--mode", "training", "--no-measured", "--compile-mode", "max-autotune"])
    assert done.exit_code == status, done.output
    assert calls == [{"mode": "training", "measured": False, "compile_mode": "max-autotune"}]
    assert ("outputs are equal" if right else "outputs DIFFER") in done.stdout
    assert CliRunner().invoke(app, ["lower", model, "--mode", "faster"]).exit_code == 2


def test_aot(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def aot(model: nn.Module, path: Path, inputs: Any, compile_mode: str | None) -> str:
        assert (type(model).__name__, inputs.shape, compile_mode) == ("DclsConv1d", (1, 2, 9), None)
        return f"package {path}"

    monkeypatch.setattr(ccrewrite, "aot", aot)
    done = CliRunner().invoke(app, ["aot", model, "--out", "m.pt2"])
    assert done.exit_code == 0, done.output
    assert done.stdout == "package m.pt2\nsaved m.pt2\n"
