"""Files as others write them: what is read, and that the rewritten file computes the same at every size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import ccrewrite
from ccrewrite.errors import InputError, SelectionError
from ccrewrite.export.rewrite import rewrite_onnx

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((4, 2, 3)).astype(np.float32)
X = RNG.standard_normal((1, 2, 17)).astype(np.float32)


def model(
    nodes: Any, initializers: Any = None, *, opset: int = 17, length: Any = 17, domain: str = "", ir_version: int = 8
) -> onnx.ModelProto:
    """(1, 2, length) -> y."""
    weights = [numpy_helper.from_array(WEIGHT, "w")] if initializers is None else initializers
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, length])
    inputs = [x, *(helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in weights if ir_version < 4)]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", None, "frames"])
    graph = helper.make_graph(nodes, "g", inputs, [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, opset)], ir_version=ir_version)


def conv(weight: str = "w", kind: str = "Conv", **attributes: Any) -> Any:
    return helper.make_node(kind, ["x", weight], ["y"], name="c", **{"strides": [2], **attributes})


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def rewritten(given: onnx.ModelProto, folder: Path, x: np.ndarray = X) -> tuple[Any, Callable[..., np.ndarray]]:
    """The result, and the file as a function; natively it is bitwise what was given."""
    onnx.save(given, folder / "in.onnx")
    result = rewrite_onnx(folder / "in.onnx", folder / "out.onnx", example_inputs={"x": x})
    runs = session(folder / "out.onnx")
    (before,), (after,) = session(folder / "in.onnx").run(None, {"x": x}), runs.run(None, {"x": x})
    np.testing.assert_array_equal(before, after)
    return result, lambda **sizes: runs.run(None, {"x": x, **{n.replace("_", "."): np.array(v) for n, v in sizes.items()}})[0]


def test_sizes_may_be_left_out(tmp_path: Path) -> None:
    result, run = rewritten(model([conv(pads=[1, 1])]), tmp_path)
    file = session(tmp_path / "out.onnx")
    assert [v.name for v in file.get_inputs()] == ["x"]
    assert [(v.name, v.shape) for v in file.get_overridable_initializers()] == [("c.size", [1])]
    (output,) = onnx.load(tmp_path / "out.onnx").graph.output
    assert [axis.dim_param for axis in output.type.tensor_type.shape.dim] == ["batch", "", "frames"]
    assert result.size_inputs[0].native == (9,)
    layer: Any = ccrewrite.rewrite(nn.Conv1d(2, 4, 3, 2, 1, bias=False), torch.from_numpy(X)).model
    layer.weight.data[:] = torch.from_numpy(WEIGHT)
    np.testing.assert_array_equal(run(c_size=[0]), run())
    for size in (1, 5, 9, 30):
        layer.sampling.output_size = size
        np.testing.assert_allclose(run(c_size=[size]), layer(torch.from_numpy(X)).detach().numpy(), atol=2e-5)


def test_the_weights_are_there_once(tmp_path: Path) -> None:
    weight = RNG.standard_normal((256, 2, 300)).astype(np.float32)
    given = model([conv(pads=[150, 149])], [numpy_helper.from_array(weight, "w")])
    result, _ = rewritten(given, tmp_path)
    assert result.size <= 1.1 * (tmp_path / "in.onnx").stat().st_size


@pytest.mark.parametrize("opset", range(7, 13))
def test_older_operator_sets(opset: int, tmp_path: Path) -> None:
    nodes = [conv(pads=[1, 1]), helper.make_node("Dropout", ["a"], ["y"])]
    nodes[0].output[0] = "a"
    result, run = rewritten(model(nodes, opset=opset, ir_version=3 if opset < 9 else 8), tmp_path)
    assert (result.opset, result.size_inputs[0].native) == (13, (9,))
    assert run(c_size=[5]).shape == (1, 4, 5)


def test_an_operator_set_that_is_too_old(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="operator set 6"):
        rewrite_onnx(model([conv()], opset=6), tmp_path / "out.onnx")


BEHIND = {
    "Constant": lambda: helper.make_node("Constant", [], ["v"], value=numpy_helper.from_array(WEIGHT, "")),
    "Identity": lambda: helper.make_node("Identity", ["w"], ["v"]),
    "Cast": lambda: helper.make_node("Cast", ["h"], ["v"], to=TensorProto.FLOAT),
    "Transpose": lambda: helper.make_node("Transpose", ["t"], ["v"], perm=[2, 1, 0]),
    "DequantizeLinear": lambda: helper.make_node("DequantizeLinear", ["q", "s"], ["v"]),
    "Mul": lambda: helper.make_node("Mul", ["w", "s"], ["v"]),
}


@pytest.mark.parametrize("kind", BEHIND)
def test_weights_behind_nodes(kind: str, tmp_path: Path) -> None:
    arrays = {"w": WEIGHT, "h": WEIGHT.astype(np.float16), "t": WEIGHT.T, "q": np.int8(20 * WEIGHT), "s": np.float32(0.05)}
    node = BEHIND[kind]()
    initializers = [numpy_helper.from_array(np.array(arrays[n]), n) for n in node.input]
    result, run = rewritten(model([node, conv("v")], initializers), tmp_path)
    assert [s.name for s in result.plan.rewritten] == ["c"]
    assert run(c_size=[3]).shape == (1, 4, 3)


SAME = {
    "upper": {"auto_pad": "SAME_UPPER"},
    "lower": {"auto_pad": "SAME_LOWER"},
    "upper by 3": {"auto_pad": "SAME_UPPER", "strides": [3]},
    "dilated": {"auto_pad": "VALID", "strides": [1], "dilations": [3]},
    "valid": {"auto_pad": "VALID"},
}


@pytest.mark.parametrize("length", [17, "length"], ids=["known", "open"])
@pytest.mark.parametrize("name", SAME)
def test_pads_of_convolutions(name: str, length: Any, tmp_path: Path) -> None:
    result, run = rewritten(model([conv(**SAME[name])], length=length), tmp_path)
    for other in (16, 18, 24) if length == "length" else ():
        x = RNG.standard_normal((1, 2, other)).astype(np.float32)
        (expected,), (found,) = (session(tmp_path / f"{n}.onnx").run(None, {"x": x}) for n in ("in", "out"))
        np.testing.assert_array_equal(expected, found)
        if name != "dilated":  # at the native size, computed as any other
            sized = session(tmp_path / "out.onnx").run(None, {"x": x, "c.size": np.array(expected.shape[2:])})[0]
            np.testing.assert_allclose(sized, expected, atol=1e-5)
    if name == "dilated":
        assert result.plan.rewritten[0].code == "dilated-to-dcls"
    else:
        assert run(c_size=[4]).shape == (1, 4, 4)


TRANSPOSED = {
    "upper": {"auto_pad": "SAME_UPPER"},
    "lower": {"auto_pad": "SAME_LOWER"},
    "shape": {"output_shape": [33]},
    "odd crop": {"output_shape": [32]},
    "odd crop upper": {"output_shape": [32], "auto_pad": "SAME_UPPER"},
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_pads_of_transposed_convolutions(name: str, tmp_path: Path) -> None:
    weight = numpy_helper.from_array(RNG.standard_normal((2, 4, 3)).astype(np.float32), "w")
    result, run = rewritten(model([conv(kind="ConvTranspose", **TRANSPOSED[name])], [weight]), tmp_path)
    assert len(result.check.runs) == 2
    assert run(c_size=[20]).shape == (1, 4, 20)


def test_an_output_shape_at_an_open_size_is_left_alone(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(RNG.standard_normal((2, 4, 3)).astype(np.float32), "w")
    given = model([conv(kind="ConvTranspose", output_shape=[33])], [weight], length="length")
    with pytest.raises(SelectionError, match="c: its crops can't be told from its auto_pad or output_shape"):
        rewrite_onnx(given, tmp_path / "out.onnx", example_inputs={"x": X})


@pytest.mark.parametrize("kind", ["strided", "dilated"])
@pytest.mark.parametrize("location", ["m.onnx.data", "weights.bin"])
@pytest.mark.parametrize("folder", [".", "other"])
def test_weights_in_files_of_their_own(kind: str, location: str, folder: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    options: dict[str, Any] = {"strides": [2]} if kind == "strided" else {"strides": [1], "dilations": [2], "pads": [2, 2]}
    onnx.save_model(
        model([conv(**options)]),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location=location,
        size_threshold=0,
    )
    (before,) = session(tmp_path / "m.onnx").run(None, {"x": X})
    target = tmp_path / folder / "n.onnx"
    rewrite_onnx(tmp_path / "m.onnx", target, example_inputs={"x": X})
    assert {p.name for p in target.parent.iterdir()} >= {"n.onnx", "n.onnx.data"}
    np.testing.assert_array_equal(session(target).run(None, {"x": X})[0], before)


def test_models_in_memory_and_the_long_name_of_the_standard_operators(tmp_path: Path) -> None:
    node = conv()
    node.domain = "ai.onnx"
    for given in (model([node], domain="ai.onnx"), model([conv()]), ir.from_proto(model([conv()]))):
        before = given.SerializeToString() if isinstance(given, onnx.ModelProto) else ir.to_proto(given).SerializeToString()
        assert rewrite_onnx(given, tmp_path / "out.onnx", example_inputs={"x": X}).plan.rewritten
        after = given.SerializeToString() if isinstance(given, onnx.ModelProto) else ir.to_proto(given).SerializeToString()
        assert after == before


def test_convolutions_in_functions_of_others(tmp_path: Path) -> None:
    inner = helper.make_node("Conv", ["a", "b"], ["d"], strides=[2])
    function = helper.make_function("theirs", "Down", ["a", "b"], ["d"], [inner], [helper.make_opsetid("", 17)])
    given = model([helper.make_node("Down", ["x", "w"], ["y"], name="down", domain="theirs")])
    given.functions.append(function)
    given.opset_import.append(helper.make_opsetid("theirs", 1))
    result, run = rewritten(given, tmp_path)
    (site,) = result.plan.rewritten
    assert run(**{f"{site.name}_size": [3]}).shape == (1, 4, 3)


def test_files_of_ours(tmp_path: Path) -> None:
    layers = nn.Sequential(nn.Conv1d(2, 4, 3, dilation=2, padding=2), nn.Conv1d(4, 3, 3, stride=2)).eval()
    x = torch.from_numpy(X)
    file = ccrewrite.export_onnx(ccrewrite.rewrite(layers, x, kinds="dilated"), tmp_path / "1.onnx", x, functions=True)
    assert file["0"].initializers == ("0.positions",)
    result = rewrite_onnx(tmp_path / "1.onnx", tmp_path / "2.onnx", kinds="strided")
    assert [s.name for s in result.plan.rewritten] == ["1"]
    assert [f.name for f in onnx.load(tmp_path / "2.onnx").functions] == ["DclsConv"]
    again = rewrite_onnx(tmp_path / "2.onnx", tmp_path / "3.onnx")
    assert [s.name for s in again.plan.rewritten] == ["1"], "calls of our functions stay"


def test_files_that_were_rewritten(tmp_path: Path) -> None:
    layers = nn.Sequential(nn.Conv1d(2, 4, 3, dilation=2, padding=2), nn.ReLU(), nn.Conv1d(4, 3, 3, stride=2)).eval()
    x = torch.from_numpy(X)
    ccrewrite.export_onnx(layers, tmp_path / "theirs.onnx", x)
    once = rewrite_onnx(tmp_path / "theirs.onnx", tmp_path / "once.onnx", kinds="strided")
    twice = rewrite_onnx(tmp_path / "once.onnx", tmp_path / "twice.onnx")
    assert [s.name for s in once.plan.rewritten] == ["2"]
    assert [s.name for s in twice.plan.rewritten] == ["0", "2"]
    at_once = rewrite_onnx(tmp_path / "theirs.onnx", tmp_path / "at_once.onnx")
    assert [x.name for x in twice.size_inputs] == [x.name for x in at_once.size_inputs] == ["2.size"]
    assert twice.size <= 1.02 * at_once.size
    fed = {"input": X, "2.size": np.array([4])}
    for found, expected in zip(
        session(tmp_path / "twice.onnx").run(None, fed), session(tmp_path / "at_once.onnx").run(None, fed), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_files_that_were_rewritten_and_edited(tmp_path: Path) -> None:
    layers = nn.Sequential(nn.Conv1d(2, 4, 3, dilation=2, padding=2), nn.Conv1d(4, 3, 3, stride=2)).eval()
    ccrewrite.export_onnx(layers, tmp_path / "theirs.onnx", torch.from_numpy(X))
    rewrite_onnx(tmp_path / "theirs.onnx", tmp_path / "once.onnx")
    for name in ("0.positions", "1.size"):
        edited = onnx.load(tmp_path / "once.onnx")
        (value,) = (v for v in edited.graph.initializer if v.name == name)
        value.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(value) + 1, name))
        with pytest.raises(InputError, match=f"{name} were edited since, which rewriting it again would lose"):
            rewrite_onnx(edited, tmp_path / "twice.onnx")


def test_random_nodes(tmp_path: Path) -> None:
    nodes = [
        conv(),
        helper.make_node("RandomNormalLike", ["a"], ["r"], scale=100.0),
        helper.make_node("Add", ["a", "r"], ["y"]),
    ]
    nodes[0].output[0] = "a"
    result = rewrite_onnx(model(nodes), tmp_path / "out.onnx", example_inputs={"x": X})
    assert "drew the same numbers" in result.check.note
    assert result.check.max_rel_error <= 1e-5
    file = session(tmp_path / "out.onnx")
    first, second = (file.run(None, {"x": X})[0] for _ in range(2))
    assert np.abs(first - second).max() > 1
    assert not [a for n in ir.load(tmp_path / "out.onnx").graph.all_nodes() for a in n.attributes if a == "seed"]


def test_far_dilated_taps_cost_nothing_at_the_start(tmp_path: Path) -> None:
    """No kernel of the whole window: that nothing moved is known when the file is loaded."""
    given = model([conv(strides=[1], dilations=[64], pads=[64, 64])])
    rewritten(given, tmp_path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "out.onnx"), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    assert {n.op_type for n in nodes} <= {"Conv", "ReorderInput", "ReorderOutput"}


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(2, 4, 3, dilation=16, padding=16),
        nn.Conv1d(2, 4, 3, stride=2, dilation=16, padding=20, groups=2, bias=False),
        nn.Conv2d(2, 4, 3, dilation=7, padding=(7, 9)),
    ],
)
def test_far_taps_that_moved_are_read_one_by_one(layer: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 2, 70) if isinstance(layer, nn.Conv1d) else torch.randn(2, 2, 24, 26)
    model: Any = ccrewrite.rewrite(nn.Sequential(layer).eval(), x, rules=[ccrewrite.DilatedToDcls(sharing="tap")]).model
    torch.nn.init.uniform_(model[0].sampling.offset, -9, 9)
    file = ccrewrite.export_onnx(model, tmp_path / "m.onnx", x, functions=True, dynamic={0: "batch", 2: "length"})
    assert file.check.max_rel_error <= 1e-5
    (function,) = onnx.load(tmp_path / "m.onnx").functions
    assert sum(node.op_type == "Slice" for node in function.node) > 3
