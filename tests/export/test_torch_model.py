"""``torch_model``: what it says where it can't go on, and its own slices. tests/deploy has it on files of others."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from ccrewrite.cli.arguments import load
from ccrewrite.errors import InputError
from ccrewrite.export.torch_model import Slice, torch_model

END = 2**63 - 1


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ([1], [4], None, None),
        ([1, -3], [END, END], [2, 0], None),
        ([0, 1], [-1, 5], [-1, 1], [2, 3]),
        ([-1], [-END], [2], [-1]),
        ([4, 1], [0, END], [1, -1], [-2, 1]),
    ],
)
def test_slices_are_onnxs(starts: list[int], ends: list[int], axes: list[int] | None, steps: list[int] | None) -> None:
    given = {"starts": starts, "ends": ends, "axes": axes, "steps": steps}
    names = [name if value is not None else "" for name, value in given.items()]
    constants = [helper.make_tensor(n, TensorProto.INT64, [len(v)], v) for n, v in given.items() if v is not None]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xy")
    graph = helper.make_graph([helper.make_node("Slice", ["x", *names], ["y"])], "slice", [x], [y], constants)
    data = np.arange(5 * 6 * 7, dtype=np.float32).reshape(5, 6, 7)
    (expected,) = ReferenceEvaluator(helper.make_model(graph)).run(None, {"x": data})
    assert np.array_equal(Slice(starts, ends, axes, steps)(torch.from_numpy(data)).numpy(), expected)


def test_where_onnx2torch_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    with pytest.raises(InputError, match="pip install onnx2torch"):
        torch_model(tmp_path / "m.onnx", {})


def test_the_command_line_says_where_files_go() -> None:
    with pytest.raises(InputError, match=r"rewrite-onnx theirs\.onnx --out FILE.*torch_model"):
        load("theirs.onnx", None)
