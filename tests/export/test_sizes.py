"""ONNX files whose internal sizes stay open, against the resized model."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from exported_models import moved, network
from scale_models import MODELS
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import ExportError, InputError
from ccrewrite.export.onnx import export_onnx
from ccrewrite.nn import CCConv2d, CCConvTranspose2d


def run(path: Path, **inputs: Any) -> Tensor:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {n: torch.as_tensor(v).numpy() for n, v in inputs.items()})[0])


@torch.no_grad()
def agree(model: nn.Module, report: Any, x: Tensor, sizes: dict[str, tuple[int, ...]]) -> None:
    """The file with these inputs against ``model`` resized to the same sizes; sizes of 0 ask for nothing."""
    groups = ccrewrite.scale_groups(model, x)
    settings = {}
    for asked in report.size_inputs:
        first = asked.axes[0][0]
        assert asked.axes == tuple((first, a) for a in range(len(asked.axes))), "one site says the group's size"
        native = groups[first].native[groups[first].sites.index(first)]
        if any(sizes[asked.name]):
            settings[first] = tuple(n / m for n, m in zip(sizes[asked.name], native, strict=True))
    with ccrewrite.resized(model, settings, x):
        expected = model(x)
    (name,) = report.check.runs[0].shapes
    found = run(Path(report.path), **{name: x}, **sizes)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model, x = MODELS["unet_cat_2d"]()
    model = moved(model.eval(), x)
    path = tmp_path_factory.mktemp("sizes") / "unet.onnx"
    return model, export_onnx(model, path, x, sizes="input", dynamic={0: "batch", 2: "height"})


@pytest.fixture(scope="module")
def vocoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model, x = MODELS["vocoder"]()
    model = moved(model.eval(), x)
    return model, export_onnx(model, tmp_path_factory.mktemp("sizes") / "vocoder.onnx", x, sizes="input")


@pytest.mark.slow
@pytest.mark.parametrize("height", [32, 48])
def test_a_unet_at_any_size(unet: tuple[nn.Module, Any], height: int) -> None:
    model, report = unet
    assert [(i.name, i.native) for i in report.size_inputs] == [("down1.size", (16, 20)), ("down2.size", (8, 10))]
    draw = random.Random(height)
    x = torch.randn(2, *MODELS["unet_cat_2d"]()[1].shape[1:2], height, 40)
    agree(model, report, x, {"down1.size": (0, 0), "down2.size": (0, 0)})
    agree(model, report, x, {"down1.size": (1, 1), "down2.size": (1, 1)})
    agree(model, report, x, {"down1.size": (48, 60), "down2.size": (24, 30)})
    agree(model, report, x, {"down1.size": (0, 0), "down2.size": (5, 9)})
    for _ in range(6):
        sizes = {i.name: tuple(draw.randint(2, 3 * n) for n in i.native) for i in report.size_inputs}
        agree(model, report, x, sizes)


@pytest.mark.slow
def test_a_vocoder_at_any_size(vocoder: tuple[nn.Module, Any]) -> None:
    model, report = vocoder
    draw = random.Random(0)
    x = MODELS["vocoder"]()[1]
    agree(model, report, x, {i.name: (1,) for i in report.size_inputs})
    agree(model, report, x, {i.name: (3 * i.native[0],) for i in report.size_inputs})
    for _ in range(18):
        agree(model, report, x, {i.name: tuple(draw.randint(1, 3 * n) for n in i.native) for i in report.size_inputs})


@pytest.mark.slow
def test_what_the_report_says(unet: tuple[nn.Module, Any]) -> None:
    _, report = unet
    assert {s.name: s.code for s in report.sites} == dict.fromkeys(("down1", "down2", "up1", "up2"), "size-input")
    assert len({tuple(c.sizes.items()) for c in report.check.runs}) >= 5, "native and two others, for each shape of the input"
    assert "down1.size" in str(report)
    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape, i.type) for i in session.get_inputs()] == [("x", ["batch", 1, "height", 40], "tensor(float)")]
    assert [(i.name, i.shape, i.type) for i in session.get_overridable_initializers()] == [
        ("down1.size", [2], "tensor(int64)"),
        ("down2.size", [2], "tensor(int64)"),
    ]


def test_ratios_follow_the_input(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 32, 34)
    model = ccrewrite.resize_(moved(network(), x), {"down": (0.7, 1.3)})
    report = export_onnx(model, tmp_path / "m.onnx", x, sizes="ratio", dynamic={0: "batch", 2: "height", 3: "width"})
    assert {s.name: s.code for s in report.sites} == {"down": "size-ratio", "across": "convolution", "up": "size-ratio"}
    for shape in ((1, 3, 32, 34), (3, 3, 50, 22)):
        y = torch.randn(shape)
        torch.testing.assert_close(run(tmp_path / "m.onnx", input=y), model(y).detach(), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_scales_of_layers_follow_the_input(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 16, 18)
    model: Any = moved(network(), x)
    model.down.sampling.scale, model.up.sampling.scale = 1.3, (0.7, 0.5)
    export_onnx(model, tmp_path / "m.onnx", x, sizes="ratio", dynamic={2: "height"})
    y = torch.randn(1, 3, 41, 18)
    torch.testing.assert_close(run(tmp_path / "m.onnx", input=y), model(y).detach(), rtol=0, atol=1e-4)


class Hosted(nn.Module):
    """Functional calls, one of them with a weight that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.filter = nn.Parameter(torch.randn(4, 2, 4, 4))

    def forward(self, picture: Tensor) -> Tensor:
        low = nn.functional.conv2d(picture, self.kernel.tanh(), stride=2, padding=1)
        return nn.functional.conv_transpose2d(low, self.filter, stride=2, padding=1).mean((2, 3))


