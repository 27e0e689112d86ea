"""``benchmarks/speed/gpu.py`` must run unattended where nobody can mend it: here its logic, on the CPU, without compiling."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "speed"


@pytest.mark.slow
def test_every_section_runs_and_is_reported(tmp_path: Path):
    command = [sys.executable, BENCHMARKS / "gpu.py", "--device", "cpu", "--quick", "--out", tmp_path]
    environment = {**os.environ, "TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing is left." in done.stdout
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert set(report["results"]) == {"checks", "depthwise", "shared", "moved", "models"}
    assert {c["form"] for c in report["results"]["checks"].values()} == {"window", "bands", "products", "shifts", "taps"}
    assert report["rates"].keys() == {"copy", "bf16", "tf32", "fp32"}
    assert "## Depthwise" in (tmp_path / "gpu.md").read_text()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gpu")


def test_runs_go_on_where_the_last_one_stopped(gpu: Any, capsys: pytest.CaptureFixture[str]):
    report: dict[str, Any] = {"results": {}}
    measured: list[str] = []

    def cases() -> Any:
        for name in ("first", "broken", "third"):

            def result(name: str = name) -> dict[str, Any]:
                measured.append(name)
                if name == "broken":
                    raise RuntimeError("out of memory")
                return {"exact": True}

            yield name, result

    assert gpu.run(report, "section", cases(), time.monotonic() - 1, lambda: None) == 3
    assert gpu.run(report, "section", cases(), time.monotonic() + 60, lambda: None) == 0
    assert report["results"]["section"]["broken"] == {"error": "RuntimeError: out of memory"}
    assert gpu.run(report, "section", cases(), time.monotonic() + 60, lambda: None) == 0
    assert measured == ["first", "broken", "third", "broken"]


def test_measurements_of_another_device_are_not_kept(gpu: Any, tmp_path: Path):
    file = tmp_path / "gpu.json"
    here = {"device": "A", "torch": "2"}
    file.write_text(json.dumps({"environment": here, "results": {"checks": {}}}))
    assert gpu.load(file, here)["results"] == {"checks": {}}
    assert gpu.load(file, {**here, "device": "B"})["results"] == {}
