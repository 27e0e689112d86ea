"""Generated networks: plan and rewrite agree, nothing that they compute changes, and all that is done can be undone."""

from __future__ import annotations

import copy
import os
import tempfile
import warnings
from typing import Any

import pytest
import torch
from generated_networks import Functional, Generated, network
from torch import Tensor, nn

import ccrewrite

FIRST = 100
MANY = int(os.environ.get("CCREWRITE_NETWORKS", "2000"))


@pytest.mark.parametrize("seed", range(FIRST))
def test_a_generated_network(seed: int) -> None:
    check(seed)


@pytest.mark.slow
def test_many_generated_networks() -> None:
    failed: dict[int, str] = {}
    for seed in range(FIRST, MANY):
        try:
            check(seed)
        except Exception as error:
            failed[seed] = f"{network(seed).made_of}: {type(error).__name__}: {str(error)[:200]}"
    assert not failed, "\n".join(f"{seed}: {said}" for seed, said in failed.items())


def check(seed: int) -> None:
    made = network(seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using padding='same' with even kernel lengths")
        original = copy.deepcopy(made.model)
        state = {name: value.clone() for name, value in original.state_dict().items()}
        planned = ccrewrite.plan(made.model, made.inputs)
        result = ccrewrite.rewrite(made.model, made.inputs)
        assert [(s.name, s.code) for s in planned] == [(s.name, s.code) for s in result.plan], made.made_of
        assert result.check.ok, (made.made_of, result.check)
        _same_gradients(original, result.model, made)
        _moved(result.model)
        moved = _run(result.model, made)
        _same_by_method(result.model, made)
        if result.plan.rewritten:
            _saved(result, made, moved)
            _folded(result.model, made, moved)
        reverted = ccrewrite.revert(result.model)
        assert {n: v.dtype for n, v in reverted.state_dict().items()} == {n: v.dtype for n, v in state.items()}
        assert all(torch.equal(v, state[n]) for n, v in reverted.state_dict().items()), made.made_of
        # Of parametrized modules torch makes a class for each copy.
        assert [type(m).__name__ for m in reverted.modules()] == [type(m).__name__ for m in original.modules()], made.made_of
        _equal(_run(reverted, made), _run(original, made), 0)


def _run(model: nn.Module, made: Generated) -> dict[str, Tensor]:
    with torch.no_grad():
        return model(*made.inputs)


def _equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, value in expected.items():
        value = value.detach()
        torch.testing.assert_close(found[name].detach(), value, rtol=tolerance, atol=tolerance * float(value.abs().max()))


def _tolerance(made: Generated) -> float:
    """In float64, unless a part is in float32, or in bfloat16."""
    return 3e-2 if "autocast" in made.made_of else 1e-4 if {"mixed", "cast"} & set(made.made_of) else 1e-9


def _same_gradients(original: nn.Module, rewritten: nn.Module, made: Generated) -> None:
    """Outputs without and with gradients, and those of every parameter and of the input."""
    _equal(_run(rewritten, made), _run(original, made), _tolerance(made))
    found: list[dict[str, Any]] = []
    for model in (original, rewritten):
        inputs = tuple(x.clone().requires_grad_() for x in made.inputs)
        outputs = model(*inputs)
        sum(value.square().mean() for value in outputs.values()).backward()  # pyright: ignore[reportAttributeAccessIssue]
        gradients = {f"input {i}": x.grad for i, x in enumerate(inputs)}
        gradients |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append({"outputs": outputs, "gradients": gradients})
        model.zero_grad()
    _equal(found[1]["outputs"], found[0]["outputs"], _tolerance(made))
    _equal(found[1]["gradients"], found[0]["gradients"], 10 * _tolerance(made))


def _same_by_method(model: nn.Module, made: Generated) -> None:
    """Methods that make calls compute with the geometry, called by ``forward`` or by themselves."""
    x = made.inputs[0]
    with torch.no_grad():
        module: Any
        for module in model.modules():
            if isinstance(module, Functional):
                assert torch.equal(torch.tanh(module.encode(x)), module(x)), made.made_of
            elif hasattr(module, "doubled"):
                torch.testing.assert_close(module.doubled(x), 2 * module(x), rtol=1e-9, atol=1e-9)


def _moved(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for sampling in (m for m in model.modules() if isinstance(m, ccrewrite.Sampling)):
            for mover in sampling.movers():
                mover.add_(0.2 * torch.rand(mover.shape, generator=generator, dtype=mover.dtype))


def _saved(result: Any, made: Generated, moved: dict[str, Tensor]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ccrewrite.save(result, folder)
        loaded = ccrewrite.load(copy.deepcopy(made.model), folder)
    _equal(_run(loaded, made), moved, 0)


def _folded(model: nn.Module, made: Generated, moved: dict[str, Tensor]) -> None:
    folded = ccrewrite.fold(model, made.inputs)
    assert folded.check.ok, (made.made_of, folded.check)
    _same_by_method(folded.model, made)
    _equal(_run(folded.model, made), moved, max(1e-6, _tolerance(made)))
