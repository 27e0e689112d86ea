"""What the machine lacks is said, with what still works and how to mend it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import ccrewrite.families.family
from ccrewrite.cli.app import app
from ccrewrite.cli.examined import EXTRAS
from ccrewrite.errors import InputError


def doctor(status: int = 0) -> dict[str, Any]:
    """The findings by part."""
    found = CliRunner().invoke(app, ["doctor", "--json"])
    assert found.exit_code == status, found.output
    return {finding["part"]: finding for finding in json.loads(found.stdout)}


def compiler(folder: Path, name: str, code: str) -> str:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{code}\n", encoding="utf-8")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return str(file)


def test_a_bare_machine(tmp_path: Path) -> None:
    """No compiler, no extras, no GPU: nothing is broken, and what needs none of these works."""
    code = """
import sys
from importlib import import_module
lacking = ("onnx", "onnx_ir", "onnxscript", "onnxruntime", "accelerate", "jinja2", "matplotlib", "scipy", "sklearn")
sys.modules.update(dict.fromkeys(lacking))
sys.argv = ["ccrewrite", "doctor", "--json"]
from ccrewrite.cli import main
main()
"""
    environment = {n: v for n, v in os.environ.items() if n != "CXX"}
    environment |= {"PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": "", "CCREWRITE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {finding["part"]: finding for finding in json.loads(done.stdout)}
    assert {part: finding["state"] for part, finding in found.items()} == {
        **dict.fromkeys(("versions", "rewriting", "families", "cache"), "ok"),
        **dict.fromkeys((*(f"extra {name}" for name in EXTRAS), "C++ compiler", "CUDA"), "missing"),
    }
    assert found["extra onnx"]["found"] == "no onnx, onnx-ir, onnxscript, onnxruntime"
    assert found["extra onnx"]["mend"] == "pip install 'ccrewrite[onnx]'"
    assert "export_onnx" in found["extra onnx"]["serves"]
    assert found["C++ compiler"]["found"] == "no g++ or clang++ or c++ on the path"
    assert "apt install g++" in found["C++ compiler"]["mend"]
    assert "fold" in found["rewriting"]["serves"]


def test_every_extra_is_looked_for() -> None:
    """But for what development adds, and with all packages of each."""
    wanted = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    del wanted["dev"]
    assert {name: sorted(packages) for name, (packages, _) in EXTRAS.items()} == {
        name: sorted(package.partition(">")[0] for package in packages) for name, packages in wanted.items()
    }


def test_as_text_what_is_not_ok_says_what_for_and_how_to_mend_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    said = CliRunner().invoke(app, ["doctor"]).stdout
    assert (
        "missing  extra train: no accelerate\n         for: finetune\n         mend: pip install 'ccrewrite[train]'\n" in said
    )
    assert "ok       rewriting: a small model was rewritten, and computes the same\n" in said


@pytest.mark.parametrize(
    ("code", "reason", "mend"),
    [
        ("echo 'x.cpp:1:10: fatal error: Python.h: No such file' >&2; exit 1", "Python.h: No such file", "python3-dev"),
        (
            "echo 'clang: error: unsupported option -fopenmp' >&2; exit 1",
            "unsupported option -fopenmp",
            "install OpenMP for it",
        ),
        ("exit 1", "it fails", "install"),
    ],
)
def test_a_compiler_that_does_not_compile(
    code: str, reason: str, mend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, "cxx", code))
    finding = doctor(status=1)["C++ compiler"]
    assert finding["state"] == "broken"
    assert reason in finding["found"]
    assert mend in finding["mend"]


def test_a_package_that_can_not_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "accelerate.py").write_text("raise ImportError('built for another numpy')")
    monkeypatch.delitem(sys.modules, "accelerate", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    finding = doctor(status=1)["extra train"]
    assert finding["found"] == "accelerate can't be imported: ImportError: built for another numpy"
    assert finding["mend"] == "pip install --force-reinstall accelerate"


def test_a_family_that_can_not_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise InputError("the family 'turned' of the installed package turned can't be loaded")

    monkeypatch.setattr(ccrewrite.families.family, "families", broken)
    assert doctor(status=1)["families"]["found"].startswith("InputError: the family 'turned' of the installed package turned")


def test_a_cache_that_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CCREWRITE_CACHE", str(tmp_path / "file" / "cache"))
    finding = doctor(status=1)["cache"]
    assert (finding["state"], "CCREWRITE_CACHE" in finding["mend"]) == ("broken", True)


@pytest.mark.parametrize(
    ("built", "devices", "triton", "state", "said"),
    [
        (None, 0, None, "missing", "torch is built for the CPU"),
        ("12.8", 0, None, "missing", "torch is built for CUDA 12.8, and finds no device"),
        ("12.8", 1, None, "broken", "H100, without triton"),
        ("12.8", 1, "3.7", "ok", "H100, CUDA 12.8, triton 3.7"),
    ],
)
def test_gpus(
    built: str | None, devices: int, triton: str | None, state: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ccrewrite.cli import examined

    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "H100")
    monkeypatch.setattr(examined, "_version", lambda package: triton)
    finding = examined._cuda()
    assert (finding.state, finding.found) == (state, said)


def test_env_names_versions_and_no_folders() -> None:
    found = CliRunner().invoke(app, ["env"]).stdout
    lines = dict(line.split(": ", 1) for line in found.strip().splitlines())
    assert {"ccrewrite", "torch", "python", "onnx", "system", "threads"} <= lines.keys()
    assert str(Path.home()) not in found
    assert json.loads(CliRunner().invoke(app, ["env", "--json"]).stdout)["versions"]["torch"] == torch.__version__
