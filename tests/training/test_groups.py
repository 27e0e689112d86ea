from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ccrewrite.errors import InputError
from ccrewrite.families.dcls.sharing import share_positions
from ccrewrite.nn import CCConv2d, DclsConv2d
from ccrewrite.training import param_groups


def model() -> Any:
    torch.manual_seed(0)
    a, b = (DclsConv2d(4, 4, elements=3, window=5, padding="same", groups=4, interpolation="gaussian") for _ in range(2))
    share_positions(a, b)
    return nn.Sequential(a, b, nn.BatchNorm2d(4), CCConv2d.from_conv(nn.Conv2d(4, 4, 3, stride=2)))


def test_every_trainable_parameter_once() -> None:
    net = model()
    net[0].bias.requires_grad_(False)
    grouped = [id(p) for g in param_groups(net, 0.1) for p in g["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in net.parameters() if p.requires_grad}


def test_rates_and_decay() -> None:
    net = model()
    groups = {g["name"]: g for g in param_groups(net, 0.1, 0.05, position_lr_scale=3)}
    assert {n: (g["lr"], g["weight_decay"]) for n, g in groups.items()} == {
        "weights": (0.1, 0.05),
        "vectors": (0.1, 0.0),
        "positions": (pytest.approx(0.3), 0.0),
        "geometry": (0.1, 0.0),
    }
    assert {id(p) for p in groups["positions"]["params"]} == {id(net[0].sampling.offset), id(net[0].sampling.widening)}
    assert {id(p) for p in groups["geometry"]["params"]} == {id(p) for p in net[3].sampling.parameters()}
    assert {id(p) for p in groups["weights"]["params"]} == {id(net[i].weight) for i in (0, 1, 3)}
    decayed = {g["name"]: g for g in param_groups(net, 0.1, 0.05, decay_vectors=True)}
    assert "vectors" not in decayed


def test_schedulers_keep_the_ratio() -> None:
    optimizer = torch.optim.AdamW(param_groups(model(), 0.1, 0.05))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    rates = {g["name"]: g["lr"] for g in optimizer.param_groups}
    assert rates["positions"] == pytest.approx(5 * rates["weights"])


def test_a_plain_model_works_and_bad_input_is_named() -> None:
    assert [g["name"] for g in param_groups(nn.Linear(2, 2), 0.1)] == ["weights", "vectors"]
    for net, options in (
        (nn.ReLU(), {"lr": 0.1}),
        (nn.Linear(2, 2), {"lr": -1.0}),
        (nn.Linear(2, 2), {"lr": 1.0, "weight_decay": -1.0}),
        (nn.Linear(2, 2), {"lr": 1.0, "position_lr_scale": -1.0}),
    ):
        with pytest.raises(InputError):
            param_groups(net, **options)  # pyright: ignore[reportArgumentType]
