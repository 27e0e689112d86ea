"""Files of safetensors, read and written by functions with types. What they raise is safetensors' own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor


def load_file(path: Path) -> dict[str, Tensor]:
    """On the CPU."""
    return safetensors.torch.load_file(path)  # pyright: ignore[reportUnknownMemberType]


def save_file(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Marked as what torch reads (``pt``)."""
    safetensors.torch.save_file(dict(tensors), path, {"format": "pt"})  # pyright: ignore[reportUnknownMemberType]
