"""`ccrewrite forecast config.toml` and `ccrewrite plan --costs`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ccrewrite.cli.app import app

CONFIG = """
model = "forecast_tasks:student"
input = ["8x1x48"]
data = "forecast_data:batches"
loss = "torch.nn.functional:mse_loss"
out = "run"

[rewrite]
include = ["first", "second"]

[finetune]
epochs = 2
seed = 1
"""
DATA = """
from forecast_tasks import displaced, signals, student
def batches():
    return displaced(student(), signals(8 * 24))
"""


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "forecast_data.py").write_text(DATA)
    (tmp_path / "config.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def test_the_keys_of_finetunes_file(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["forecast", "config.toml", "--json", "--latency", "1000"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["verdict"] == "pays"
    assert found["chosen"] == ["first", "second"]
    assert not (tmp_path / "run").exists()


def test_a_table_and_what_is_left_out() -> None:
    done = CliRunner().invoke(app, ["forecast", "config.toml", "--latency", "1"])
    assert done.exit_code == 0, done.output
    assert "pays: 28 steps rewritten" in done.stdout
    assert "within 1 of the time: none" in done.stdout
    assert "first: left out by the forecast: latency=1 leaves no room" in done.stdout


def test_costs_of_a_plan() -> None:
    plan = ["plan", "forecast_tasks:student", "--input", "8x1x48"]
    done = CliRunner().invoke(app, [*plan, "--costs", "--estimated", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["costs"]["first"]["how"] == "estimated"
    shown = CliRunner().invoke(app, [*plan, "--costs", "--estimated"]).stdout
    assert "time and step: inference and a training step once moved" in shown
    assert CliRunner().invoke(app, [*plan, "--estimated"]).exit_code == 2
