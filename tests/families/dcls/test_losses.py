"""Losses on positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.families.dcls.sharing import share_positions
from ccrewrite.nn import DclsConv1d, DclsConv2d, DclsConv3d
from ccrewrite.training import param_groups, repulsive_loss


def layer2d(kind: str = "linear", **options: Any) -> DclsConv2d:
    torch.manual_seed(0)
    return DclsConv2d(3, 3, elements=4, window=7, padding="same", groups=3, interpolation=kind, **options)


def by_formula(places: Tensor) -> float:
    """``places``: (axes, out, in/groups, taps), as in the authors' training code."""
    _, out, inner, taps = places.shape
    total = 0.0
    for o in range(out):
        for i in range(inner):
            for a in range(taps):
                for b in range(a + 1, taps):
                    total += max(0.0, 1 - (places[:, o, i, a] - places[:, o, i, b]).norm().item())
    return 2 / (taps * (taps - 1) * out * inner) * total


def test_repulsive_loss_is_the_authors_formula() -> None:
    net: Any = nn.Sequential(layer2d(), layer2d(position_init="uniform"))
    expected = sum(by_formula(layer.sampling.positions().detach()) for layer in net) / 2
    assert repulsive_loss(net).item() == pytest.approx(expected, rel=1e-5)
    share_positions(*net)
    assert repulsive_loss(net).item() == pytest.approx(by_formula(net[0].sampling.positions().detach()), rel=1e-5)


def test_repulsive_loss_pushes_taps_apart_and_is_finite_where_they_meet() -> None:
    layer = DclsConv1d(1, 1, elements=3, window=9)
    with torch.no_grad():
        layer.sampling.offset.copy_(torch.tensor([0.0, 0.0, 0.4]))
    (gradient,) = torch.autograd.grad(repulsive_loss(layer), layer.sampling.offset)
    assert gradient.isfinite().all()
    assert gradient[..., 2] < 0 < gradient[..., 0]


def test_taps_apart_on_an_axis_that_does_not_move_are_apart() -> None:
    layer = DclsConv3d(1, 1, elements=1, window=(5, 3, 3), axes=(0,))
    assert repulsive_loss(layer).item() == 0
    assert repulsive_loss(DclsConv2d(1, 1, 3, dilation=1)).item() == 0


def test_nothing_to_repel() -> None:
    with pytest.raises(InputError):
        repulsive_loss(nn.Conv2d(1, 1, 3))


def test_groups_and_loss_train_together() -> None:
    layer = layer2d()
    optimizer = torch.optim.AdamW(param_groups(layer, 1e-2, 0.05))
    before = repulsive_loss(layer).item()
    for _ in range(20):
        optimizer.zero_grad()
        repulsive_loss(layer).square().backward()
        optimizer.step()
    assert repulsive_loss(layer).item() < before
