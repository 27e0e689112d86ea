"""One ONNX file for every internal size: corpus models that have a free one, and what the others are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccrewrite.errors import InputError
from ccrewrite.export.onnx import export_onnx

from .test_fold_corpus import moved

pytestmark = [pytest.mark.slow]

OPEN = ("hf_dac_weightnorm",)
PINNED = {"hf_univnet": "pinned +einsum in resblocks.0", "monai_basicunet_odd": "pinned pinned +Python code in upcat_4"}
"""Model -> what the error says of its first group: which part of the model relies on the size."""


@pytest.mark.parametrize("name", OPEN)
def test_files_of_open_sizes(name: str, tmp_path: Path) -> None:
    """At the native sizes, and at two others of every group that is free, against the resized model in eager mode."""
    _, inputs, rewritten = moved(name)
    report = export_onnx(rewritten, tmp_path / "m.onnx", inputs, sizes="input")
    print(f"open sizes: {name} {report.check.max_rel_error:.1e}, {[(x.name, x.native) for x in report.size_inputs]}")  # noqa: T201
    assert report.size_inputs
    assert len({str(run.sizes) for run in report.check.runs}) == 3
    assert report.check.max_rel_error <= 1e-4


@pytest.mark.parametrize("name", PINNED)
def test_models_without_a_free_size(name: str, tmp_path: Path) -> None:
    _, inputs, rewritten = moved(name)
    with pytest.raises(InputError, match=r"no internal size of this model is free.*sizes='fixed' exports it") as caught:
        export_onnx(rewritten, tmp_path / "m.onnx", inputs, sizes="input")
    caught.match(PINNED[name])
    assert not list(tmp_path.iterdir())
