"""The exported originals of the corpus, rewritten as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ccrewrite
from ccrewrite.export.check import run_file, session_of

from .models import MODELS, build
from .observe import relative_error
from .test_fold_corpus import ONNX_REFUSED, _floats

pytestmark = [pytest.mark.slow]

FIXED_INSIDE = {"hf_mobilenetv2_deeplab"}
"""Models whose file has sizes inside it as constants (here: pads that their code computes of the feature maps' sizes), so that
it is right at its native ones alone."""


@pytest.mark.parametrize("name", [n for n in MODELS if n not in ONNX_REFUSED])
def test_rewritten_files(name: str, tmp_path: Path) -> None:
    """The native sizes; and the sizes of the first free scale group, against the resized model in torch."""
    model, inputs = build(name)
    ccrewrite.export_onnx(model, tmp_path / "original.onnx", inputs)
    tensors = [t for t in inputs if isinstance(t, torch.Tensor)]
    names = [v.name for v in session_of(tmp_path / "original.onnx").get_inputs()]
    fed = dict(zip(names, tensors, strict=True))
    result = ccrewrite.rewrite_onnx(tmp_path / "original.onnx", tmp_path / "rewritten.onnx", example_inputs=fed)
    print(f"rewritten file: {name} {result.max_rel_error:.1e}, {result.plan.summary()}")  # noqa: T201
    assert result.max_rel_error <= 1e-5

    if not result.size_inputs:
        return
    rewritten = ccrewrite.rewrite(model, inputs, rules=["strided-to-cc", "transposed-to-cc"]).model
    groups = ccrewrite.scale_groups(rewritten, inputs)
    if not groups.free or name in FIXED_INSIDE:
        return
    known = {site for one in result.size_inputs for site in one.sites}
    if not set(groups.free[0].sites) <= known:
        print(f"functional sites have other names in the file: {name} {groups.free[0].sites} {sorted(known)}")  # noqa: T201
        return
    settings: dict[str, Any] = {groups.free[0].name: 0.85}
    sizes = groups.sizes(settings)
    arrays: dict[str, Any] = {n: t.numpy() for n, t in fed.items()}
    for one in result.size_inputs:
        arrays[one.name] = np.array(sizes.get(one.sites[0], (0,) * len(one.axes)), np.int64)
    found = run_file(session_of(tmp_path / "rewritten.onnx"), arrays)
    with torch.no_grad(), ccrewrite.resized(rewritten, settings, inputs):
        expected = rewritten(*inputs)
    error = relative_error([t for t in found if t.is_floating_point()], _floats(expected))
    print(f"at {settings}: {name} {error:.1e}")  # noqa: T201
    assert error <= 1e-4
