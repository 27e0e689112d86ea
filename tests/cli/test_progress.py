"""Work that takes long says what it is at: to listeners, to the log, on stderr."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import ccrewrite
from ccrewrite.cli import console
from ccrewrite.cli.app import app
from ccrewrite.ir.progress import Step, progress, step
from ccrewrite.report.budget import trade
from ccrewrite.training.recalibrate import recalibrate


def moved() -> tuple[nn.Module, torch.Tensor]:
    model, x = nn.Sequential(nn.Conv1d(2, 2, 3, dilation=2)), torch.randn(1, 2, 16)
    result: Any = ccrewrite.rewrite(model, x).model
    with torch.no_grad():
        result[0].sampling.offset.fill_(0.3)
    return result, x


def test_steps_are_heard(tmp_path: Path) -> None:
    heard: list[Step] = []
    with progress(heard.append):
        model, x = moved()
        ccrewrite.fold(model, x)
        ccrewrite.lower(model, x, measured=False, verify=False)
        ccrewrite.export_onnx(model, tmp_path / "m.onnx", x)
        ccrewrite.compare(nn.Sequential(nn.Conv1d(2, 2, 3, dilation=2)), model, x, quick=True, progress=False)
        ccrewrite.finetune(model, [(x, torch.zeros(1, 2, 12))], nn.functional.mse_loss, progress=False)
    assert {"plan", "rewrite", "fold", "export_onnx", "compare", "finetune"} <= {one.work for one in heard}
    shares = [one.share for one in heard if one.work == "finetune"]
    assert shares[-1] == 1.0
    before = len(heard)
    step("fold", "nobody listens now")
    assert len(heard) == before


def test_what_times_and_tries_is_heard() -> None:
    model, x = nn.Sequential(nn.Conv1d(2, 2, 3, stride=2), nn.BatchNorm1d(2), nn.AdaptiveAvgPool1d(1)), torch.randn(4, 2, 17)
    resizable = ccrewrite.rewrite(model.eval(), x)
    heard: list[Step] = []
    with progress(heard.append):
        ccrewrite.plan(model, x, costs="eager")
        ccrewrite.scale_groups(resizable, x)
        trade(resizable, x, [{"0": 0.5}], lambda model: 1.0, repeats=2)
        recalibrate(resizable, [x], [{}, {"0": 0.5}])
        batches = [(x, torch.zeros(4, 2, 1))] * 8
        ccrewrite.forecast(model, x, batches, nn.functional.mse_loss, steps=(1, 1), rates=(1e-3,))
    told = [(one.work, one.what) for one in heard]
    for one in (
        ("costs", "timing 0, inference"),
        ("scale_groups", "trying 1 sites at other sizes"),
        ("trade", "evaluating 0 0.5"),
        ("recalibrate", "setting 2 of 2"),
        ("forecast", "gradients"),
    ):
        assert one in told
    assert [one for one in heard if one.share is not None and not 0 <= one.share <= 1] == []


def test_sparse_layers_say_which_is_fitted() -> None:
    model, x = nn.Sequential(*(nn.Conv1d(4, 4, 9, padding=4, groups=4) for _ in range(2))), torch.randn(1, 4, 32)
    heard: list[Step] = []
    for rule in (ccrewrite.LargeToDcls(elements=3, steps=2), ccrewrite.LargeToDcls(budget=0.5, steps=2)):
        heard.clear()
        with progress(heard.append):
            ccrewrite.plan(model, x, rules=[rule])
        told = [(one.what, one.share) for one in heard if "taps" in one.what]
        assert told == [
            ("choosing taps of 0", None),
            ("choosing taps of 1", None),
            ("fitting taps to the kernels of 0", 0.0),
            ("fitting taps to the kernels of 1", 0.5),
        ]


def test_steps_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ccrewrite"):
        moved()
    assert ("ccrewrite.ir.progress", logging.INFO, "rewrite: comparing outputs with the original's") in caplog.record_tuples


def test_what_is_put_back_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class CountsItsParts(nn.Sequential):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) * len(list(self.modules()))

    with caplog.at_level(logging.INFO, logger="ccrewrite"):
        result = ccrewrite.rewrite(CountsItsParts(nn.Conv1d(2, 2, 3, dilation=2)), torch.randn(1, 2, 9))
    assert result.plan["0"].code == "verification-failed"
    (message,) = (r.getMessage() for r in caplog.records if r.name == "ccrewrite.passes.carry_out")
    assert message.startswith("put back 0: output changed by ")


def test_a_command_that_takes_long_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    told = threading.Event()
    monkeypatch.setattr(console, "SILENT_S", 0.0)
    monkeypatch.setattr(console.err, "print", lambda text, **_: (said.append(text), told.set()))

    @console.reported()
    def command() -> None:
        step("export_onnx", "tracing the model", 0.2)
        assert told.wait(60)

    command()
    assert len(said) == 1, "once, until it has run for much longer"
    assert said[0].startswith("export_onnx: tracing the model, 20 % (")


def test_a_command_that_takes_no_time_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(console.err, "print", lambda text, **_: said.append(text))
    console.reported()(lambda: step("export_onnx", "tracing the model"))()
    assert not said


def test_verbose_logs_to_stderr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "verbose_models.py").write_text(
        "import torch\ndef small():\n    return torch.nn.Conv1d(2, 2, 3, dilation=2), torch.zeros(1, 2, 9)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        found = CliRunner().invoke(app, ["-v", "plan", "verbose_models:small"])
        assert "INFO ccrewrite.ir.progress: plan: running the Conv1d to see its convolutions" in found.stderr
        assert "dilated-to-dcls" in found.stdout
        assert not CliRunner().invoke(app, ["plan", "verbose_models:small"]).stderr
    finally:
        console.log_to_stderr(0)