@pytest.mark.parametrize("kernel", ["nodes", pytest.param("mlp", marks=pytest.mark.slow)])
def test_hosts_with_a_weight_that_is_computed(kernel: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 12, 14)
    rules = [ccrewrite.StridedToCC(kernel=kernel), ccrewrite.TransposedToCC(kernel=kernel)]  # pyright: ignore[reportArgumentType]
    result = ccrewrite.rewrite(Hosted().eval(), x, rules=rules, verify=kernel != "mlp")  # which is no exact start
    assert len(result.plan.rewritten) == 2
    model = result.model
    report = export_onnx(model, tmp_path / "m.onnx", x, sizes="input")
    assert [i.native for i in report.size_inputs] == [(6, 7), (12, 14)]
    assert report.check.max_rel_error <= 1e-4


@pytest.mark.slow
def test_half_precision_and_a_root_that_is_a_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(CCConv2d(2, 3, 3, stride=2), CCConvTranspose2d(3, 2, 3, stride=2), nn.AdaptiveAvgPool2d(1)).half()
    report = export_onnx(layer, tmp_path / "m.onnx", torch.randn(1, 2, 9, 9).half(), sizes="input")
    assert [i.name for i in report.size_inputs] == ["0.size", "1.size"]
    assert report.check.max_rel_error <= 1e-2
    root = CCConv2d(2, 3, 3, stride=2)
    root.scale = 1.5
    x = torch.randn(1, 2, 9, 9)
    assert export_onnx(root, tmp_path / "r.onnx", x, sizes="ratio", dynamic={2: "h"}).check.runs[1].shapes["input"] == (
        1,
        2,
        13,
        9,
    )


def test_bad_input(tmp_path: Path) -> None:
    x = torch.randn(1, 3, 16, 16)
    plain = network()
    with pytest.raises(InputError, match="no resizable site"):
        export_onnx(plain, tmp_path / "m.onnx", x, sizes="input")
    model = ccrewrite.rewrite(plain, x).model
    with pytest.raises(InputError, match="'fixed', 'ratio', 'input'"):
        export_onnx(model, tmp_path / "m.onnx", x, sizes="free")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has none"):
        export_onnx(model, tmp_path / "m.onnx", x, sizes="ratio")
    pinned, y = MODELS["windows"]()
    pinned = ccrewrite.rewrite(pinned, y).model
    with pytest.raises(InputError, match="pinned"):
        export_onnx(pinned, tmp_path / "m.onnx", y, sizes="input")
    with pytest.raises(InputError, match="resize_"):
        export_onnx(ccrewrite.resize_(model, {"down": 0.8}), tmp_path / "m.onnx", x, sizes="input")
    with pytest.raises(ExportError, match="float64"):
        export_onnx(ccrewrite.rewrite(plain.double(), x.double()).model, tmp_path / "m.onnx", x.double(), sizes="input")
    assert not list(tmp_path.iterdir())
