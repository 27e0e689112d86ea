"""Losses in TensorBoard. `make train`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from training_models import network, pictures, rewritten

from ccrewrite import FinetuneConfig, finetune


@pytest.mark.slow
def test_tensorboard_has_what_the_log_has(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # pyright: ignore[reportMissingImports]

    data = [(pictures(6), torch.arange(6) % 3)] * 3
    config = FinetuneConfig(epochs=2, trackers=("tensorboard",))
    history = finetune(rewritten(network()), data, F.cross_entropy, validation=data, config=config, out=tmp_path)
    events = EventAccumulator(str(tmp_path / "finetune")).Reload()
    found = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in ("loss", "validation")}
    assert found["loss"] == [(row["step"], pytest.approx(row["loss"])) for row in history.rows]
    assert found["validation"] == [(step, pytest.approx(v)) for step, v in zip((3, 6), history.validations, strict=True)]
