"""From an .onnx file of somebody else's, without its model, and back: sizes as inputs, positions to edit. Seconds."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import nn

import ccrewrite


def theirs(path: Path) -> None:
    """A file as any exporter writes it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=3, dilation=3), nn.AdaptiveAvgPool2d(1)
    )
    torch.onnx.export(
        model.eval(), (torch.randn(1, 3, 32, 32),), path, input_names=["image"], dynamo=True, verbose=False, external_data=False
    )


def run(path: Path, **inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]  # pyright: ignore[reportReturnType]


def main() -> None:
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs(folder / "theirs.onnx")
        result = ccrewrite.rewrite_onnx(folder / "theirs.onnx", folder / "ours.onnx", example_inputs={"image": image})
        print("rewritten:", ", ".join(f"{site.name} {site.code}" for site in result))

        (asked,) = result.size_inputs
        expected = run(folder / "theirs.onnx", image=image)
        native = run(folder / "ours.onnx", image=image, **{asked.name: np.array([0, 0])})
        smaller = run(folder / "ours.onnx", image=image, **{asked.name: np.array([12, 12])})
        print(f"{asked.name} 0, native: off by {np.abs(native - expected).max():.0e}")
        print(f"{asked.name} 12x12 in place of {asked.native}: off by {np.abs(smaller - expected).max():.0e}, as it should be")

        file = onnx.load(folder / "ours.onnx")
        positions = next(tensor for tensor in file.graph.initializer if tensor.name.endswith(".positions"))
        values = numpy_helper.to_array(positions)
        print(f"{positions.name}: {values.shape}, from {values.min():.0f} to {values.max():.0f}")
        positions.CopyFrom(numpy_helper.from_array(values + np.float32(0.25), positions.name))
        onnx.save(file, folder / "moved.onnx")
        moved = run(folder / "moved.onnx", image=image, **{asked.name: np.array([0, 0])})
        print(f"taps moved by a quarter of a sample: off by {np.abs(moved - native).max():.0e}, as it should be")


if __name__ == "__main__":
    main()
