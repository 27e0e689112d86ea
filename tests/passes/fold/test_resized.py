"""Layers at another output size than their convolution's own, folded for one input size."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from moved import move_, ours, worst
from torch import nn
from zoo import build

import ccrewrite
from ccrewrite.errors import InputError
from ccrewrite.passes.fold import fold
from ccrewrite.passes.scales.resize import resize_


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("moved", [False, True])
def test_layers_at_another_output_size(moved: bool, mode: str) -> None:
    layers = nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode=mode), nn.ConvTranspose2d(4, 2, 4, stride=2)  # pyright: ignore[reportArgumentType]
    model, x = nn.Sequential(*layers).double(), torch.randn(2, 3, 15, 14, dtype=torch.float64)
    rewritten: Any = ccrewrite.rewrite(model, x).model
    if moved:
        move_(rewritten)
    rewritten[0].sampling.scale, rewritten[1].sampling.output_size = 1.4, (17, 40)
    result = fold(rewritten, x)
    assert [(s.code, s.message) for s in result] == [
        ("resized", "for inputs of 15x14 samples"),
        ("resized", "for inputs of 11x10 samples"),
    ]
    assert result.check.ok
    assert ours(result.model) == []
    assert worst(result.model, rewritten, torch.randn(5, 3, 15, 14, dtype=torch.float64)) <= 1e-12, "any batch"
    assert not list(result.model.parameters())
    twin = pickle.loads(pickle.dumps(copy.deepcopy(result.model)))
    assert torch.equal(twin(x), result.model(x))
    torch.testing.assert_close(torch.export.export(result.model, (x,), strict=False).module()(x), rewritten(x).detach())
    with pytest.raises(InputError, match="15, 14"):
        result.model(torch.randn(2, 3, 16, 14, dtype=torch.float64))


def test_a_model_that_is_resized() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.AdaptiveAvgPool2d(1)), torch.randn(1, 3, 32, 32)
    rewritten = move_(ccrewrite.rewrite(model, x).model)
    resize_(rewritten, {"0": 0.8})
    result: Any = fold(rewritten, x)
    assert result["0"].code == "resized"
    assert result.model[0](x).shape == (1, 4, 12, 12)
    assert worst(result.model, rewritten, x) <= 1e-5
    assert not result.model._forward_pre_hooks
    assert bool(rewritten._forward_pre_hooks)


def test_sizes_that_are_not_folded() -> None:
    model, x = build("reused", torch.float64)
    rewritten: Any = ccrewrite.rewrite(model, x, rules=["strided-to-cc", "dilated-to-dcls"]).model
    rewritten.stages[0].sampling.scale = 0.9
    rewritten.stages[0].register_forward_hook(lambda module, args, out: None)
    result = fold(rewritten, x)
    assert result["stages.0"].code == "size-asked"
    assert not result["stages.0"].folded
    assert result.check.ok
