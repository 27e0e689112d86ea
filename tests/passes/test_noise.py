"""Models that amplify rounding: right sites stay, wrong ones are caught, and the check says how noisy the model is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ccrewrite
from ccrewrite.ir.capture import Inputs
from ccrewrite.passes.fold import fold, layers
from ccrewrite.passes.noise import Noise, rounded, with_noise
from ccrewrite.passes.verify import compare_outputs, outputs_of

X = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))


class Amplifier(nn.Module):
    """Nine times as noisy with each of its nine steps."""

    def __init__(self, steps: int = 9, codes: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=4, dilation=4)
        self.kernel = nn.Parameter(torch.randn(16, 16, 3, 3) / 12)
        self.norm = nn.BatchNorm2d(16)
        self.steps, self.codes = steps, codes

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.second(self.first(x).relu()))
        x = F.conv2d(x, self.kernel, padding=2, dilation=2)
        for _ in range(self.steps):
            x = torch.sin(5 * x)
        return (x > 0).long() if self.codes else x


def moved(model: nn.Module, dtype: torch.dtype = torch.float32) -> Any:
    result: Any = ccrewrite.rewrite(model.eval().to(dtype), X.to(dtype))
    assert result.check.ok
    with torch.no_grad():
        result.model.first.sampling.shift.add_(0.2)
        result.model.second.sampling.offset[0].add_(0.3)
        result.model.ccrewrite.conv2d.offset[1].add_(0.3)
    return result.model


@pytest.mark.parametrize(("codes", "batch_norm"), [(False, False), (False, True), (True, False)])
def test_right_sites_are_folded_and_the_noise_is_said(codes: bool, batch_norm: bool) -> None:
    model = moved(Amplifier(codes=codes))
    result = fold(model, X, batch_norm=batch_norm)
    assert all(site.folded for site in result)
    assert [n.code for n in result.norms] == ["folded"] * batch_norm
    assert result.check.ok
    assert codes or "this model amplifies rounding" in result.check.note
    assert fold(moved(Amplifier(steps=0)), X).check.note == ""


@pytest.mark.parametrize("error", [1e-4, 1e-2, 1.0])
def test_a_wrong_site_is_caught_in_a_noisy_model(error: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(conv: Any, *arguments: Any) -> Any:
        answer = right(conv, *arguments)
        if conv.in_channels == 16:
            conv.weight.data[3] *= 1 + error
        return answer

    right = layers.with_kernel_
    model = moved(Amplifier())
    assert fold(model, X)["second"].code == "convolution"
    monkeypatch.setattr(layers, "with_kernel_", broken)
    result = fold(model, X)
    assert {s.name: s.code for s in result} == {"kernel": "geometry", "first": "padded", "second": "geometry"}
    assert result.check.ok


def test_a_wrong_functional_site_is_caught_in_a_noisy_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = moved(Amplifier())
    right = layers.fix_call_

    def broken(host: Any, key: str) -> Any:
        answer = right(host, key)
        for buffer in host.ccrewrite[key].buffers():
            if buffer.is_floating_point():
                buffer *= 1.001
        return answer

    monkeypatch.setattr(layers, "fix_call_", broken)
    result = fold(model, X)
    assert result["kernel"].code == "verification-failed"
    assert "kernel is off by" in result["kernel"].message
    assert result["first"].folded
    assert result["second"].folded


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_files_of_noisy_models_are_written_and_wrong_ones_are_not(dtype: torch.dtype, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = moved(Amplifier(), dtype)
    ccrewrite.export_onnx(model, tmp_path / "m.onnx", X.to(dtype))
    assert (tmp_path / "m.onnx").exists()


def test_what_is_no_noise_is_not_explained() -> None:
    model, inputs = Amplifier(steps=2).eval(), Inputs.of(X)
    before = outputs_of(model, inputs)
    with torch.no_grad():
        model.second.weight[0] *= 1.01
    wrong = compare_outputs(before, outputs_of(model, inputs))
    settled, note = with_noise(wrong, lambda i: outputs_of(model, i), inputs)
    assert not settled[0].ok
    assert note == ""


def test_noise_is_measured_without_float_inputs_too() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.conv = nn.Embedding(9, 4), nn.Conv1d(4, 4, 3, dilation=2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(1e3 * self.conv(self.words(x).mT))

    model, inputs = Tokens().eval(), Inputs.of(torch.arange(9)[None])
    noise = Noise.of(lambda i: outputs_of(model, i), inputs)
    assert 1e-6 < noise.outputs["output"].max_rel_error < 1e-2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_one_rounding(dtype: torch.dtype) -> None:
    x = torch.randn(100, generator=torch.Generator().manual_seed(0)).to(dtype)
    off = ((rounded(x) - x) / x).abs()
    assert 0 < float(off.max()) <= 2 * torch.finfo(dtype).eps
    assert torch.equal(rounded(x), rounded(x))
    assert rounded(torch.arange(3)).equal(torch.arange(3))
