"""ONNX files: written only when they compute what the model computes, at every size that may vary."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from exported_models import moved, network
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import ExportError, InputError
from ccrewrite.export import files
from ccrewrite.export import onnx as module
from ccrewrite.export.onnx import export_onnx
from ccrewrite.export.report import CODES


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Any, Path]:
    """A rewritten network whose geometry moved, its report and its file, with batch and sizes left open."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, 32, 32)
    model = moved(network(), x)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return model, export_onnx(model, path, x, dynamic={0: "batch", 2: "height", 3: "width"}), path


def test_the_report(exported: tuple[nn.Module, Any, Path]) -> None:
    _, report, path = exported
    assert report.check.max_rel_error <= 1e-5
    assert len({c.shapes["input"] for c in report.check.runs}) == 2
    assert report.size == path.stat().st_size
    assert report.ops_after == {"Conv": 2, "ConvTranspose": 1, "Relu": 1}
    assert sum(report.ops_before.values()) > sum(report.ops_after.values())
    assert [(s.name, s.code) for s in report.sites] == [("down", "padded"), ("across", "convolution"), ("up", "padded")]
    assert json.loads(report.to_json())["opset"] == 20
    assert "opset 20" in str(report)
    assert "ConvTranspose" in str(report)


def test_it_is_an_outcome_as_others(exported: tuple[nn.Module, Any, Path]) -> None:
    _, file, path = exported
    assert [s.name for s in file] == ["down", "across", "up"]
    assert (len(file), file["up"].window, file.path) == (3, (8, 8), str(path))
    assert file.summary() == "3 sites: 2 padded, 1 convolution"
    assert (file.check.ok, file.check.ran, len(file.check.outputs)) == (True, True, len(file.check.runs))
    plain = json.loads(file.to_json())
    common = ["path", "opset", "size", "sites", "size_inputs", "check", "latency"]
    assert list(plain) == [*common, "ops_before", "ops_after", "not_taken"]
    assert list(plain["sites"][0]) == ["name", "layer", "code", "message", "window", "initializers"]
    assert plain["check"]["runs"][1]["shapes"] == {"input": [2, 3, 48, 48]}
    assert plain["check"]["runtime"] == f"onnxruntime {onnxruntime.__version__}"
    assert "<td>across" in file._repr_html_()
    again = ccrewrite.rewrite_onnx(path, path.with_name("again.onnx"), example_inputs={"input": torch.zeros(1, 3, 32, 32)})
    path.with_name("again.onnx").unlink()
    assert list(json.loads(again.to_json())) == [*common, "plan", "trials"]
    assert {s.name for s in again} >= {"down", "across", "up"}
    assert f"opset {again.opset}, {again.size} bytes" in str(again)


def test_every_code_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
    assert [code for code in CODES if f"| `{code}` |" not in page] == []


def test_the_file_at_other_sizes(exported: tuple[nn.Module, Any, Path]) -> None:
    model, _, path = exported
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 32, 32), (2, 3, 50, 34), (3, 3, 8, 96)):
        x = torch.randn(shape)
        (found,) = session.run(None, {"input": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), rtol=1e-4, atol=1e-4)
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]


def test_nodes_say_where_they_come_from(exported: tuple[nn.Module, Any, Path]) -> None:
    _, _, path = exported
    file = onnx.load(path)
    nodes = {n.name: {p.key: p.value for p in n.metadata_props} for n in file.graph.node}
    assert nodes["across/Conv"] == {
        "ccrewrite.module": "across",
        "ccrewrite.from": "DclsConv2d, window 5x5: convolution",
    }
    assert nodes["down/Conv"]["ccrewrite.from"].startswith("CCConv2d"), "the batch norm merged into it changes nothing"
    assert nodes["up/ConvTranspose"]["ccrewrite.module"] == "up"
    assert {"across.weight", "up.conv.weight"} <= {i.name for i in file.graph.initializer}


def test_no_trace_of_this_machine(exported: tuple[nn.Module, Any, Path]) -> None:
    data = exported[2].read_bytes()
    for word in (os.getcwd(), str(Path(torch.__file__).parent), "/site-packages", ".py", "stack_trace", "name_scopes"):
        assert word.encode() not in data


def test_nothing_else_is_left_in_the_directory(exported: tuple[nn.Module, Any, Path]) -> None:
    assert os.listdir(exported[2].parent) == ["model.onnx"]


