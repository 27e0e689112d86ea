"""A forecast in a report."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
from forecast_tasks import displaced, signals, student
from torch import nn

import ccrewrite
from ccrewrite.report import Comparison

SCHEMA = Path(__file__).parents[2] / "docs" / "report-schema.json"


def test_a_report_shows_the_forecast(tmp_path: Path) -> None:
    x = signals(8 * 24)
    data = displaced(student(), x)
    told = ccrewrite.forecast(student(), x[:4], data, nn.functional.mse_loss, steps=(8, 8), progress=False)
    rewritten = ccrewrite.rewrite(student(), x[:4], include=["first"], verify=False)
    found = ccrewrite.compare(student(), rewritten, x[:4], quick=True, compiled=False, forecast=told, progress=False)
    found.save(tmp_path)
    data = json.loads((tmp_path / "report.json").read_text())
    jsonschema.validate(data, json.loads(SCHEMA.read_text()))
    assert data["forecast"] == told.for_report()
    assert Comparison.load(tmp_path).data["forecast"]["verdict"] == told.verdict
    page = (tmp_path / "report.html").read_text()
    assert f"Forecast: {told.verdict}" in page
    assert page.count("<svg") >= 1
    text = (tmp_path / "report.md").read_text()
    assert f"## Forecast: {told.verdict}" in text
    assert "unconnected" in text
