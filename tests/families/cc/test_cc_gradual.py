"""The gradual network of ``examples/gradual.py``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

PATH = Path(__file__).parents[3] / "examples" / "gradual.py"


def test_maps_shrink_a_little_at_each_layer_and_the_network_learns() -> None:
    spec = importlib.util.spec_from_file_location("gradual", PATH)
    assert spec is not None
    assert spec.loader is not None
    example: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    model = example.Gradual(0.76, channels=(4,) * 8)
    (images, labels), _ = example.digits()
    assert model.eval().sizes(images[:1]) == [24, 18, 14, 11, 8, 6, 5, 4]
    assert model.shrink(0.7).sizes(images[:1]) == [22, 15, 10, 7, 5, 4, 3, 2]
    optimizer = torch.optim.Adam(model.train().parameters(), 1e-2)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(model(images[:60]), labels[:60])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.2
    assert all(p.grad is not None for p in model.parameters())
