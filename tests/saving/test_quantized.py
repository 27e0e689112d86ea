"""Models that are quantized, before or after they are rewritten: which order works."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from moved import move_
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import InputError

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor", "ignore:TypedStorage")


class Int8Tensor(Tensor):
    """As torchao has them."""


Int8Tensor.__module__ = "torchao.quantization"


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    return nn.Sequential(*layers).eval()


def with_int8_linear(model: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def test_saving_after_quantizing_says_which_order_works(tmp_path: Path) -> None:
    words = r"of a quantized model\. The order that works: rewrite, fine-tune, save, fold, and quantize the folded model"
    rewritten = ccrewrite.rewrite(network(), X).model
    weights: Any = copy.deepcopy(rewritten)
    weights[4].weight = nn.Parameter(weights[4].weight.detach().as_subclass(Int8Tensor))
    for model in (weights, with_int8_linear(rewritten)):
        with pytest.raises(InputError, match=words):
            ccrewrite.save(model, tmp_path / "saved")


def test_a_model_that_was_quantized_before_keeps_its_geometry_apart(tmp_path: Path) -> None:
    quantized = with_int8_linear(network())
    rewritten = move_(ccrewrite.rewrite(quantized, X).model)
    ccrewrite.save(rewritten, tmp_path / "saved", geometry_only=True)
    again = ccrewrite.load(copy.deepcopy(quantized), tmp_path / "saved")
    assert torch.equal(again(X), rewritten(X))
    assert ccrewrite.fold(rewritten, X).check.ok


class Speaks:
    """Callable, and no function."""

    def __call__(self, layer: nn.Module) -> str:
        return "callable"


@pytest.mark.parametrize("spoken", [functools.partial(lambda word, layer: word, "partial"), Speaks(), len])
def test_methods_that_libraries_put_on_a_layer(spoken: Any) -> None:
    """Bound partials have no name; torchao gives its layers such an ``extra_repr``."""
    model = network()
    model[4].extra_repr = MethodType(spoken, model[4])
    rewritten: Any = ccrewrite.rewrite(model, X).model
    assert rewritten[4].extra_repr.__func__ is spoken
    assert ccrewrite.fold(move_(rewritten), X).check.ok
