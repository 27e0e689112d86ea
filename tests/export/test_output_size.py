"""Transposed convolutions that are called with ``output_size``, in exported files: sizes that torch's layer takes add rows."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from exported_models import moved
from torch import Tensor, nn

import ccrewrite
from ccrewrite.export.onnx import export_onnx


class Mirrored(nn.Module):
    """Down, and up again to the size that there was."""

    def __init__(self, down: nn.Module, up: nn.Module) -> None:
        super().__init__()
        self.down, self.up = down, up

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x), output_size=x.shape[2:]) + x


NETWORKS: dict[str, tuple[nn.Module, nn.Module, tuple[int, ...]]] = {
    "2d": (nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1), (20, 24)),
    "1d, no padding": (nn.Conv1d(2, 4, 3, stride=3), nn.ConvTranspose1d(4, 2, 3, stride=3), (31,)),
    "1d, dilated": (nn.Conv1d(2, 4, 3, stride=2, padding=2), nn.ConvTranspose1d(4, 2, 3, 2, 4, 0, 1, False, 3), (20,)),
    "3d, two strides": (nn.Conv3d(2, 4, 3, (2, 3, 1), 1), nn.ConvTranspose3d(4, 2, 3, (2, 3, 1), 1), (6, 9, 5)),
}
OPEN: dict[str, dict[str, Any]] = {
    "open": {"dynamic": True},
    "input": {"sizes": "input"},
    "input, open": {"sizes": "input", "dynamic": True},
}


QUICK = (("2d", "input, open", False), ("1d, dilated", "open", False), ("2d", "open", True))
CASES = [
    pytest.param(*case, marks=[] if case in QUICK else [pytest.mark.slow])
    for case in itertools.product(NETWORKS, OPEN, (False, True))
]


@pytest.mark.parametrize(("name", "mode", "still"), CASES)
def test_output_sizes(name: str, mode: str, still: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    down, up, size = NETWORKS[name]
    x = torch.randn(1, 2, *size)
    model = Mirrored(down, up).eval()
    rewritten = ccrewrite.rewrite(model, x).model if still else moved(model, x)
    options = dict(OPEN[mode])
    others: list[Tensor] = []
    if options.pop("dynamic", False):
        options["dynamic"] = {0: "batch", **{2 + a: f"size{a}" for a in range(len(size))}}
        others = [torch.randn(2, 2, *(n + more for n in size)) for more in (1, 2, 3)]
    file = export_onnx(rewritten, tmp_path / "m.onnx", x, check_inputs=others, **options)
    assert file.check.max_rel_error <= 1e-4
    assert {run.shapes["x"] for run in file.check.runs} >= {tuple(y.shape) for y in (x, *others)}
    if "sizes" in options:
        assert any(any(any(size) for size in run.sizes.values()) for run in file.check.runs)
