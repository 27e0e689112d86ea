"""From an ONNX file of somebody else's back to training: an OCR detector and a spindle detector, as packages bring them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

import ccrewrite
from ccrewrite.export.torch_model import torch_model
from ccrewrite.nn import Sampling

pytestmark = pytest.mark.slow


def file_of(package: str, name: str) -> Path:
    return next(Path(str(f.locate())) for f in files(package) or () if f.name == name)


def page() -> dict[str, Tensor]:
    """A word, as the detector's own code prepares pictures."""
    picture = Image.new("RGB", (160, 64), "white")
    ImageDraw.Draw(picture).text((10, 10), "rewrite 42", fill="black", font_size=24)
    return {"x": torch.tensor(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1}


def night() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"raw_signal": (2, 1, 7500), "spectrogram": (2, 15, 7500)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    found = model(*inputs)
    return [found] if isinstance(found, Tensor) else list(found)


FILES: dict[str, tuple[str, str, Callable[[], dict[str, Tensor]], int]] = {
    "ocr": ("rapidocr-onnxruntime", "ch_PP-OCRv4_det_infer.onnx", page, 7),
    "spindles": ("brainmaze-eeg-models", "spindle-detector-eeg.onnx", night, 24),
}
"""Name -> package, file, example inputs, and how many convolutions are rewritten."""


@pytest.mark.parametrize("name", FILES)
def test_convert_rewrite_train_and_export(name: str, tmp_path: Path) -> None:
    package, file, make, count = FILES[name]
    named = make()
    inputs = tuple(named.values())
    model = torch_model(file_of(package, file), named)
    result = ccrewrite.rewrite(model, inputs)
    assert result.check.ok
    assert len(result.plan.rewritten) == count
    rewritten = result.model.train()
    with torch.no_grad():
        targets = [out * 0.9 for out in outputs(rewritten, inputs)]
    optimizer = torch.optim.SGD([p for p in rewritten.parameters() if p.requires_grad], 1e-4)
    losses: list[float] = []
    for _ in range(4):
        found = outputs(rewritten, inputs)
        loss = torch.stack([((a - b) ** 2).mean() for a, b in zip(found, targets, strict=True)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    samplings = [m for m in rewritten.modules() if isinstance(m, Sampling)]
    assert not any(s.at_start() for s in samplings), "every geometry has moved"
    exported = ccrewrite.export_onnx(rewritten.eval(), tmp_path / "back.onnx", inputs)
    assert exported.check.ok
    assert len(exported.sites) == count