def test_an_unmoved_model_has_the_operators_of_the_original(tmp_path: Path) -> None:
    model, x = network(), torch.randn(1, 3, 16, 16)
    original = export_onnx(model, tmp_path / "original.onnx", x)
    rewritten = export_onnx(ccrewrite.rewrite(model, x).model, tmp_path / "rewritten.onnx", x)
    assert rewritten.ops_after == original.ops_after
    assert original.sites == ()


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_padding_modes(mode: str, tmp_path: Path) -> None:
    x = torch.randn(1, 3, 12, 14)
    report = export_onnx(moved(network(padding_mode=mode), x), tmp_path / "m.onnx", x, dynamic={2: "h", 3: "w"}, opset=18)
    assert report.check.max_rel_error <= 1e-5
    modes = {a.s for n in onnx.load(tmp_path / "m.onnx").graph.node for a in n.attribute if a.name == "mode"}
    assert b"wrap" not in modes
    assert (mode == "circular") == ("Slice" in report.ops_after)


@pytest.mark.parametrize("opset", [18, 22])
def test_opsets(opset: int, tmp_path: Path) -> None:
    x = torch.randn(1, 3, 16, 16)
    assert export_onnx(moved(network(), x), tmp_path / "m.onnx", x, opset=opset).opset == opset
    assert {o.domain: o.version for o in onnx.load(tmp_path / "m.onnx").opset_import}[""] == opset


def test_half_precision(tmp_path: Path) -> None:
    x = torch.randn(1, 3, 16, 16)
    report = export_onnx(moved(network(), x).half(), tmp_path / "m.onnx", x.half())
    assert 0 < report.check.max_rel_error <= 1e-2
    assert onnx.load(tmp_path / "m.onnx").graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16


