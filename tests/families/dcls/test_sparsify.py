"""LargeToDcls: what it takes, what it promises in the plan, and that it keeps to its budget."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import ccrewrite
from ccrewrite.errors import InputError, SelectionError
from ccrewrite.families.dcls import fit
from ccrewrite.families.dcls.sparsify import LargeToDcls, Option, spread
from ccrewrite.nn import DclsConv2d, DclsSampling
from ccrewrite.passes.rules import make_rule
from ccrewrite.training import param_groups


def mixer() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 9, padding="same", groups=8),
        nn.GELU(),
        nn.Conv2d(8, 8, 7, padding=3, groups=8, bias=False),
        nn.Conv2d(8, 4, 3, dilation=2),
    )


X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def added(layer: nn.Module) -> int:
    return sum(p.numel() for n, p in layer.named_parameters() if n != "bias")


def test_off_by_default() -> None:
    codes = {s.name: s.decision.code for s in ccrewrite.plan(mixer(), X)}
    assert codes["1"] == codes["3"] == "large"


@pytest.mark.parametrize(
    "options",
    [{"elements": 6}, {"budget": 1 / 3}, {"budget": 0.2, "sharing": "tap"}, {"budget": 0.4, "interpolation": "linear"}],
)
def test_plan_says_what_rewrite_does(options: dict[str, Any]) -> None:
    model = mixer()
    before = copy.deepcopy(model.state_dict())
    result: Any = ccrewrite.rewrite(model, X, rules=[LargeToDcls(**options), "dilated-to-dcls"])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [s.name for s in result.plan.rewritten] == ["1", "3", "4"]
    assert "NOT exact" in result.plan["1"].decision.message
    assert json.loads(result.plan.to_json())["rules"][0]["rule"] == "large-to-dcls"
    assert result.check.ok  # of the exact site, compared before the others became approximate
    assert "2 sites became approximate" in result.check.note
    found = result.plan.rules[0].found
    for name in ("1", "3"):
        dense: Any
        layer: Any = result.model.get_submodule(name)
        dense = model.get_submodule(name)
        assert isinstance(layer.sampling, DclsSampling)
        sparse = found[name]
        assert added(layer) == sparse.parameters
        assert f"{sparse.parameters} parameters for {dense.weight.numel()}" in result.plan[name].decision.message
        error = (layer.sampling.kernel(layer.weight) - dense.weight).norm() / dense.weight.norm()
        assert sparse.relative_error == pytest.approx(error.item(), rel=1e-4)
        if "elements" in options:
            assert layer.weight.shape == (8, 1, 6)
    if "budget" in options:
        assert added(result.model[1]) + added(result.model[3]) <= options["budget"] * 8 * (81 + 49)
    assert result.model(X).shape == model(X).shape


def test_it_trains_copies_and_reverts() -> None:
    model = mixer()
    sparse: Any = ccrewrite.rewrite(model, X, rules=LargeToDcls(elements=12)).model
    target = model(X).detach()
    optimizer = torch.optim.Adam(param_groups(sparse, 3e-3))
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (sparse(X) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert torch.equal(copy.deepcopy(sparse)(X), sparse(X))
    learned = sparse(X)
    ccrewrite.revert(sparse)
    assert type(sparse[1]) is nn.Conv2d
    assert sparse[1].weight.shape == (8, 1, 9, 9)
    assert torch.allclose(sparse(X), learned, atol=1e-5)


def test_a_wider_window_keeps_the_output_size_and_fits_better_or_equal() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 3, 7, padding=3, groups=3))
    wide: Any = ccrewrite.rewrite(model, X, rules=LargeToDcls(elements=9, window=11)).model
    assert wide[0].sampling.window == (11, 11)
    assert wide(X).shape == model(X).shape
    dense = nn.functional.pad(model[0].weight, [2] * 4)
    assert (wide[0].sampling.kernel(wide[0].weight) - dense).norm() < dense.norm()
    for window in (5, 8):
        with pytest.raises(InputError, match="window"):
            ccrewrite.plan(model, X, rules=LargeToDcls(elements=9, window=window))


def test_kernels_made_of_few_taps_come_back() -> None:
    torch.manual_seed(0)
    layer = DclsConv2d(4, 4, elements=3, window=9, padding="same", groups=4, position_init="uniform", bias=False)
    dense = nn.Conv2d(4, 4, 9, padding="same", groups=4, bias=False)
    with torch.no_grad():
        dense.weight.copy_(layer.sampling.kernel(layer.weight))
    x = torch.randn(1, 4, 20, 20)
    found = ccrewrite.rewrite(dense, x, rules=LargeToDcls(elements=6, interpolation="linear"))
    assert next(iter(found.plan.rules[0].found.values())).relative_error < 0.05


class Masked(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.conv2d(input, self.weight * 0.5, self.bias, padding=3, groups=self.groups)


def test_what_it_leaves_alone() -> None:
    """Weights that are computed, functional calls, transposed and dilated layers."""
    for layer in (
        weight_norm(nn.Conv2d(3, 3, 7, padding=3, groups=3)),
        Masked(3, 3, 7, groups=3),
        nn.Conv2d(3, 3, 7, dilation=2, groups=3),
        nn.ConvTranspose2d(3, 3, 8, stride=2, groups=3),
    ):
        with pytest.raises(SelectionError):
            ccrewrite.rewrite(nn.Sequential(layer), X, rules=LargeToDcls(elements=4))


@pytest.mark.parametrize("layer", [weight_norm(nn.Conv2d(3, 3, 7, padding=3, groups=3)), Masked(3, 3, 7, groups=3)])
def test_it_says_why_it_leaves_a_large_kernel_alone(layer: nn.Module) -> None:
    site = ccrewrite.plan(nn.Sequential(layer), X, rules=LargeToDcls(elements=4))["0"]
    assert site.code == "refused"
    assert site.message.startswith("large-to-dcls: its weight is ")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"elements": 3, "budget": 0.3},
        {"elements": 0},
        {"budget": 1.0},
        {"budget": 0.3, "sharing": "out"},
        {"elements": 3, "interpolation": "cubic"},
    ],
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        LargeToDcls(**options)


def test_from_a_table_and_a_budget_too_small() -> None:
    rule = make_rule({"rule": "large-to-dcls", "budget": 0.001})
    with pytest.raises(InputError, match="too small"):
        ccrewrite.plan(mixer(), X, rules=rule)


def test_elements_go_where_they_help_most() -> None:
    """Against every way of spending the budget, by counting them all."""
    path = fit.Path([], [])
    steep, flat = [0.5, 0.2, 0.1, 0.05], [0.9, 0.85, 0.82, 0.8]
    options = [Option("a", "tap", path, [10, 20, 30, 40], steep), Option("b", "tap", path, [10, 20, 30, 40], flat)]
    chosen = {o.name: o for o in spread(options, 50)}
    least = min(steep[i] + flat[j] for i in range(4) for j in range(4) if 10 * (i + 1 + j + 1) <= 50)
    assert chosen["a"].errors[chosen["a"].elements - 1] + chosen["b"].errors[chosen["b"].elements - 1] == pytest.approx(least)
    assert sum(o.size for o in chosen.values()) <= 50
    better = Option("b", "full", path, [15, 30, 45], [0.3, 0.1, 0.0])
    assert next(o for o in spread([*options, better], 50) if o.name == "b").sharing == "full"
