"""Each corpus model rewritten, its geometry moved at random, folded: the same outputs, from plain layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ccrewrite
from ccrewrite.errors import ExportError
from ccrewrite.export.onnx import export_onnx
from ccrewrite.passes.fold import fold

from .models import MODELS, build
from .observe import relative_error, tensors

pytestmark = [pytest.mark.slow]


def moved(name: str) -> tuple[Any, Any, Any]:
    """(original, inputs, rewritten model whose geometry is off its start everywhere)"""
    model, inputs = build(name)
    rewritten = ccrewrite.rewrite(model, inputs).model
    torch.manual_seed(0)
    with torch.no_grad():
        for module in rewritten.modules():
            if isinstance(module, ccrewrite.nn.Sampling):
                for p in module.movers():
                    p += 0.2 * torch.randn_like(p)
    return model, inputs, rewritten


def _floats(output: Any) -> list[Any]:
    return [t for t in tensors(output) if t.is_floating_point()]


@pytest.mark.parametrize("name", MODELS)
def test_folded_models_compute_the_same(name: str) -> None:
    model, inputs, rewritten = moved(name)
    with torch.no_grad():
        expected = rewritten(*inputs)
        assert relative_error(_floats(expected), _floats(model(*inputs))) > 1e-3, "moving must show"
        result = fold(rewritten, inputs)
        error = relative_error(result.model(*inputs), expected)
    print(f"folded, float32: {name} {error:.1e}, {result.summary()}")  # noqa: T201 (shown by pytest -rP)
    assert result.check.ok
    assert all(site.folded and site.code != "original" for site in result), result
    assert error <= 1e-5
    assert not any(isinstance(m, ccrewrite.nn.Sampling) for m in result.model.modules())


@pytest.mark.parametrize("name", MODELS)
def test_unmoved_models_are_the_originals_again(name: str) -> None:
    model, inputs = build(name)
    result = fold(ccrewrite.rewrite(model, inputs).model, inputs)
    assert {site.code for site in result} == {"original"}
    assert list(result.model.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        assert relative_error(result.model(*inputs), model(*inputs)) == 0


ONNX_REFUSED = {"hf_encodec": "GuardOnDataDependentSymNode"}
"""Model -> why it can't be exported to ONNX, rewritten or not (words of the error)."""

DYNAMIC: dict[str, dict[Any, Any]] = {
    "hf_univnet": {"input_features": {0: "batch"}, "noise_sequence": {0: "batch"}},
}
"""Model -> the axes left open, which gives the second shape; elsewhere the first input's batch."""


@pytest.mark.parametrize("name", MODELS)
def test_exported_to_onnx(name: str, tmp_path: Path) -> None:
    """Two shapes in onnxruntime; what torch can't export as the original, it refuses rewritten too."""
    model, inputs, rewritten = moved(name)
    if name in ONNX_REFUSED:
        for each in (model, rewritten):
            with pytest.raises(ExportError, match=ONNX_REFUSED[name]):
                export_onnx(each, tmp_path / "m.onnx", inputs)
        return
    dynamic = DYNAMIC.get(name, {0: "batch"})
    report = export_onnx(rewritten, tmp_path / "m.onnx", inputs, dynamic=dynamic)
    assert len({str(c.shapes) for c in report.check.runs}) == 2
    print(f"onnxruntime, float32: {name} {report.check.max_rel_error:.1e}, {report.ops_after}")  # noqa: T201
    assert report.check.max_rel_error <= 1e-4


@pytest.mark.parametrize("name", [n for n in MODELS if n not in ONNX_REFUSED])
def test_unmoved_models_have_the_operators_of_the_original(name: str, tmp_path: Path) -> None:
    model, inputs = build(name)
    rewritten = export_onnx(ccrewrite.rewrite(model, inputs).model, tmp_path / "rewritten.onnx", inputs)
    assert rewritten.ops_after == export_onnx(model, tmp_path / "original.onnx", inputs).ops_after