@pytest.mark.parametrize(("dtype", "opset", "error"), [(torch.float64, 20, 1e-5), (torch.bfloat16, 22, 5e-2)])
def test_types_that_the_runtime_does_not_compute_in(dtype: torch.dtype, opset: int, error: float, tmp_path: Path) -> None:
    """The file is of the model's type; what is run is a copy."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, 16, 16, dtype=dtype)
    model = moved(network(padding_mode="reflect"), x.float()).to(dtype)
    report = export_onnx(model, tmp_path / "m.onnx", x, opset=opset, dynamic={0: "batch", 2: "height"})
    assert 0 < report.check.max_rel_error <= error
    assert [c.in_float32 for c in report.check.runs] == [True, True]
    assert "as a copy in float32" in str(report)
    assert os.listdir(tmp_path) == ["m.onnx"]
    graph = onnx.load(tmp_path / "m.onnx").graph
    kind = onnx.TensorProto.DOUBLE if dtype == torch.float64 else onnx.TensorProto.BFLOAT16
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)
    assert {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)} == {kind}
    assert {i.data_type for i in graph.initializer} & set(floats) == {kind}


@pytest.mark.parametrize(("dtype", "opset"), [(torch.float64, 20), (torch.bfloat16, 22)])
def test_a_wrong_file_of_another_type_is_not_written(
    dtype: torch.dtype, opset: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(1, 3, 16, 16, dtype=dtype)
    model = moved(network(), x.float()).to(dtype)
    real = files.save

    def off(file: Any, path: Path) -> None:
        value = file.graph.initializers["across.weight"]
        value.const_value = ir.tensor(value.const_value.numpy() * value.const_value.numpy().dtype.type(1.5), name=value.name)
        real(file, path)

    monkeypatch.setattr(module, "save", off)
    with pytest.raises(ExportError, match="something else"):
        export_onnx(model, tmp_path / "m.onnx", x, opset=opset)
    assert os.listdir(tmp_path) == []


def test_what_bfloat16_needs(tmp_path: Path) -> None:
    x = torch.randn(1, 3, 16, 16, dtype=torch.bfloat16)
    model = moved(network(), x.float()).bfloat16()
    with pytest.raises(InputError, match="since operator set 22, found opset=20"):
        export_onnx(model, tmp_path / "m.onnx", x)
    with pytest.raises(ExportError, match=r"sizes that are open need float32 or float16, found torch\.bfloat16"):
        export_onnx(model, tmp_path / "m.onnx", x, opset=22, sizes="input")
    with pytest.raises(ExportError, match=r"functions in the file need float32 or float16, found torch\.bfloat16"):
        export_onnx(model, tmp_path / "m.onnx", x, opset=22, functions=True)
    assert os.listdir(tmp_path) == []


def test_functions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 16, 18)
    model: Any = network()
    model.append(nn.Conv2d(2, 2, 3, dilation=3, bias=False))
    model = moved(model, x)
    report = export_onnx(model, tmp_path / "m.onnx", x, functions=True, dynamic={0: "batch"})
    assert report.check.max_rel_error <= 1e-5
    assert [(s.name, s.code) for s in report.sites] == [
        ("down", "padded"), ("across", "function"), ("up", "padded"), ("5", "function")
    ]  # fmt: skip
    file = onnx.load(tmp_path / "m.onnx")
    assert [(f.domain, f.name) for f in file.functions] == [("ccrewrite", "DclsConv"), ("ccrewrite", "DclsConv_2")]
    calls = {n.op_type: {p.key: p.value for p in n.metadata_props} for n in file.graph.node if n.domain == "ccrewrite"}
    assert [c["ccrewrite.module"] for c in calls.values()] == ["across", "5"]
    positions = {i.name: tuple(i.dims) for i in file.graph.initializer if "positions" in i.name}
    assert positions == {"across.positions": (2, 8, 1, 9), "5.positions": (2, 1, 1, 9)}


@pytest.mark.slow
def test_functions_of_open_sizes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 16, 18)
    report = export_onnx(moved(network(), x), tmp_path / "m.onnx", x, functions=True, sizes="input")
    assert {s.name: s.code for s in report.sites} == {"down": "size-input", "up": "size-input", "across": "function"}
    names = {f.name for f in onnx.load(tmp_path / "m.onnx").functions}
    assert names == {"CCConv", "CCConv_2", "DclsConv"}
    assert report.check.max_rel_error <= 1e-5


def test_a_function_of_an_open_size_without_bias(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 2, 9)
    model = moved(nn.Sequential(nn.ConvTranspose1d(2, 3, 4, stride=2, bias=False), nn.AdaptiveAvgPool1d(1)).eval(), x)
    file = export_onnx(model, tmp_path / "m.onnx", x, functions=True, sizes="input")
    assert (file["0"].code, file["0"].message) == ("size-input", "its output size is an input, or follows one")
    assert file["0"].initializers[:2] == ("0.shift", "0.gain0")
    (function,) = onnx.load(file.path).functions
    assert list(function.input)[:5] == ["x", "weight", "bias", "native", "asked"]
    assert file.check.max_rel_error <= 1e-5


def test_results_and_wrappers_are_looked_through(tmp_path: Path) -> None:
    x = torch.randn(1, 2, 12)
    result = ccrewrite.rewrite(nn.Sequential(nn.Conv1d(2, 3, 3, dilation=2)).eval(), x)
    assert [s.name for s in export_onnx(result, tmp_path / "m.onnx", x)] == ["0"]
    assert [s.name for s in export_onnx(nn.DataParallel(result.model), tmp_path / "m.onnx", x)] == ["0"]
    with pytest.raises(InputError, match="what export_onnx writes must be"):
        export_onnx("resnet50", tmp_path / "m.onnx", x)  # type: ignore[arg-type]


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "m.onnx"
    target.write_text("what was there")
    for closed in (target, tmp_path):
        monkeypatch.setattr(os, "access", lambda path, mode, closed=closed: Path(path) != closed)
        with pytest.raises(InputError, match="no permission"):
            export_onnx(nn.Conv1d(2, 2, 3), target, torch.randn(1, 2, 20))
    assert target.read_text() == "what was there"


class Halved(nn.Module):
    """Functional calls, keyword arguments, several outputs in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 4, 3))

    def forward(self, signal: Tensor, *, gate: Tensor, scale: float = 1.0) -> dict[str, Any]:
        low = torch.nn.functional.conv1d(signal, self.kernel.tanh(), stride=2)
        return {"low": low * gate, "parts": (low * scale, low.mean())}


def test_keyword_arguments_and_nested_outputs(tmp_path: Path) -> None:
    inputs = {"signal": torch.randn(2, 4, 21), "gate": torch.rand(2, 4, 1), "scale": 2.0}
    model = moved(Halved(), inputs)
    report = export_onnx(
        model, tmp_path / "m.onnx", inputs, dynamic={"signal": {0: "batch", 2: "length"}, "gate": {0: "batch"}}
    )
    assert [c.shapes["signal"] for c in report.check.runs] == [(2, 4, 21), (3, 4, 31)]
    assert [c.shapes["gate"] for c in report.check.runs] == [(2, 4, 1), (3, 4, 1)]
    assert report.ops_after["Conv"] == 1
    assert "MatMul" not in report.ops_after


