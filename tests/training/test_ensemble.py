"""Batch-norm statistics measured anew, and ensembles over internal sizes."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import InputError
from ccrewrite.passes.scales.resize import resized
from ccrewrite.training.ensemble import ScaleEnsemble
from ccrewrite.training.recalibrate import load_statistics_, recalibrate, statistics


def network() -> tuple[Any, Tensor]:
    x = torch.randn(16, 1, 20, 20)
    layers = [
        nn.Conv2d(1, 4, 3, 2, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, 2, 1),
        nn.BatchNorm2d(6),
        nn.Dropout(0.5),
    ]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).eval()
    recalibrate(model, [x])
    return ccrewrite.rewrite(model, x).model, x


def test_statistics_are_those_of_all_batches() -> None:
    model, x = network()
    before = {n: p.clone() for n, p in model.named_parameters()}
    (found,) = recalibrate(model, [(x[:8], None), {"input": x[8:]}])
    maps = model[0](x)
    torch.testing.assert_close(found["1"][0], maps.mean((0, 2, 3)))
    halves = [m.transpose(0, 1).flatten(1).var(1) for m in (maps[:8], maps[8:])]
    torch.testing.assert_close(model[1].running_var, sum(halves) / 2)
    assert not any(m.training for m in model.modules())
    assert model[1].momentum == 0.1
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_each_setting_gets_its_own_and_the_model_keeps_its() -> None:
    model, x = network()
    own = statistics(model)
    settings = [{}, {"0": 0.7}, {"0": 0.7, "3": 1.3}]
    found = recalibrate(model, [x], settings)
    for name, values in statistics(model).items():
        assert all(torch.equal(a, b) for a, b in zip(values, own[name], strict=True))
    with resized(model, settings[1], x):
        assert model[0](x).shape[2:] == (7, 7)
        torch.testing.assert_close(found[1]["1"][0], model[0](x).mean((0, 2, 3)))
    torch.testing.assert_close(found[0]["1"][0], own["1"][0])
    load_statistics_(model, found[2])
    assert torch.equal(model[4].running_var, found[2]["4"][1])


def test_an_ensemble_is_the_mean_over_its_settings() -> None:
    model, x = network()
    settings = [{}, {"0": 0.7}, {"0": (1.2, 0.9)}]
    ensemble = ScaleEnsemble(model, settings).eval()
    outs = []
    for setting in settings:
        with resized(model, setting):
            outs.append(model(x))
    torch.testing.assert_close(ensemble(x), torch.stack(outs).mean(0))
    chances = ScaleEnsemble(model, settings, average=lambda y: y.softmax(1)).eval()(x)
    torch.testing.assert_close(chances.sum(1), torch.ones(16))

    found = recalibrate(model, [x], settings)
    own = copy.deepcopy(model.state_dict())
    ensemble.recalibrate([x])
    outs = []
    for setting, values in zip(settings, found, strict=True):
        load_statistics_(model, values)
        with resized(model, setting):
            outs.append(model(x))
    model.load_state_dict(own)
    torch.testing.assert_close(ensemble(x), torch.stack(outs).mean(0))
    assert all(torch.equal(v, own[k]) for k, v in model.state_dict().items() if isinstance(v, Tensor))

    other = ScaleEnsemble(copy.deepcopy(model), settings)
    other.load_state_dict(ensemble.state_dict())
    torch.testing.assert_close(other.eval()(x), ensemble(x))


def test_what_cannot_be_is_named() -> None:
    model, x = network()
    with pytest.raises(InputError, match="no batch norm"):
        recalibrate(nn.Linear(2, 2), [x])
    with pytest.raises(InputError, match="no batches"):
        recalibrate(model, [])
    with pytest.raises(InputError, match="once per setting"):
        recalibrate(model, itertools.repeat(x, 2), [{}, {"0": 0.5}])
    with pytest.raises(InputError, match="at least one setting"):
        ScaleEnsemble(model, [])
    with pytest.raises(InputError, match="don't fit"):
        load_statistics_(model, {})
    with pytest.raises(InputError, match="evaluation mode"):
        ScaleEnsemble(model, [{}]).recalibrate([x]).train()(x)
    with pytest.raises(InputError, match="pinned"):
        ScaleEnsemble(model[:3], [{}, {"0": 0.5}])(x)
