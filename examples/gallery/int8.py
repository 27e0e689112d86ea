"""Int8: a rewritten network, its geometry moved, folded, exported and quantized by onnxruntime like any other. Seconds.

A folded model is plain convolutions, so static quantization (QDQ) has nothing special to know.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import ccrewrite
from ccrewrite.demo.canvases import canvases
from ccrewrite.demo.network import segmenter


class Batches(CalibrationDataReader):
    """The images that the ranges of activations are measured on."""

    def __init__(self, images: np.ndarray, name: str) -> None:
        self.batches = iter([{name: image[None]} for image in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def main() -> None:
    torch.manual_seed(0)
    images, _ = canvases(60, seed=0, split="train")
    model = segmenter().eval()
    result: Any = ccrewrite.rewrite(model, images[:1])
    with torch.no_grad():
        for site in result.plan:
            if site.decision.rewritten:
                result.model.get_submodule(site.name).sampling.nudge_()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = ccrewrite.export_onnx(result, folder / "float.onnx", images[:1], dynamic={0: "batch"})
        print("folded:", ", ".join(sorted({site.code for site in file})))
        quant_pre_process(folder / "float.onnx", folder / "ready.onnx")
        plain = onnxruntime.InferenceSession(str(folder / "ready.onnx"), providers=["CPUExecutionProvider"])
        entry = plain.get_inputs()[0].name
        quantize_static(
            folder / "ready.onnx",
            folder / "int8.onnx",
            Batches(images[:40].numpy(), entry),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
        small = onnxruntime.InferenceSession(str(folder / "int8.onnx"), providers=["CPUExecutionProvider"])
        sizes = {kind: (folder / f"{kind}.onnx").stat().st_size // 1000 for kind in ("float", "int8")}

    held_out = images[40:].numpy()
    before, after = (np.asarray(session.run(None, {entry: held_out})[0]) for session in (plain, small))
    error = np.linalg.norm(after - before) / np.linalg.norm(before)
    agree = float((after.argmax(1) == before.argmax(1)).mean())
    print(f"{sizes['float']} KB in float32, {sizes['int8']} KB in int8")
    print(f"relative error of the outputs {error:.3f}; {agree:.4f} of the pixels get the same class")
    assert agree > 0.97


if __name__ == "__main__":
    main()
