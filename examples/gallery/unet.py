"""A U-Net whose inside runs at any size, in one ONNX file whose sizes are inputs. Seconds.

The down-layers become CC layers: their output size is free, and the up-layers return to their skips by themselves.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

import ccrewrite


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.down2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.up2 = nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1)
        self.up1 = nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.down1(x))
        second = torch.relu(self.down2(first))
        return self.up1(torch.cat([first, torch.relu(self.up2(second))], dim=1))


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 1, 64, 64)
    rewritten = ccrewrite.rewrite(UNet().eval(), x).model
    for group in ccrewrite.scale_groups(rewritten, x):
        print(f"{group.name}: native {group.native[0]}, {'free' if group.free else 'pinned'}")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "unet.onnx"
        file = ccrewrite.export_onnx(rewritten, path, x, sizes="input", dynamic={2: "height", 3: "width"})
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = [*session.get_inputs(), *session.get_overridable_initializers()]  # the latter may be left out
    print("inputs of the file:", ", ".join(entry.name for entry in inputs))

    native = {asked.name: np.zeros(len(asked.native), dtype=np.int64) for asked in file.size_inputs}  # 0: the native size
    for ratio in (1.0, 0.75, 1.25):
        size = round(16 * ratio)
        (found,) = session.run(None, {"x": x.numpy(), **native, "down2.size": np.array([size, size])})
        with torch.no_grad(), ccrewrite.resized(rewritten, {"down2": ratio}):
            expected = rewritten(x).numpy()
        print(f"the deepest map at {size}x{size}: output {found.shape[2:]}, off by {np.abs(found - expected).max():.0e}")  # pyright: ignore[reportAttributeAccessIssue]
        assert np.abs(found - expected).max() < 1e-4


if __name__ == "__main__":
    main()
