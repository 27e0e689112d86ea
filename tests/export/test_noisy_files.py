"""Models that amplify rounding, as files: right sites are accepted, and the noise is said; a wrong site is caught, by name."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import ExportError
from ccrewrite.export import onnx as export
from ccrewrite.export.metadata import MODULE
from ccrewrite.export.regions import seen_in
from ccrewrite.export.rewrite import rewrite_onnx
from ccrewrite.families.cc.onnx import kernel
from ccrewrite.families.dcls.onnx import DclsForm

X = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))


class Amplifier(nn.Module):
    """Five times as noisy with each of its steps, ``before`` its second layer and after it."""

    def __init__(self, before: int = 0, after: int = 9) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, padding=4, dilation=4)
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        for _ in range(self.before):
            x = torch.sin(5 * x)
        x = self.second(x)
        for _ in range(self.after):
            x = torch.sin(5 * x)
        return x.mean((2, 3))


def moved(**steps: int) -> Any:
    model: Any = ccrewrite.rewrite(Amplifier(**steps).eval(), X).model
    with torch.no_grad():
        model.first.sampling.shift.add_(0.2)
        model.second.sampling.offset[0].add_(0.3)
    return model


def theirs(folder: Path) -> Path:
    """The same as a file of others."""
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("Conv", ["x", "u"], ["a"], name="first", strides=[2, 2], pads=[1] * 4)]
    nodes.append(helper.make_node("Conv", ["a", "v"], ["y0"], name="second", dilations=[4, 4], pads=[4] * 4))
    for i in range(9):
        nodes.append(helper.make_node("Mul", [f"y{i}", "five"], [f"z{i}"]))
        nodes.append(helper.make_node("Sin", [f"z{i}"], [f"y{i + 1}"]))
    arrays = {"u": rng.standard_normal((16, 3, 3, 3)) / 5, "v": rng.standard_normal((16, 16, 3, 3)) / 12, "five": np.array(5.0)}
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 3, 24, 24]), ("y9", [1, 16, 12, 12])))
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(a.astype("f"), n) for n, a in arrays.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "theirs.onnx")
    return folder / "theirs.onnx"


def test_a_noisy_file_of_others_is_rewritten(tmp_path: Path) -> None:
    result = rewrite_onnx(theirs(tmp_path), tmp_path / "ours.onnx", example_inputs={"x": X})
    assert len(result.plan.rewritten) == 2
    assert result.check.runs[0].max_rel_error == 0
    assert "this model amplifies rounding by" in result.check.note
    assert "the runtime optimizes the same file less" in str(result)
    with pytest.raises(ExportError, match="something else"):
        rewrite_onnx(tmp_path / "theirs.onnx", tmp_path / "ours.onnx", example_inputs={"x": X}, tolerance=1e-5)
    assert rewrite_onnx(tmp_path / "theirs.onnx", tmp_path / "o.onnx", example_inputs={"x": X}, tolerance=1.0).check.note == ""


@pytest.mark.parametrize("error", [1e-4, 1e-2])
def test_a_wrong_site_of_a_noisy_file_is_caught(error: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernel.basis

    def broken(op: Any, name: str, distance: Any) -> Any:
        return op.Add(right(op, name, distance), error)

    with monkeypatch.context() as patch:
        patch.setattr(kernel, "basis", broken)
        with pytest.raises(ExportError, match=r"first is off by .* on the input that it gets. Nothing was written"):
            rewrite_onnx(theirs(tmp_path), tmp_path / "ours.onnx", example_inputs={"x": X})

    def displaced(self: DclsForm, layer: Any) -> None:
        init(self, layer)
        self.tensors = {"positions": self.tensors["positions"] - error}

    init = DclsForm.__init__
    monkeypatch.setattr(DclsForm, "__init__", displaced)
    with pytest.raises(ExportError, match=r"second is off by .* on the input that it gets"):
        rewrite_onnx(theirs(tmp_path), tmp_path / "ours.onnx", example_inputs={"x": X})
    assert not (tmp_path / "ours.onnx").exists()


@pytest.mark.parametrize(
    ("steps", "options"),
    [({}, {}), ({}, {"functions": True}), ({}, {"sizes": "input"}), ({"before": 9, "after": 0}, {}), ({"before": 9}, {})],
)
def test_a_noisy_model_is_exported(steps: Any, options: Any, tmp_path: Path) -> None:
    file = ccrewrite.export_onnx(moved(**steps), tmp_path / "m.onnx", X, **options)
    assert "this model amplifies rounding by" in file.check.note


@pytest.mark.parametrize("site", ["first", "second"])
@pytest.mark.parametrize("options", [{}, {"functions": True}, {"sizes": "input"}])
def test_a_wrong_site_of_an_exported_file_is_caught(
    site: str, options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of its numbers is a thousandth off, in the file alone."""
    right = export.optimised

    def broken(*arguments: Any, **named: Any) -> Any:
        file = right(*arguments, **named)
        shape = (16, 3) if site == "first" else (16, 16)
        weights = [v for v in file.graph.initializers.values() if tuple(v.shape)[:2] == shape and len(v.shape) == 4]
        assert weights
        for value in weights:
            array = value.const_value.numpy().copy()
            array[3] *= 1.001
            value.const_value = ir.tensor(array, name=value.name)
        return file

    model = moved()
    monkeypatch.setattr(export, "optimised", broken)
    with pytest.raises(ExportError, match=f"{site} is off by .* on the input that it gets"):
        ccrewrite.export_onnx(model, tmp_path / "m.onnx", X, **options)


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_sites_of_a_copy_in_float32_are_judged(
    dtype: torch.dtype, wrong: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = export.optimised

    def broken(*arguments: Any, **named: Any) -> Any:
        file = right(*arguments, **named)
        for value in file.graph.initializers.values():
            if tuple(value.shape)[:2] == (16, 16):
                value.const_value = ir.tensor(value.const_value.numpy() * value.const_value.dtype.numpy().type(1.5))
        return file

    options: dict[str, Any] = {"opset": 22} if dtype == torch.bfloat16 else {}
    model, x = moved().to(dtype), X.to(dtype)
    if not wrong:
        assert ccrewrite.export_onnx(model, tmp_path / "m.onnx", x, **options).check.runs[0].in_float32
        return
    monkeypatch.setattr(export, "optimised", broken)
    with pytest.raises(ExportError, match=r"second is off by .* on the input that it gets"):
        ccrewrite.export_onnx(model, tmp_path / "m.onnx", x, **options)


class Computed(nn.Module):
    """A convolution whose weight is computed of its input, behind what amplifies rounding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bank = nn.Parameter(torch.randn(8, 3, 3, 3) / 5)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(9):
            x = torch.sin(5 * x)
        return nn.functional.conv2d(x, self.bank * (1 + x[..., :1, :1].mean()), padding=2, dilation=2).mean((2, 3))


@pytest.mark.parametrize("wrong", [False, True])
def test_a_site_of_a_computed_weight_is_judged_with_its_weight(
    wrong: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = ccrewrite.rewrite(Computed().eval(), X).model
    sampling = model.ccrewrite["conv2d"]
    with torch.no_grad():
        sampling.offset[0].add_(0.3)
    prepare = export.prepared

    def broken(*arguments: Any, **named: Any) -> Any:
        ready: Any = prepare(*arguments, **named)
        ready.model.ccrewrite["conv2d"].register_forward_hook(lambda module, args, out: out * 1.001)
        return ready

    if not wrong:
        assert "this model amplifies rounding by" in ccrewrite.export_onnx(model, tmp_path / "m.onnx", X).check.note
        return
    monkeypatch.setattr(export, "prepared", broken)
    with pytest.raises(ExportError, match=r":conv2d is off by .* on the input that it gets"):
        ccrewrite.export_onnx(model, tmp_path / "m.onnx", X)


def test_sites_of_deep_files(tmp_path: Path) -> None:
    """What goes into a site behind 1,500 nodes is no constant; what comes of initializers alone is."""
    names = ["x", *(f"v{i}" for i in range(1500))]
    nodes = [helper.make_node("Identity", [before], [after]) for before, after in itertools.pairwise(names)]
    nodes += [helper.make_node("Mul", ["w", "w"], ["squared"])]
    nodes += [helper.make_node("Conv", [names[-1], "squared"], ["y"], name="conv", strides=[2])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", [1, 1, 9]), ("y", None))]
    weight = numpy_helper.from_array(np.array([[[1.0, 2.0, 3.0]]], np.float32), "w")
    file = helper.make_model(helper.make_graph(nodes, "deep", ends[:1], ends[1:], [weight]), ir_version=9)
    file.opset_import[0].version = 17
    file.graph.node[-1].metadata_props.add(key=MODULE, value="conv")
    onnx.save(onnx.shape_inference.infer_shapes(file), tmp_path / "deep.onnx")
    x = np.arange(9, dtype=np.float32).reshape(1, 1, 9)
    (([seen], made),) = seen_in(tmp_path / "deep.onnx", ["conv"], {"x": x}, tmp_path, in_float32=False)["conv"]
    np.testing.assert_array_equal(seen.numpy(), x)
    np.testing.assert_allclose(made.numpy().ravel(), [22.0, 50.0, 78.0, 106.0])
