"""Work that takes long says what it is at: to listeners, to the log, on stderr."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

import ccrewrite
from ccrewrite.cli import console
from ccrewrite.cli.app import app
from ccrewrite.ir.progress import Step, progress, step


def moved() -> tuple[nn.Module, torch.Tensor]:
    model, x = nn.Sequential(nn.Conv1d(2, 2, 3, dilation=2)), torch.randn(1, 2, 16)
    result = ccrewrite.rewrite(model, x).model
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


def test_steps_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ccrewrite"):
        moved()
    assert ("ccrewrite.ir.progress", logging.INFO, "rewrite: comparing outputs with the original's") in caplog.record_tuples


def test_what_is_put_back_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Reads(nn.Conv1d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) * len(list(self.children())) if list(self.children()) else super().forward(input)

    with caplog.at_level(logging.INFO, logger="ccrewrite"):
        result = ccrewrite.rewrite(Reads(2, 2, 3, dilation=2), torch.randn(1, 2, 9))
    told = [record.getMessage() for record in caplog.records if record.name == "ccrewrite.passes.carry_out"]
    assert [message.startswith("put back (root): ") for message in told] == [
        site.code == "verification-failed" for site in result.plan if site.code == "verification-failed"
    ]


@pytest.mark.parametrize(("silent", "lines"), [(0.2, True), (60.0, False)])
def test_a_command_that_takes_long_says_so(silent: float, lines: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "SILENT_S", silent)

    @console.reported()
    def command() -> None:
        step("export_onnx", "tracing the model", 0.2)
        deadline = time.monotonic() + 0.8
        while time.monotonic() < deadline:
            time.sleep(0.05)

    program = typer.Typer()
    program.command()(command)
    said = CliRunner().invoke(program).stderr
    assert said.count("export_onnx: tracing the model, 20 % (") == int(lines), "once, until it has run for much longer"


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
