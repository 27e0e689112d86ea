"""What exported and rewritten files take in onnxruntime, next to the originals."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from exported_models import moved, network

import ccrewrite
from ccrewrite.export.onnx import export_onnx
from ccrewrite.export.rewrite import rewrite_onnx


def test_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 32, 32)
    model = moved(network(), x)
    assert export_onnx(model, tmp_path / "m.onnx", x).latency is None
    for sizes in ("fixed", "input"):
        file = export_onnx(model, tmp_path / "m.onnx", x, sizes=sizes, latency=True)  # type: ignore[arg-type]
        took = file.latency
        assert took is not None
        assert took.ratio_low <= took.ratio <= took.ratio_high
        assert json.loads(file.to_json())["latency"]["file_s"] == took.file_s > 0
        assert str(took) in str(file)
        assert not list(tmp_path.glob("*original*"))


def test_the_original_is_what_it_is_timed_against(tmp_path: Path) -> None:
    """A far-dilated layer of all its own positions costs several times the plain one."""
    torch.manual_seed(0)
    x = torch.randn(1, 16, 40, 40)
    conv = torch.nn.Conv2d(16, 16, 3, dilation=6, padding=6)
    file = export_onnx(moved(conv, x, ccrewrite.DilatedToDcls(sharing="full")), tmp_path / "m.onnx", x, latency=True)
    assert file.latency is not None
    assert file.latency.ratio > 2


def test_rewritten(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 32, 32)
    export_onnx(network(), tmp_path / "theirs.onnx", x)
    result = rewrite_onnx(tmp_path / "theirs.onnx", tmp_path / "ours.onnx")
    assert result.latency is not None
    assert result.latency.ratio < 3
    assert str(result.latency) in str(result)
    assert rewrite_onnx(tmp_path / "theirs.onnx", tmp_path / "ours.onnx", latency=False).latency is None
