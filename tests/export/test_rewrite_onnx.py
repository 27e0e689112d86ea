"""ONNX files of others, rewritten."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from exported_models import save
from onnx import TensorProto, helper
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import ExportError, InputError, SelectionError
from ccrewrite.export import rewrite
from ccrewrite.export.rewrite import rewrite_onnx
from ccrewrite.families.cc.onnx import kernel


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU())
        self.context = nn.Conv2d(8, 8, 3, padding=4, dilation=4, groups=8, bias=False)
        self.wide = nn.Conv2d(8, 8, (3, 1), padding=(2, 0), dilation=(2, 1))
        self.up = nn.ConvTranspose2d(8, 2, 4, stride=2, padding=1)
        self.plain = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(self.up(self.wide(self.context(self.stem(x))).relu()))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def files(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model as torch's two exporters write it."""
    directory = tmp_path_factory.mktemp("files")
    x = torch.randn(1, 3, 32, 36)
    for opset in (13, 17):
        with pytest.warns():
            torch.onnx.export(net, (x,), directory / f"script{opset}.onnx", dynamo=False, opset_version=opset)
    ccrewrite.export_onnx(net, directory / "dynamo.onnx", x, dynamic={0: "batch", 2: "height", 3: "width"})
    return {path.stem: path for path in directory.iterdir()}


def run(path: Path, **inputs: Any) -> Tensor:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = {v.name: inputs[n] for v in session.get_overridable_initializers() if (n := v.name.replace(".", "_")) in inputs}
    (only,) = session.get_inputs()
    found[only.name] = inputs["x"]
    return torch.from_numpy(session.run(None, found)[0])


@pytest.mark.parametrize("name", ["dynamo", "script17", "script13"])
def test_rewritten(name: str, files: dict[str, Path], net: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(2 if name == "dynamo" else 1, 3, 32, 36)
    target = tmp_path / "m.onnx"
    inputs = {onnx.load(files[name]).graph.input[0].name: x}
    result = rewrite_onnx(files[name], target, example_inputs=inputs)
    codes = {s.name: s.decision.code for s in result.plan}
    assert codes == {
        "stem.0": "strided-to-cc",
        "context": "dilated-to-dcls",
        "wide": "dilated-to-dcls",
        "up": "transposed-to-cc",
        "plain": "plain",
    }
    assert result.check.max_rel_error <= 1e-5
    assert [s.name for s in result.size_inputs] == ["stem.0.size", "up.size"]
    assert {s.name: s.initializers for s in result if s.initializers} == {
        "context": ("context.positions",),
        "wide": ("wide.positions",),
    }
    assert len(json.loads(result.to_json())["plan"]["sites"]) == 5
    assert "up.size" in str(result)
    torch.testing.assert_close(run(target, x=x.numpy()), net(x), rtol=0, atol=1e-5)

    # Other sizes, and other positions, against the rewritten model in torch.
    model: Any = ccrewrite.rewrite(net, x).model
    proto = onnx.load(target)
    arrays = {i.name: onnx.numpy_helper.to_array(i).copy() for i in proto.graph.initializer if i.name.endswith("positions")}
    assert {n: a.shape for n, a in arrays.items()} == {"context.positions": (2, 8, 1, 9), "wide.positions": (2, 1, 1, 3)}
    for site, layer in (("context", model.context), ("wide", model.wide)):
        torch.nn.init.uniform_(layer.sampling.offset, -1, 1)
        offset = layer.sampling.offset.detach().flatten(3).numpy()
        arrays[f"{site}.positions"][: len(offset)] += offset
    for initializer in proto.graph.initializer:
        if initializer.name in arrays:
            initializer.CopyFrom(onnx.numpy_helper.from_array(arrays[initializer.name], initializer.name))
    onnx.save(proto, target)
    for stem, up in (((16, 18), (32, 36)), ((11, 25), (40, 13)), ((1, 1), (96, 108))):
        model.stem[0].sampling.output_size, model.up.sampling.output_size = stem, up
        found = run(target, x=x.numpy(), stem_0_size=np.array(stem), up_size=np.array(up))
        torch.testing.assert_close(found, model(x).detach(), rtol=0, atol=1e-4)


def test_selected(files: dict[str, Path], tmp_path: Path) -> None:
    result = rewrite_onnx(files["script17"], tmp_path / "m.onnx", include="up")
    assert [s.name for s in result.plan.rewritten] == ["up"]
    file = onnx.load(tmp_path / "m.onnx")
    assert not file.functions
    origin = {p for n in ir.from_proto(file).graph.all_nodes() for k, p in n.metadata_props.items() if k == "ccrewrite.from"}
    assert origin == {"ConvTranspose 8->2 k4 s2 p1"}
    rules = [ccrewrite.DilatedToDcls(sharing="tap", reach=2)]
    result = rewrite_onnx(files["script17"], tmp_path / "m.onnx", rules=rules)
    file = onnx.load(tmp_path / "m.onnx")
    assert [f.name for f in file.functions] == ["DclsConv", "DclsConv_2"]
    assert result.check.max_rel_error <= 1e-5
    with pytest.raises(SelectionError, match="nothing can be rewritten"):
        rewrite_onnx(files["script17"], tmp_path / "n.onnx", include="plain")
    with pytest.raises(InputError, match="strided-to-cc"):
        rewrite_onnx(files["script17"], tmp_path / "n.onnx", rules=[ccrewrite.StridedToCC(kernel="mlp")])
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_half_precision_and_uneven_pads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = helper.make_tensor("w", TensorProto.FLOAT16, [2, 2, 3], rng.standard_normal(12).astype(np.float16).tobytes(), True)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], strides=[2], pads=[2, 0]),
        helper.make_node("Conv", ["a", "w"], ["b"], dilations=[3], pads=[6, 0]),
        helper.make_node("ConvTranspose", ["b", "w"], ["y"], strides=[2], pads=[0, 1], output_padding=[1]),
    ]
    target = save(tmp_path, nodes, [weight], 16, TensorProto.FLOAT16)
    result = rewrite_onnx(target, tmp_path / "m.onnx")
    assert [s.name for s in result.plan] == ["Conv_0", "Conv_1", "ConvTranspose_2"]
    assert result.check.max_rel_error <= 1e-2


