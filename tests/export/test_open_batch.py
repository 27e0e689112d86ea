"""An open batch stays open where the example's is 1: torch's tracer must not take the 1 for a constant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from exported_models import moved
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import InputError
from ccrewrite.export.onnx import export_onnx
from ccrewrite.export.trace import quiet_exporter


class Joined(nn.Module):
    """A user's own use of the batch size, as audio codecs have it around their activations."""

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        return x.reshape(shape[0], shape[1], -1).sin().reshape(shape)


OUT = ccrewrite.DilatedToDcls(sharing="out")
FORMS: dict[str, tuple[nn.Module, tuple[int, ...], Any, str]] = {
    "shifted": (nn.Conv1d(4, 4, 7, dilation=9, padding=27), (60,), None, "shifted"),
    "shifted, products": (nn.Conv1d(16, 4, 7, dilation=9, padding=27), (60,), None, "shifted"),
    "shifted, strided": (nn.Conv2d(4, 4, 3, dilation=6, padding=6, stride=2), (17, 17), ccrewrite.DilatedToDcls(), "shifted"),
    "gathered": (nn.Conv2d(4, 4, 3, dilation=12, padding=12), (13, 13), OUT, "gathered"),
    "sparse": (nn.Conv2d(4, 4, 3, dilation=8, padding=8, groups=4), (17, 17), None, "sparse"),
    "filtered": (nn.Conv2d(4, 4, 3, stride=2, padding=1), (16, 16), None, "filtered"),
    "filtered, transposed": (nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1), (8, 8), None, "filtered"),
}


@pytest.mark.parametrize("name", FORMS)
def test_folded_layers_in_torchs_exporter(name: str, tmp_path: Path) -> None:
    conv: Any
    conv, size, rules, form = FORMS[name]
    torch.manual_seed(0)
    x = torch.randn(1, conv.in_channels, *size)
    model = moved(nn.Sequential(conv, Joined()), x, rules)
    folded = ccrewrite.fold(model, x, forms={"0": form})
    assert folded["0"].code == form
    plain = folded.model.eval().requires_grad_(False)
    with quiet_exporter():
        program: Any = torch.onnx.export(plain, (x,), dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False)
    program.save(tmp_path / "folded.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "folded.onnx"), providers=["CPUExecutionProvider"])
    y = torch.randn(3, *x.shape[1:])
    (found,) = session.run(None, {session.get_inputs()[0].name: y.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), plain(y), rtol=1e-4, atol=1e-5)


class Mixing(nn.Module):
    """A constant matrix times the data, which torch's tracer takes for a proof that the batch is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, stride=2)
        self.register_buffer("matrix", torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.matrix @ self.conv(x) + 1
        return y.reshape(y.shape[0], 4, -1)


def test_the_models_own_products(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 16)
    file = export_onnx(moved(Mixing(), x), tmp_path / "m.onnx", x, dynamic={0: "batch"})
    assert [run.shapes["x"][0] for run in file.check.runs] == [1, 2]


class OneAtATime(Mixing):
    """Runs with one sample alone, so there is nothing to leave open."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] != 1:
            raise ValueError("one at a time")
        return super().forward(x)


def test_a_model_that_takes_no_other_batch(tmp_path: Path) -> None:
    x = torch.randn(1, 4, 16)
    with pytest.raises(InputError, match="no other size of batch"):
        export_onnx(moved(OneAtATime(), x), tmp_path / "m.onnx", x, dynamic={0: "batch"})
