"""Schedules of widths."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.families.dcls.sharing import share_positions
from ccrewrite.nn import DclsConv2d
from ccrewrite.training import WidthSchedule


def layer2d(kind: str = "linear", **options: Any) -> DclsConv2d:
    torch.manual_seed(0)
    return DclsConv2d(3, 3, elements=4, window=7, padding="same", groups=3, interpolation=kind, **options)


def widths_of(layer: DclsConv2d) -> Tensor:
    widths = layer.sampling.widths()
    assert widths is not None
    return widths


def test_widths_decay_and_keep_what_they_learned() -> None:
    layer = layer2d("gaussian")
    schedule = WidthSchedule(layer, start=2.0, end=0.5, steps=4)
    with torch.no_grad():
        assert layer.sampling.widening is not None
        layer.sampling.widening[0] += math.log(1.5)
    for _ in range(2):
        schedule.step()
    assert torch.allclose(widths_of(layer)[0], torch.tensor(1.5))
    assert torch.allclose(widths_of(layer)[1], torch.tensor(1.0))
    other = WidthSchedule(layer2d("gaussian"), start=2.0, end=0.5, steps=4)
    other.load_state_dict(schedule.state_dict())
    assert other.width == schedule.width == 1.0
    for _ in range(5):
        schedule.step()
    assert torch.allclose(widths_of(layer)[1], torch.tensor(0.5))


def test_shared_widths_step_once() -> None:
    net: Any = nn.Sequential(layer2d("gaussian"), layer2d("gaussian"))
    share_positions(*net)
    schedule = WidthSchedule(net, start=2.0, end=0.5, steps=2)
    schedule.step()
    assert torch.allclose(net[1].sampling.widths(), torch.tensor(1.0))


@pytest.mark.parametrize("options", [{"start": 0.0, "end": 1.0, "steps": 1}, {"start": 1.0, "end": 1.0, "steps": 0}])
def test_bad_schedules(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        WidthSchedule(layer2d("gaussian"), **options)
    with pytest.raises(InputError):
        WidthSchedule(layer2d("linear"), start=1.0, end=1.0, steps=1)
