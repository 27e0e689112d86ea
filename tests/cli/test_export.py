"""What `ccrewrite fold` and `ccrewrite export` do."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ccrewrite
from ccrewrite.cli.export import axes, export_command, fold_command, rewrite_onnx_command
from ccrewrite.errors import InputError


def original() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, dilation=2), nn.Conv2d(4, 4, 3, stride=2), nn.Conv2d(4, 4, 3, stride=2)).eval()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[nn.Module, Any, Path]:
    """A rewritten model that learnt something, and a directory for files."""
    x = torch.randn(1, 3, 24, 24)
    result: Any = ccrewrite.rewrite(original(), x, rules=[ccrewrite.DilatedToDcls(reach=1), "strided-to-cc"], exclude="2")
    torch.nn.init.normal_(result.model[0].sampling.offset)
    torch.nn.init.normal_(result.model[1].sampling.shift, std=0.2)
    return result.model, x, tmp_path


def test_fold(saved: tuple[nn.Module, Any, Path]) -> None:
    model, x, directory = saved
    text, ok = fold_command(model, x, directory / "model.pt2")
    assert ok
    assert "2 sites" in text
    program = torch.export.load(directory / "model.pt2")
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)
    assert json.loads(fold_command(model, x, directory / "model.pt2", as_json=True)[0])["check"]["ok"]


def test_where_fold_cannot_write(saved: tuple[nn.Module, Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, directory = saved
    target = directory / "model.pt2"
    target.write_text("what was there")

    def full(path: Path, data: Any) -> None:
        path.write_text("half of it")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="no directory"):
        fold_command(model, x, directory / "nowhere" / "model.pt2")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(InputError, match="No space left"):
            fold_command(model, x, target)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: Path(path) != target)
        with pytest.raises(InputError, match="no permission"):
            fold_command(model, x, target)
    assert target.read_text() == "what was there"
    assert os.listdir(directory) == ["model.pt2"]


def test_export(saved: tuple[nn.Module, Any, Path]) -> None:
    model, x, directory = saved
    assert "opset 20" in export_command(model, x, directory / "model.onnx", dynamic="0=batch")
    assert (directory / "model.onnx").exists()


def test_axes() -> None:
    assert axes(None) is None
    for wrong in ("x:batch", "x:a=batch", "0"):
        with pytest.raises(InputError, match="AXIS=NAME"):
            axes(wrong)


def test_rewrite_onnx(tmp_path: Path) -> None:
    x = torch.randn(1, 2, 17)
    ccrewrite.export_onnx(nn.Conv1d(2, 2, 3, stride=2), tmp_path / "in.onnx", x, dynamic={2: "length"})
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    with pytest.raises(InputError, match="pass example_inputs"):
        rewrite_onnx_command(source, target)
    with pytest.raises(InputError, match="have names"):
        rewrite_onnx_command(source, target, inputs=["1x2x17"])
    text = rewrite_onnx_command(source, target, inputs=["input=1x2x17"], kinds="strided")
    assert "strided-to-cc" in text
    assert target.exists()
    assert json.loads(rewrite_onnx_command(source, target, inputs=["input=1x2x17"], as_json=True))["size_inputs"]
