"""Whether the rest of an ONNX file follows another internal size."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exported_models import save
from onnx import TensorProto, helper
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import SizeWarning
from ccrewrite.export.rewrite import rewrite_onnx


def ints(name: str, *numbers: int) -> Any:
    return helper.make_tensor(name, TensorProto.INT64, [len(numbers)], numbers)


OTHERS = (ints("z", 0), ints("two", 2), helper.make_tensor("least", TensorProto.FLOAT, [], [-np.inf]))


def file(directory: Path, *nodes: Any, numbers: Any = (), stem_pads: tuple[int, int] = (1, 1)) -> Path:
    """(1, 2, 17) -> a convolution ``stem`` of stride 2, (1, 2, 9) -> ``nodes``."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2, 2, 3], np.ones(12))
    stem = helper.make_node("Conv", ["x", "w"], ["a"], name="stem", strides=[2], pads=stem_pads)
    return save(directory, [stem, *nodes], [weight, *numbers])


def trial(path: Path, **options: Any) -> Any:
    return rewrite_onnx(path, path.with_name("out.onnx"), include="stem", **options).trials[0]


def op(kind: str, *inputs: str, **attributes: Any) -> Any:
    return helper.make_node(kind, ["a", *inputs], ["y"], name="it", **attributes)


SURE = {
    "relu": (op("Relu"), ()),
    "reshape": (op("Reshape", "n"), (1, 1, -1)),
    "copied": (op("Reshape", "n"), (0, 0, -1)),
    "slice": (op("Slice", "z", "n", "two"), (2,)),
    "resize to the input's size": (op("Resize", "", "", "n", mode="linear"), (1, 2, 17)),
    "pads that follow": (op("Conv", "w", pads=[1, 1]), ()),
}
STRIDED = op("Conv", "w", strides=[2], pads=[1, 1])
DOUBTFUL = [
    (op("Pad", "n"), (0, 0, 0, 0, 0, 1), "pads [0, 0, 0, 0, 0, 1] of it"),
    (op("Pad", "n", "least"), (0, 0, 0, 0, 0, 1), "pads [0, 0, 0, 0, 0, 1] of it"),
    (STRIDED, (), "pads [1, 1] of it"),
    (op("MaxPool", kernel_shape=[3], strides=[2], pads=[1, 1]), (), "pads [1, 1] of it"),
    (op("Reshape", "n"), (1, 3, -1), "shape [1, 3, -1] of it"),
    (op("Slice", "z", "n", "two"), (8,), "ends [8] of it"),
    (op("Resize", "", "", "n", mode="linear"), (1, 2, 12), "size [1, 2, 12] of it"),
]


@pytest.mark.parametrize("name", SURE)
def test_files_that_follow(name: str, tmp_path: Path) -> None:
    node, numbers = SURE[name]
    found = trial(file(tmp_path, node, numbers=(ints("n", *numbers), *OTHERS) if numbers else ()))
    assert (found.input, found.native, found.size, found.others, str(found)) == ("stem.size", (9,), (6,), "free", "follows")


@pytest.mark.parametrize(("node", "numbers", "message"), DOUBTFUL, ids=lambda x: getattr(x, "op_type", None))
def test_numbers_that_may_have_been_sizes(node: Any, numbers: tuple[int, ...], message: str, tmp_path: Path) -> None:
    path = file(tmp_path, node, numbers=(ints("n", *numbers), *OTHERS) if numbers else ())
    with pytest.warns(SizeWarning, match=re.escape(message)):
        found = trial(path)
    assert found.doubts == (message,)
    assert "unsure" in str(found)
    assert path.with_name("out.onnx").exists()


@pytest.mark.parametrize(("end", "doubts"), [(2, ()), (8, ("ends [8] of it",))])
def test_a_cut_along_computed_axes(end: int, doubts: tuple[str, ...], tmp_path: Path) -> None:
    """As torch's exporters of opset 13 write slices: whichever axis it is."""
    nodes = [helper.make_node("Unsqueeze", ["last", "z"], ["axes"]), op("Slice", "z", "n", "axes")]
    numbers = [*OTHERS, ints("n", end), helper.make_tensor("last", TensorProto.INT64, [], [2])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SizeWarning)
        assert trial(file(tmp_path, *nodes, numbers=numbers)).doubts == doubts


def test_pads_that_same_padding_would_not_make(tmp_path: Path) -> None:
    """On eight samples it would pad one side only."""
    assert trial(file(tmp_path, STRIDED, stem_pads=(0, 1))).doubts == ()


def test_a_size_that_others_must_share(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["b"], name="other", strides=[2], pads=[1, 1]), op("Add", "b")]
    path = file(tmp_path, *nodes)
    assert "not by itself: Add it" in str(trial(path))
    result = rewrite_onnx(path, tmp_path / "out.onnx")
    assert [(t.input, t.others) for t in result.trials] == [("stem.size", "alike"), ("other.size", "alike")]
    assert "alike" in str(result)


def test_nothing_of_the_trials_is_left(tmp_path: Path) -> None:
    path = file(tmp_path, op("Relu"))
    trial(path)
    graph = onnx.load(tmp_path / "out.onnx").graph
    assert [v.name for v in graph.output] == ["y"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.onnx", "out.onnx"]
    assert not [v for n in graph.node for v in n.output if "watched" in v]
    read = {v for n in graph.node for v in n.input} | {"y"}
    assert all(read & set(n.output) for n in graph.node if n.op_type == "Shape")


class Same(nn.Module):
    """Pads computed of the size, as TensorFlow's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.next = nn.Conv1d(4, 4, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        total = 2 - (x.shape[2] + 1) % 2
        return self.next(nn.functional.pad(x, (total // 2, total - total // 2)))


def test_same_padding_is_warned_of_and_group_norms_follow(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Same().eval(), torch.randn(1, 2, 17)
    ccrewrite.export_onnx(model, tmp_path / "in.onnx", x)
    with pytest.warns(SizeWarning, match=r"pads \[1, 1\] of next"):
        result = rewrite_onnx(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert result.check.max_rel_error <= 1e-5
    session = onnxruntime.InferenceSession(str(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"])
    rewritten: Any = ccrewrite.rewrite(model, x).model
    errors = {}
    for size in (9, 7, 6):
        rewritten.stem.sampling.output_size = size
        fed = {"x": x.numpy(), "stem.size": np.array([size]), "next.size": np.array([0])}
        errors[size] = float((torch.from_numpy(session.run(None, fed)[0]) - rewritten(x).detach()).abs().max())
    assert max(errors[9], errors[7]) <= 1e-5
    assert errors[6] > 1e-2, "what the warning says: constants, where the model computes others"


def test_no_warning_without_doubt(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Conv1d(2, 4, 3, stride=2), nn.GroupNorm(2, 4), nn.Conv1d(4, 2, 3)).eval(), torch.randn(1, 2, 17)
    ccrewrite.export_onnx(model, tmp_path / "in.onnx", x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [str(t) for t in rewrite_onnx(tmp_path / "in.onnx", tmp_path / "out.onnx").trials] == ["follows"]
