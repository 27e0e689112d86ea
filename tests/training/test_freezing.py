"""Freeze schedules, and weights averaged over steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from training_models import network, pictures, rewritten

from ccrewrite.errors import InputError
from ccrewrite.nn import Sampling
from ccrewrite.training import FreezeSchedule, param_groups


def split(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    geometry = {id(p): p for m in model.modules() if isinstance(m, Sampling) for p in m.parameters()}
    return list(geometry.values()), [p for p in model.parameters() if id(p) not in geometry]


@pytest.mark.parametrize(("geometry", "weights"), [(0, 3), (3, 0), (0, math.inf), (2, 4), (0, 0)])
def test_each_part_moves_from_its_step_on(geometry: float, weights: float) -> None:
    model = rewritten(network())
    optimizer = torch.optim.AdamW(param_groups(model, 1e-2, 0.1))
    schedule = FreezeSchedule(model, geometry=geometry, weights=weights)
    parts = split(model)
    for step in range(5):
        before = [[p.detach().clone() for p in part] for part in parts]
        optimizer.zero_grad()
        model(pictures()).square().sum().backward() if step >= min(geometry, weights) else None
        optimizer.step()
        schedule.step()
        for part, old, start in zip(parts, before, (geometry, weights), strict=True):
            moved = any(not torch.equal(p, q) for p, q in zip(part, old, strict=True))
            assert moved == (step >= start), (step, start)


def test_a_frozen_geometry_runs_the_plain_convolution() -> None:
    model = rewritten(network())
    FreezeSchedule(model, geometry=10)
    assert all(m.runs_plain() for m in model.modules() if isinstance(m, Sampling))


def test_what_the_user_froze_stays_frozen() -> None:
    model: Any = rewritten(network())
    model[0].weight.requires_grad_(False)
    schedule = FreezeSchedule(model, weights=1)
    schedule.step()
    assert not model[0].weight.requires_grad
    assert model[0].bias.requires_grad


def test_a_stored_state_goes_on() -> None:
    first, second = (FreezeSchedule(rewritten(network()), weights=2) for _ in range(2))
    for _ in range(2):
        first.step()
    model: Any = rewritten(network())
    second = FreezeSchedule(model, weights=2)
    assert not model[0].weight.requires_grad
    second.load_state_dict(first.state_dict())
    assert model[0].weight.requires_grad


def test_bad_schedules() -> None:
    model = rewritten(network())
    for options in ({"weights": -1}, {"weights": math.inf, "geometry": math.inf}):
        with pytest.raises(InputError, match="at least 0 and not both never"):
            FreezeSchedule(model, **options)
    with pytest.raises(InputError, match="no geometry that trains"):
        FreezeSchedule(network())


def test_averages_of_weights_carry_the_geometry() -> None:
    """torch's exponential moving average: a layer of its own, whose geometry is the average of what was learned."""
    model = rewritten(network())
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    optimizer = torch.optim.SGD(param_groups(model, 1e-2, 0.0))
    expected = {n: p.detach().clone() for n, p in model.named_parameters()}
    for step in range(3):
        optimizer.zero_grad()
        model(pictures()).square().sum().backward()
        optimizer.step()
        average.update_parameters(model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                expected[name] = parameter.clone() if step == 0 else expected[name].lerp(parameter, 0.5)
    assert expected["3.sampling.offset"].abs().max() > 0
    found = dict(average.module.named_parameters())
    assert all(torch.allclose(found[n], v, atol=1e-7) for n, v in expected.items())
    # It computes with that geometry, not with the trained model's nor with none.
    alone = rewritten(network())
    alone.load_state_dict(average.module.state_dict())
    x = pictures()
    assert torch.equal(average.eval()(x), alone.eval()(x))
    assert not torch.allclose(average(x), model.eval()(x))
