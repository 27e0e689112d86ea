"""A segmentation model of transformers: rewritten, trained a little, saved as its users save it, and loaded again. Seconds.

The folder is an ordinary one of transformers, with the geometry beside it; it is what `push_to_hub` uploads.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import MobileNetV2Config, MobileNetV2ForSemanticSegmentation
from transformers.utils import logging

import ccrewrite


def main() -> None:
    torch.manual_seed(0)
    logging.set_verbosity_error()  # from_pretrained would list the added names, which load brings
    config = MobileNetV2Config(depth_multiplier=0.35, output_stride=8, tf_padding=True, num_labels=5)
    original = MobileNetV2ForSemanticSegmentation(config).eval()
    pixels = {"pixel_values": torch.randn(2, 3, 65, 65)}

    result = ccrewrite.rewrite(original, pixels, kinds=["dilated"])
    print(result.summary())
    model: Any = result.model
    optimizer = torch.optim.AdamW(ccrewrite.training.param_groups(model, lr=1e-3))
    labels = torch.randint(5, (2, 65, 65))
    for _ in range(5):
        loss = model(**pixels, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        ccrewrite.save(model, folder, geometry_only=True)
        print("saved:", ", ".join(f"{file.name} ({kilobytes(file)} KB)" for file in sorted(Path(folder).iterdir())))
        again = MobileNetV2ForSemanticSegmentation.from_pretrained(folder)  # the plain architecture
        again = ccrewrite.load(again, folder).eval()
    model.eval()
    with torch.no_grad():
        found, expected = again(**pixels).logits, model(**pixels).logits
    error = float((found - expected).abs().max() / expected.abs().max())
    print(f"loaded: the same to {error:.0e}")
    assert error < 1e-5


def kilobytes(file: Path) -> int:
    return round(file.stat().st_size / 1000)


if __name__ == "__main__":
    main()
