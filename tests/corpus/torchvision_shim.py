"""Imports torchvision's pure Python parts where its compiled library can't load.

The published wheel is linked to CUDA. Beside a CPU build of torch its library does not load, and the import stops at the two
operators it registers fakes for. Declaring their schemas lets it through; the operators themselves stay without a kernel.
"""

from __future__ import annotations

import importlib
import sys

import torch

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_torchvision() -> None:
    """Import torchvision, with declared-only operators if that is what it takes. Raises what torchvision raises otherwise."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", SCHEMA)
        importlib.import_module("torchvision")
