"""What a pass returned is taken where its model is meant, all over training and reports; anything else is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_models import network, pictures

import ccrewrite
from ccrewrite import training
from ccrewrite.errors import InputError
from ccrewrite.report import compare
from ccrewrite.report.budget import trade
from ccrewrite.training.ensemble import ScaleEnsemble
from ccrewrite.training.recalibrate import load_statistics_, recalibrate, statistics

X = pictures()
BATCHES = [(X, torch.arange(4) % 3)]

TAKERS: dict[str, Callable[[Any], Any]] = {
    "clamp_positions": training.clamp_positions,
    "FreezeSchedule": training.FreezeSchedule,
    "finetune": lambda given: ccrewrite.finetune(given, BATCHES, F.cross_entropy, config=ccrewrite.FinetuneConfig(epochs=1)),
    "gathered": lambda given: training.gathered(given).__enter__(),
    "nyquist_penalty": training.nyquist_penalty,
    "param_groups": lambda given: training.param_groups(given, 0.1),
    "recalibrate": lambda given: recalibrate(given, BATCHES),
    "Recorder": training.Recorder,
    "repulsive_loss": training.repulsive_loss,
    "resize_": lambda given: ccrewrite.resize_(given, {"0": 0.5}, X),
    "scale_groups": lambda given: ccrewrite.scale_groups(given, X),
    "ScaleEnsemble": lambda given: ScaleEnsemble(given, [{}]).members(X),
    "snap": training.snap,
    "snapped": lambda given: training.snapped(given).__enter__(),
    "statistics": lambda given: load_statistics_(given, statistics(given)),
    "trade": lambda given: trade(given, X, [{"0": 0.5}], repeats=2),
}


@pytest.fixture(scope="module")
def original() -> nn.Module:
    return network(norm=True).eval()


@pytest.mark.parametrize("taker", TAKERS)
def test_a_result_is_taken(original: nn.Module, taker: str) -> None:
    TAKERS[taker](ccrewrite.rewrite(original, X))


@pytest.mark.parametrize("taker", TAKERS)
def test_anything_else_is_refused(taker: str) -> None:
    with pytest.raises(InputError, match=r"must be an nn\.Module, or a result with a model; found str"):
        TAKERS[taker]("resnet50")


def test_where_two_models_are_meant(original: nn.Module) -> None:
    result = ccrewrite.rewrite(original, X)
    comparison = compare(original, result, X, variants={"again": result}, quick=True, progress=False)
    assert comparison.rewritten_sites == ["0", "3", "4"]
    with training.Distillation(result, original) as distillation:
        result.model(X)
        assert distillation().outputs.item() < 1e-6
    for models in ((result, "resnet50"), ("resnet50", original)):
        with pytest.raises(InputError, match=r"must be an nn\.Module, or a result with a model; found str"):
            training.Distillation(*models)  # pyright: ignore[reportArgumentType]
        with pytest.raises(InputError, match=r"must be an nn\.Module, or a result with a model; found str"):
            compare(*models, X)  # pyright: ignore[reportArgumentType]