def strided(opset: int = 16, **attributes: Any) -> tuple[list[Any], list[Any], int]:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2, 2, 3], np.ones(12))
    return [helper.make_node("Conv", ["x", "w"], ["y"], **{"strides": [2], **attributes})], [weight], opset


def test_files_that_cannot_be_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "m.onnx"
    target.write_text("what was there")

    def refuses(message: str, source: Path, error: type[Exception] = InputError, **options: Any) -> None:
        with pytest.raises(error, match=message):
            rewrite_onnx(source, target, **options)
        assert target.read_text() == "what was there"
        assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]

    (tmp_path / "broken.onnx").write_bytes(b"\x08\x07 no model")
    refuses("can't be read", tmp_path / "broken.onnx")
    refuses("can't be read", tmp_path / "nowhere.onnx")
    refuses("operator set 6", save(tmp_path, *strided(6)))
    refuses("no convolution", save(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], []), SelectionError)
    refuses("example_inputs must have x", save(tmp_path, *strided()), example_inputs={"y": torch.zeros(1, 2, 17)})

    nodes, weights, _ = strided()
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    branch = helper.make_graph(nodes, "b", [], [result])
    condition = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    chosen = [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]
    refuses("control-flow", save(tmp_path, chosen, [*weights, condition]), SelectionError)

    source = save(tmp_path, *strided())
    model = ir.load(source)
    ir.save(model, tmp_path / "external.onnx", external_data="weights.bin", size_threshold_bytes=0)
    (tmp_path / "weights.bin").write_bytes(b"")
    refuses("weights.bin, which is too short", tmp_path / "external.onnx")
    (tmp_path / "weights.bin").unlink()
    refuses("weights.bin, which is missing", tmp_path / "external.onnx")

    def full(file: Any, path: Path, **named: Any) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(rewrite, "save", full)
        refuses("No space left", source)
    with monkeypatch.context() as patch:
        patch.setattr(kernel, "basis", lambda op, name, distance: op.Relu(op.Sub(1.5, op.Abs(distance))))
        refuses("Conv_0 is off by .* on the input that it gets", source, ExportError)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory(tmp_path: Path) -> None:
    source = save(tmp_path, *strided())
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(InputError, match="no permission"):
        rewrite_onnx(source, closed / "m.onnx")


def test_a_read_only_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = save(tmp_path, *strided()), tmp_path / "m.onnx"
    target.write_text("what was there")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != target)
    with pytest.raises(InputError, match="no permission"):
        rewrite_onnx(source, target)
    assert target.read_text() == "what was there"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("strides", "str", r"the Conv .*strides"),
        ("strides", [0, 1], r"strides\.0: .* greater than or equal to 1"),
        ("group", [1], "group: input should be a valid integer"),
        ("pads", [1, 1], "pads must have 4 entries"),
        ("pads", [-1, 1, 1, 1], r"pads\.0"),
        ("kernel_shape", [3, 2], "kernel_shape must be that of its weight"),
        ("dilations", [2**62] * 2, r"dilations\.0: .* less than"),
        ("auto_pad", "SOMEHOW", "auto_pad"),
    ],
)
def test_attributes_that_do_not_fit(name: str, value: Any, message: str, tmp_path: Path) -> None:
    good, bad, out = (tmp_path / f"{n}.onnx" for n in ("good", "bad", "out"))
    ccrewrite.export_onnx(nn.Conv2d(3, 4, 3, stride=2, padding=1).eval(), good, torch.randn(1, 3, 12, 12))
    model = onnx.load(good)
    node = next(n for n in model.graph.node if n.op_type == "Conv")
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])
    onnx.save(model, bad)
    with pytest.raises(InputError, match=message):
        ccrewrite.rewrite_onnx(bad, out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.onnx", "good.onnx"]