def test_layers_at_another_output_size(tmp_path: Path) -> None:
    x = torch.randn(1, 3, 16, 18)
    model: Any = moved(network(), x)
    model.down.sampling.scale, model.up.sampling.scale = 1.3, 0.7
    report = export_onnx(model, tmp_path / "m.onnx", x, dynamic={0: "batch"})
    assert [s.code for s in report.sites] == ["resized", "convolution", "resized"]
    assert report.check.max_rel_error <= 1e-5
    assert {"Sin", "Range", "Where"} & report.ops_after.keys() == set(), "matrices are constants"
    nodes = [{p.key: p.value for p in n.metadata_props} for n in onnx.load(tmp_path / "m.onnx").graph.node]
    assert {n["ccrewrite.module"] for n in nodes} >= {"down", "up"}
    assert any("resized" in n.get("ccrewrite.from", "") for n in nodes)
    with pytest.raises(ExportError, match="static shape of 16"):
        export_onnx(model, tmp_path / "open.onnx", x, dynamic={2: "height"})


class Baked(nn.Module):
    """Computes a size in Python, which export takes for a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 2, 3, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(self.conv(x), size=int(x.shape[2] * 1.5))


def test_a_size_that_became_a_constant_is_found(tmp_path: Path) -> None:
    x = torch.randn(1, 2, 20)
    model = moved(Baked(), x)
    assert export_onnx(model, tmp_path / "fixed.onnx", x).check.max_rel_error <= 1e-5
    target = tmp_path / "open.onnx"
    target.write_text("what was there")
    with pytest.raises(ExportError, match="constant"):
        export_onnx(model, target, x, dynamic={2: "length"})
    assert target.read_text() == "what was there"
    assert sorted(os.listdir(tmp_path)) == ["fixed.onnx", "open.onnx"]


def test_check_inputs_count_too(tmp_path: Path) -> None:
    x = torch.randn(1, 2, 20)
    report = export_onnx(moved(nn.Conv1d(2, 2, 3, dilation=2), x), tmp_path / "m.onnx", x, check_inputs=[x * 100, -x])
    assert len(report.check.runs) == 3


def test_a_wrong_file_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 3, 16, 16)
    model = moved(network(), x)
    real = files.save

    def off(file: Any, path: Path) -> None:
        name = next(n for n in file.graph.initializers if n == "across.weight")
        value = file.graph.initializers[name]
        value.const_value = type(value.const_value)(torch.from_numpy(value.const_value.numpy() * 1.01), name=name)
        real(file, path)

    monkeypatch.setattr(module, "save", off)
    with pytest.raises(ExportError, match="something else"):
        export_onnx(model, tmp_path / "m.onnx", x)
    assert os.listdir(tmp_path) == []


def test_weights_in_a_file_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 3, 16, 16)
    model = moved(network(), x)
    monkeypatch.setattr(files, "EXTERNAL", 100)
    report = export_onnx(model, tmp_path / "m.onnx", x)
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx.data"]
    assert report.size == sum(f.stat().st_size for f in tmp_path.iterdir())
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"input": x.numpy()})[0]), model(x).detach())


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 2, 20)
    target = tmp_path / "m.onnx"
    target.write_text("what was there")

    def full(file: Any, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save", full)
    with pytest.raises(InputError, match="No space left"):
        export_onnx(moved(nn.Conv1d(2, 2, 3, dilation=2), x), target, x)
    assert target.read_text() == "what was there"
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 2, 20)
    model = moved(nn.Conv1d(2, 2, 3, dilation=2), x)
    with pytest.raises(InputError, match="directory"):
        export_onnx(model, tmp_path, x)
    with pytest.raises(InputError, match="no directory"):
        export_onnx(model, tmp_path / "nowhere" / "m.onnx", x)
    with pytest.raises(InputError, match="'y'"):
        export_onnx(model, tmp_path / "m.onnx", x, dynamic={"y": {0: "batch"}})
    with pytest.raises(InputError, match="axes 0 to 2"):
        export_onnx(model, tmp_path / "m.onnx", x, dynamic={3: "depth"})
    with pytest.raises(ExportError, match="opset 30"):
        export_onnx(model, tmp_path / "m.onnx", x, opset=30)
    monkeypatch.setattr(files, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(InputError, match=r"no_such_package.*ccrewrite\[onnx\]"):
        export_onnx(model, tmp_path / "m.onnx", x)
    assert os.listdir(tmp_path) == []


class ReadsValues(nn.Module):
    """What torch can't export."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 2, 3, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > 0 else -self.conv(x)


def test_models_that_torch_cannot_export(tmp_path: Path) -> None:
    x = torch.randn(1, 2, 20)
    with pytest.raises(ExportError, match="can't export ReadsValues"):
        export_onnx(moved(ReadsValues(), x), tmp_path / "m.onnx", x)
