from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_models import network, pictures, rewritten

from ccrewrite.errors import InputError
from ccrewrite.families.look import Forget
from ccrewrite.training import Distillation


def pair() -> tuple[Any, Any]:
    original = network().double()
    return rewritten(original).eval(), original


def test_zero_as_long_as_nothing_moved() -> None:
    model, original = pair()
    with Distillation(model, original, features=["3", "4"]) as distillation:
        model(pictures().double())
        outputs, features = distillation()
    assert outputs.item() == pytest.approx(0, abs=1e-12)
    assert features.item() == pytest.approx(0, abs=1e-12)


def test_the_formulas() -> None:
    model, original = pair()
    with torch.no_grad():
        model[3].weight.mul_(1.5)
    x = pictures().double()
    with Distillation(model, original, features=["3", "4"], temperature=3.0) as distillation:
        scores = model(x)
        outputs, features = distillation()
    p, q = (original(x) / 3).softmax(1), (scores / 3).softmax(1)
    assert outputs.item() == pytest.approx(9 * (p * (p / q).log()).sum(1).mean().item())
    expected = []
    for end in (4, 5):
        ours, theirs = model[:end](x), original[:end](x)
        expected.append((ours - theirs).square().sum() / theirs.square().sum())
    assert features.item() == pytest.approx(torch.stack(expected).mean().item())
    with Distillation(model, original, temperature=None) as distillation:
        scores = model(x)
        outputs, features = distillation()
    assert outputs.item() == pytest.approx(F.mse_loss(scores, original(x)).item() / original(x).square().mean().item())
    assert features.item() == 0


def test_gradients_reach_the_model_alone_and_pull_it_back() -> None:
    model, original = pair()
    with torch.no_grad():
        model[3].sampling.offset.add_(0.3)
    optimizer = torch.optim.Adam([model[3].sampling.offset], 0.02)
    x = pictures(16).double()
    with Distillation(model, original, features=["3"]) as distillation:
        losses = []
        for _ in range(30):
            optimizer.zero_grad()
            model(x)
            loss = sum(distillation(), torch.zeros(()))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert all(p.grad is None for p in original.parameters())


def test_copies_of_the_model_leave_it_alone_and_closing_removes_the_hooks() -> None:
    model, original = pair()
    x = pictures().double()
    distillation = Distillation(model, original, features=["3"])
    average: Any = copy.deepcopy(model)
    with torch.no_grad():
        average[3].weight.zero_()
    model(x)
    average(x)
    assert sum(distillation(), torch.zeros(())).item() == pytest.approx(0, abs=1e-12)
    distillation.close()
    assert all(isinstance(hook, Forget) for hook in model._forward_hooks.values())
    assert not model[3]._forward_hooks
    assert not original[3]._forward_hooks


class Mapped(nn.Module):
    """Calls its network by keyword and gives a mapping, as transformers' models do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *, pixels: Tensor) -> dict[str, Tensor]:
        scores = self.network(pixels)
        return {"loss": scores.sum(), "logits": scores}


def test_mappings_and_keyword_arguments() -> None:
    model, original = (Mapped(m) for m in pair())
    with Distillation(model, original) as distillation:
        model(pixels=pictures().double())
        assert distillation().outputs.item() == pytest.approx(0, abs=1e-12)


def test_half_precision_is_compared_in_single() -> None:
    model, original = (m.to(torch.bfloat16) for m in pair())
    with Distillation(model, original, features=["3"]) as distillation:
        model(pictures().bfloat16())
        assert {t.dtype for t in distillation()} == {torch.float32}


def test_mistakes() -> None:
    model, original = pair()
    for match, options in (("temperature must be", {"temperature": 0.0}), ("no module 'head'", {"features": ["head"]})):
        with pytest.raises(InputError, match=match):
            Distillation(model, original, **options)  # pyright: ignore[reportArgumentType]
    assert all(isinstance(hook, Forget) for hook in model._forward_hooks.values())
    with pytest.raises(InputError, match="from itself"):
        Distillation(model, model)
    distillation = Distillation(model, original)
    with pytest.raises(InputError, match="run the model first"):
        distillation()
    other = Distillation(model, nn.Sequential(original, nn.Linear(3, 5)).double())
    model(pictures().double())
    with pytest.raises(InputError, match=r"shape \(4, 3\), the original's \(4, 5\)"):
        other()
    both: Any
    for both in (model, original):
        both.add_module("spare", nn.Identity())
        both.forward = both[:9].forward
    unrun = Distillation(model, original, features=["spare"])
    model(pictures().double())
    with pytest.raises(InputError, match="'spare' took no part"):
        unrun()
    pairs = Distillation(nn.Conv1d(1, 1, 1), nn.Conv1d(1, 1, 1))
    pairs._remember(pairs.model, (torch.zeros(1, 1, 1),), {}, (torch.zeros(1), torch.zeros(1)))
    with pytest.raises(InputError, match="found tuple with 2"):
        pairs()
