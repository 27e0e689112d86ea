"""Families that are not the package's in ONNX files: with a form of their own, and without one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import InputError
from ccrewrite.export.onnx import export_onnx
from ccrewrite.export.rewrite import rewrite_onnx
from ccrewrite.families.adopt import adopt_
from ccrewrite.families.onnx import OnnxCall, OnnxForm, OnnxOperator
from ccrewrite.families.resizable import ResizableSampling
from ccrewrite.families.rule import Rule
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.geometry import ConvGeometry


class PlainSampling(Sampling):
    """A factor for each filter; says nothing of ONNX."""

    def __init__(self, geometry: ConvGeometry, *, dtype: Any = None, device: Any = None) -> None:
        super().__init__(geometry)
        self.factor = nn.Parameter(torch.zeros(geometry.out_channels, dtype=dtype, device=device))

    def movers(self) -> list[Tensor]:
        return [self.factor]

    def kernel(self, weight: Tensor) -> Tensor:
        dense = weight * (1 + self.factor.view(-1, *(1,) * (weight.dim() - 1)))
        for axis, dilation in enumerate(self.dilation):
            cells = dense.new_zeros(weight.shape[2 + axis], self.window[axis])
            cells[torch.arange(len(cells)), torch.arange(0, self.window[axis], dilation)] = 1
            dense = (dense.movedim(2 + axis, -1) @ cells).movedim(-1, 2 + axis)
        return dense


class ScaledSampling(PlainSampling):
    """The same, with a form of its own."""

    def onnx_form(self) -> OnnxForm:
        return ScaledForm(self)


@dataclass(frozen=True)
class Scaled(OnnxOperator):
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    group: int

    name = "Scaled"

    def body(self, op: Any, x: Any, weight: Any, bias: Any, more: Mapping[str, Any]) -> Any:
        factor = op.Unsqueeze(op.Add(1.0, more["factor"]), list(range(1, 2 + len(self.strides))))
        kernel = op.Mul(weight, factor)
        return op.Conv(x, kernel, bias, strides=self.strides, dilations=self.dilations, pads=self.pads, group=self.group)


class ScaledForm(OnnxForm):
    def __init__(self, layer: PlainSampling) -> None:
        self.tensors = {"factor": layer.factor}

    def operator(self, call: OnnxCall) -> Scaled:
        g = call.geometry
        return Scaled(g.stride, g.dilation, (*(low for low, _ in call.pads), *(high for _, high in call.pads)), g.groups)


@dataclass(frozen=True)
class ToPlain(Rule):
    name = "dilated-to-plain"
    kind = PlainSampling

    def takes(self, site: Any) -> bool:
        return "dilated" in site.kinds

    def sampling(self, site: Any, **factory: Any) -> Sampling:
        return self.kind.of(site.geometry, **factory)


@dataclass(frozen=True)
class ToScaled(ToPlain):
    name = "dilated-to-scaled"
    kind = ScaledSampling


class Net(nn.Module):
    """A layer, and two functional calls, one of them with a computed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, dilation=2, padding=1)
        self.kernel = nn.Parameter(torch.randn(3, 4, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.conv2d(x, self.kernel, dilation=3) + F.conv2d(x, self.kernel.tanh(), dilation=(3, 3), groups=1)


class Twice(nn.Module):
    """So many of its layers as ``steps`` says."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.later = nn.Conv2d(2, 2, 3, dilation=2), nn.Conv2d(2, 2, 3, dilation=2)
        self.steps = 2

    def forward(self, x: Tensor) -> Tensor:
        x = self.used(x)
        return self.later(x) if self.steps > 1 else x


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(1, 2, 14, 12)


def moved(model: nn.Module, x: Tensor, rule: Rule) -> Any:
    rewritten = ccrewrite.rewrite(model.eval(), x, rules=[rule]).model
    for sampling in rewritten.modules():
        if isinstance(sampling, PlainSampling):
            nn.init.normal_(sampling.factor, std=0.3)
    return rewritten


def test_one_without_a_form_is_folded(x: Tensor, tmp_path: Path) -> None:
    file = export_onnx(moved(Net(), x, ToPlain()), tmp_path / "m.onnx", x, functions=True, dynamic={0: "batch"})
    assert {s.name: s.code for s in file} == {"conv": "convolution", "kernel": "geometry", ":conv2d": "geometry"}
    assert file.check.max_rel_error <= 1e-5
    assert not onnx.load(file.path).functions


def test_one_with_a_form_is_a_function(x: Tensor, tmp_path: Path) -> None:
    model = moved(Net(), x, ToScaled())
    file = export_onnx(model, tmp_path / "m.onnx", x, functions=True, dynamic={0: "batch", 2: "height"})
    assert {s.name: (s.code, s.message, s.initializers) for s in file} == {
        "conv": ("function", "Scaled", ("conv.factor",)),
        "kernel": ("function", "Scaled", ("kernel.factor",)),
        ":conv2d": ("function", "Scaled", (":conv2d.factor",)),
    }
    proto = onnx.load(file.path)
    assert [f.name for f in proto.functions] == ["Scaled", "Scaled_2"]
    calls = [{p.key: p.value for p in n.metadata_props} for n in proto.graph.node if n.domain == "ccrewrite"]
    assert [c["ccrewrite.module"] for c in calls] == ["conv", "kernel", ":conv2d"]
    for entry in proto.graph.initializer:
        if entry.name == "conv.factor":
            entry.CopyFrom(onnx.numpy_helper.from_array(np.zeros(4, np.float32), entry.name))
    onnx.save(proto, tmp_path / "edited.onnx")
    model.conv.sampling.factor.data.zero_()
    session = onnxruntime.InferenceSession(str(tmp_path / "edited.onnx"), providers=["CPUExecutionProvider"])
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), model(x).detach())


class Bare(ScaledForm):
    """Nothing learned is beside it."""

    def __init__(self) -> None:
        self.tensors = {}

    def operator(self, call: OnnxCall) -> Plain:
        g = call.geometry
        return Plain(g.stride, g.dilation, (*(low for low, _ in call.pads), *(high for _, high in call.pads)), g.groups)


class Plain(Scaled):
    name = "Plain"

    def body(self, op: Any, x: Any, weight: Any, bias: Any, more: Mapping[str, Any]) -> Any:
        assert not more
        return op.Conv(x, weight, bias, strides=self.strides, dilations=self.dilations, pads=self.pads, group=self.group)


def test_a_function_with_nothing_learned(x: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScaledSampling, "onnx_form", lambda _: Bare())
    file = export_onnx(ccrewrite.rewrite(Net().eval(), x, rules=[ToScaled()]), tmp_path / "m.onnx", x, functions=True)
    assert {(s.code, s.message, s.initializers) for s in file} == {("function", "Plain", ())}


@pytest.mark.parametrize(("rule", "learned"), [("dilated-to-dcls", "positions"), (ToScaled(), "factor")])
def test_what_two_sites_learned_stays_apart_though_it_is_equal(x: Tensor, tmp_path: Path, rule: Any, learned: str) -> None:
    model = nn.Sequential(*(nn.Conv2d(2, 2, 3, dilation=2) for _ in range(2))).eval()
    file = export_onnx(ccrewrite.rewrite(model, x, rules=[rule]), tmp_path / "m.onnx", x, functions=True)
    assert [name for s in file for name in s.initializers] == [f"{site}.{learned}" for site in "01"]
    proto = onnx.load(file.path)
    assert [value.name for value in proto.graph.input] == ["input"]
    assert {i for n in proto.graph.node if n.domain == "ccrewrite" for i in n.input} >= {
        n for s in file for n in s.initializers
    }


def test_flat_without_functions(x: Tensor, tmp_path: Path) -> None:
    file = export_onnx(moved(Net(), x, ToScaled()), tmp_path / "m.onnx", x)
    assert {s.code for s in file} == {"convolution", "geometry"}


def test_a_function_that_is_not_called(x: Tensor, tmp_path: Path) -> None:
    model: Any = moved(Twice(), x, ToScaled())
    model.steps = 1
    file = export_onnx(model, tmp_path / "m.onnx", x, functions=True)
    assert {s.name: s.initializers for s in file} == {"used": ("used.factor",), "later": ()}
    assert "later.factor" not in {i.name for i in onnx.load(file.path).graph.initializer}


def test_files_of_others(x: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, dilation=2), nn.Conv2d(4, 2, 3, stride=2)).eval()
    export_onnx(model, tmp_path / "theirs.onnx", x)
    result = rewrite_onnx(tmp_path / "theirs.onnx", tmp_path / "ours.onnx", rules=[ToScaled(), "strided-to-cc"])
    assert [(s.name, s.code, s.initializers) for s in result] == [
        ("0", "dilated-to-scaled", ("0.factor",)),
        ("1", "strided-to-cc", ()),
    ]
    result = rewrite_onnx(tmp_path / "theirs.onnx", tmp_path / "ours.onnx", rules=[ToPlain(), "strided-to-cc"])
    assert [s.code for s in result] == ["no-rule", "strided-to-cc"]
    assert result["0"].message == (
        "dilated-to-plain makes a PlainSampling of it, which has no operator of its own in ONNX (onnx_form)"
    )


class Interpolated(ResizableSampling):
    """Another size by interpolating the convolution's output; says nothing of ONNX."""

    def __init__(self, geometry: ConvGeometry) -> None:
        super().__init__(geometry)
        self.gain = nn.Parameter(torch.zeros(1))

    def movers(self) -> list[Tensor]:
        return [self.gain]

    def kernel(self, weight: Tensor) -> Tensor:
        return weight * (1 + self.gain)

    def at_size(self, input: Tensor, weight: Tensor, bias: Any, call: dict[str, Any], asked: Any, scale: Any) -> Tensor:
        return F.interpolate(self.moved(input, weight, bias, {**call}), asked)  # pyright: ignore[reportArgumentType]


def test_a_size_that_cannot_stay_open_is_refused_by_name(x: Tensor, tmp_path: Path) -> None:
    conv = nn.Conv2d(2, 4, 3, 2, 1)
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1)).eval()
    adopt_(conv, Interpolated(ConvGeometry.from_module(conv)))
    with pytest.raises(InputError, match="0: the output size of its Interpolated can't stay open in an ONNX file"):
        export_onnx(model, tmp_path / "m.onnx", x, sizes="input")
    assert export_onnx(model, tmp_path / "m.onnx", x)["0"].code == "original"
