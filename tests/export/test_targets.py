"""``export_onnx(target=)``: what a runtime takes is written so, and what it doesn't take is said before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import onnx
import pytest
import torch
from torch import nn

import ccrewrite
from ccrewrite.errors import InputError, TargetWarning
from ccrewrite.export.onnx import export_onnx
from ccrewrite.nn import Sampling
from ccrewrite.passes.targets import target_of


def moved(layer: nn.Module, *size: int) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    channels = cast(Any, layer).in_channels
    x = torch.randn(1, channels, *size)
    model = ccrewrite.rewrite(nn.Sequential(layer).eval(), x).model
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Sampling):
                for mover in module.movers():
                    mover += 0.4
    return model, x


def convs(path: Path) -> list[tuple[str, list[int]]]:
    """Each convolution and its pads."""
    graph = onnx.load(path).graph
    found = [n for n in graph.node if n.op_type in ("Conv", "ConvTranspose")]
    return [(n.op_type, next((list(a.ints) for a in n.attribute if a.name == "pads"), [])) for n in found]


@pytest.mark.parametrize(
    ("target", "ndim", "equal"),
    [("onnxruntime-cpu", 2, False), ("onnxruntime-cuda", 2, True), ("tensorrt", 2, False), ("tensorrt", 3, True)],
)
def test_pads_of_transposed_convolutions(target: str, ndim: int, equal: bool, tmp_path: Path) -> None:
    kind = nn.ConvTranspose2d if ndim == 2 else nn.ConvTranspose3d
    model, x = moved(kind(3, 4, 4, stride=2, padding=1), *(5, 6, 4)[:ndim])
    file = export_onnx(model, tmp_path / "m.onnx", x, target=target)
    assert file.not_taken == ()
    ((_, pads),) = convs(tmp_path / "m.onnx")
    assert (pads[:ndim] == pads[ndim:]) is equal
    assert file.ops_after == ({"ConvTranspose": 1, "Slice": ndim} if equal else {"ConvTranspose": 1})


def test_what_a_target_does_not_take_is_said(tmp_path: Path) -> None:
    model, x = moved(nn.Conv2d(8, 8, 3, dilation=2, padding=2), 16, 16)
    with pytest.warns(TargetWarning, match=r"DclsConv.*a call of a function"):
        file = export_onnx(model, tmp_path / "m.onnx", x, functions=True, target="openvino")
    assert [n.what for n in file.not_taken] == ["a call of a function in the file"]
    assert "not taken: DclsConv" in str(file)
    mine = replace(target_of("tensorrt"), lacks=frozenset({"Conv"}))
    with pytest.warns(TargetWarning, match="this operator"):
        export_onnx(model, tmp_path / "m.onnx", x, target=mine)


def test_targets_that_read_no_such_files(tmp_path: Path) -> None:
    model, x = moved(nn.Conv2d(8, 8, 3, dilation=2, padding=2), 16, 16)
    with pytest.raises(InputError, match=r"coreml reads no ONNX files: fold\(target='coreml'\), then coremltools"):
        export_onnx(model, tmp_path / "m.onnx", x, target="coreml")
    with pytest.raises(InputError, match=r"tensorrt takes operator sets 9 to 20 .*found opset=22"):
        export_onnx(model, tmp_path / "m.onnx", x, target="tensorrt", opset=22)
    assert not list(tmp_path.iterdir())
