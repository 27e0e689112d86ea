"""Sites of open sizes that would take too much memory are refused before anything is written or run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import ExportError
from ccrewrite.export.memory import MEMORY, Need
from ccrewrite.export.onnx import export_onnx
from ccrewrite.export.rewrite import rewrite_onnx
from ccrewrite.families.onnx import OnnxCall
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.nn import CCConv1d, CCConv2d, CCConvTranspose1d, CCConvTranspose2d

SITES: dict[str, Any] = {  # a layer, an input that is taken, one that is not
    "image": (lambda: CCConv2d(16, 16, 3, stride=2, padding=1), (1, 16, 256, 256), (4, 16, 2048, 2048)),
    "sound": (lambda: CCConv1d(1, 258, 256, stride=128), (1, 1, 160_000), (1, 1, 6_000_000)),
    "transposed": (lambda: CCConvTranspose1d(32, 16, 16, stride=8, padding=4), (1, 32, 1000), (1, 32, 2_000_000)),
    "transposed image": (lambda: CCConvTranspose2d(16, 8, 4, stride=2, padding=1), (1, 16, 128, 128), (4, 16, 1024, 1024)),
}


class Mean(nn.Module):
    """Of a layer's outputs, so that their number is free."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).flatten(2).mean(2)


def layer_of(name: str, *, moved: bool) -> Any:
    torch.manual_seed(0)
    layer = SITES[name][0]()
    for tensor in layer.sampling.movers() if moved else ():
        nn.init.normal_(tensor, std=0.1)
    return layer.requires_grad_(False).eval()


def need(layer: Any, shape: tuple[int, ...]) -> Need:
    g = ConvGeometry.from_module(layer)
    call = OnnxCall(g, g.pads, tuple(layer.weight.shape), torch.float32)
    return Need.of("site", layer.sampling.onnx_form(), call, shape, (1,) * g.ndim)


@pytest.mark.parametrize("name", SITES)
def test_estimates(name: str) -> None:
    _, small, large = SITES[name]
    still, moved = (need(layer_of(name, moved=moved), small).bytes for moved in (False, True))
    data = 4 * torch.Size(small).numel()
    assert data < still <= moved < MEMORY / 3
    assert need(layer_of(name, moved=True), large).bytes > MEMORY
    once, twice = (need(layer_of(name, moved=True), (n, *small[1:])).bytes for n in (1, 2))
    assert once < twice <= 2 * once


@pytest.mark.parametrize("name", SITES)
def test_large_sites_are_not_exported(name: str, tmp_path: Path) -> None:
    """The inputs have the size and no memory; nothing of that size is computed."""
    model = Mean(layer_of(name, moved=True))
    x = torch.zeros(1).expand(SITES[name][2])
    with pytest.raises(
        ExportError, match=r"^layer: about [\d.]+ GiB for an input of .*memory=2147483648 allows 2 GiB.*sizes='fixed'"
    ):
        export_onnx(model, tmp_path / "m.onnx", x, sizes="input")
    assert not list(tmp_path.iterdir())


def test_the_limit_is_a_choice(tmp_path: Path) -> None:
    model, x = Mean(layer_of("image", moved=True)), torch.randn(1, 16, 32, 32)
    estimate = need(model.layer, tuple(x.shape)).bytes
    with pytest.raises(ExportError, match=r"^layer: about"):
        export_onnx(model, tmp_path / "m.onnx", x, sizes="input", memory=estimate // 2)
    with pytest.raises(ExportError, match=r"^layer: about"):
        export_onnx(ccrewrite.resize_(model, {"layer": 0.8}), tmp_path / "m.onnx", x, sizes="ratio", memory=estimate // 2)
    assert not list(tmp_path.iterdir())
    ccrewrite.resize_(model, None)
    assert export_onnx(model, tmp_path / "m.onnx", x, sizes="input", memory=2 * estimate).check.ok
    assert export_onnx(model, tmp_path / "m.onnx", x, memory=0).check.ok, "a plain convolution"


@pytest.mark.parametrize("dynamic", [None, {0: "batch", 2: "height"}], ids=["known", "open"])
def test_files_of_others(dynamic: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=2, dilation=2), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.Conv2d(4, 4, 2, 2)
    )
    x: Tensor = torch.randn(2, 3, 32, 32)
    export_onnx(model, tmp_path / "theirs.onnx", x, dynamic=dynamic)
    options: dict[str, Any] = {"example_inputs": {"input": x}, "latency": False}
    with pytest.raises(ExportError, match=r"^2: about .* for an input of 2x4x32x32 .*and 1 more sites.*exclude="):
        rewrite_onnx(tmp_path / "theirs.onnx", tmp_path / "ours.onnx", **options, memory=1000)
    assert not (tmp_path / "ours.onnx").exists()
    dilated = rewrite_onnx(tmp_path / "theirs.onnx", tmp_path / "ours.onnx", **options, kinds="dilated", memory=0)
    assert dilated.check.ok, "no size is open"
    assert rewrite_onnx(tmp_path / "theirs.onnx", tmp_path / "ours.onnx", **options).check.ok
