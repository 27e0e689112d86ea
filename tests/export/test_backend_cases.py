"""onnx's own backend cases of convolutions, all of them: rewritten and as onnx expects, or left alone for a reason."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from ccrewrite.errors import SelectionError
from ccrewrite.export.rewrite import rewrite_onnx

pytestmark = [pytest.mark.slow]

OPERATORS = {"Conv", "ConvTranspose", "ConvInteger", "QLinearConv"}
NEWEST = 23
"""Operator set and, below, version of the format that onnxruntime takes; convolutions are of 22."""
FORMAT = 11
QUANTIZED = ("test_convinteger_without_padding", "test_convinteger_with_padding", "test_qlinearconv")
PLAIN = ("test_basic_conv_with_padding", "test_basic_conv_without_padding")
"""Of stride 1, not dilated, as all causal ones are: no kind that is rewritten."""


@functools.cache
def cases() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        every = load_model_tests(kind="node")
    return {case.name: case for case in every if OPERATORS & {node.op_type for node in case.model.graph.node}}  # pyright: ignore[reportOptionalMemberAccess]


def why_not(name: str) -> str | None:
    """The reason of a case whose convolution is left alone."""
    if name in QUANTIZED:
        return "quantized"
    return "plain" if name in PLAIN or name.startswith("test_causal_conv") else None


def test_all_of_them(tmp_path: Path) -> None:
    assert {"test_conv_with_autopad_same", "test_convtranspose_output_shape", "test_qlinearconv"} <= set(cases())
    for name, case in cases().items():
        given = onnx.ModelProto.FromString(case.model.SerializeToString())
        given.ir_version = min(given.ir_version, FORMAT)
        for opset in given.opset_import:
            opset.version = min(opset.version, NEWEST)
        inputs, outputs = case.data_sets[0]
        fed = {value.name: np.asarray(data) for value, data in zip(given.graph.input, inputs, strict=True)}
        reason = why_not(name)
        if reason is not None:
            with pytest.raises(SelectionError, match=f"left alone: 1 {reason}"):
                rewrite_onnx(given, tmp_path / "out.onnx", example_inputs=fed)
            continue
        result = rewrite_onnx(given, tmp_path / "out.onnx", example_inputs=fed)
        assert [len(result.plan.rewritten), len(result.size_inputs)] == [1, 1], name
        (asked,) = result.size_inputs
        session = onnxruntime.InferenceSession(str(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"])
        for size in ((0,) * len(asked.native), asked.native):
            found = np.asarray(session.run(None, {**fed, asked.name: np.array(size)})[0])
            np.testing.assert_allclose(found, np.asarray(outputs[0]), rtol=1e-5, atol=1e-5, err_msg=name)
        other = np.asarray(session.run(None, {**fed, asked.name: np.array(asked.native) + 1})[0])
        assert other.shape[2:] == tuple(n + 1 for n in asked.native), name
