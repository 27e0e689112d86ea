"""Adapters of PEFT's on rewritten layers: merged, they compute what they did before, or they are refused. The tuners here do
what PEFT's do, under the names of its modules; PEFT itself runs in docs/neighbours.md (``make gallery``)."""

from __future__ import annotations

import copy
import io
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from moved import move_
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import InputError
from ccrewrite.nn import DclsConv2d


class BaseTunerLayer:
    """PEFT's class has this name."""


class Tuner(nn.Module, BaseTunerLayer):
    """Adds the convolution of a weight of its own, as LoHa and LoKr do; OTHER says with what arguments besides the layer's."""

    __module__ = "peft.tuners.loha.layer"
    OTHER: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer: Any = base_layer
        layer = base_layer
        while isinstance(layer, Tuner):
            layer = layer.base_layer
        self.layer = [layer]
        drawn = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(3))  # pyright: ignore[reportArgumentType, reportCallIssue]
        self.delta = nn.Parameter(drawn / 4)
        self.merged = False

    def forward(self, x: Tensor) -> Tensor:
        out = self.base_layer(x)
        return out if self.merged else out + self.branch(x)

    def branch(self, x: Tensor) -> Tensor:
        layer: Any = self.layer[0]
        function = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[self.delta.ndim]
        given = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")} | self.OTHER
        return function(x, 1.0 * self.delta, **given)

    def merge(self) -> nn.Module:
        self.layer[0].weight.data += self.delta.data  # pyright: ignore[reportOperatorIssue]
        self.merged = True
        return self.base_layer


class OnAnotherGrid(Tuner):
    """As BOFT and HRA on a dilated layer."""

    __module__ = "peft.tuners.boft.layer"
    OTHER = {"dilation": 1}  # noqa: RUF012


class Unknown(Tuner):
    __module__ = "peft.tuners.oft.layer"


class Scales(Tuner):
    """As IA3: output channels are scaled, and the convolution is the layer's own."""

    __module__ = "peft.tuners.ia3.layer"

    def branch(self, x: Tensor) -> Tensor:
        return self.base_layer(x)


class Own(Tuner):
    """Somebody's tuner, made of PEFT's."""

    __module__ = "somebody"


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "strided": (lambda: nn.Conv2d(4, 6, 3, 2, 1), (2, 4, 12, 12)),
    "dilated": (lambda: nn.Conv2d(4, 6, 3, 1, 2, 2), (2, 4, 12, 12)),
    "depthwise, 1-d": (lambda: nn.Conv1d(4, 4, 5, 1, 8, 4, groups=4), (2, 4, 40)),
    "same": (lambda: nn.Conv2d(4, 6, 3, 1, "same", 2), (2, 4, 12, 12)),
    "reflected": (lambda: nn.Conv2d(4, 6, 3, 1, 2, 2, padding_mode="reflect"), (2, 4, 12, 12)),
    "3-d": (lambda: nn.Conv3d(2, 3, 3, 2, 1), (1, 2, 8, 8, 8)),
}


def wrapped(name: str, tuner: type[Tuner] = Tuner) -> tuple[Any, Tensor]:
    """A rewritten layer, moved, in a tuner; and an input."""
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    x = torch.randn(shape)
    model: Any = move_(ccrewrite.rewrite(nn.Sequential(make(), nn.Tanh()).eval(), x).model)
    model[0] = tuner(model[0])
    return model, x


@torch.no_grad()
def merged(model: Any) -> Any:
    model[0] = model[0].merge()
    return model


@pytest.mark.parametrize("name", LAYERS)
def test_a_merged_branch_computes_what_it_did(name: str) -> None:
    model, x = wrapped(name)
    before, plain = model(x), model[0].base_layer(x)
    assert (model[0](x) - plain).abs().max() > 0.1, "the branch does something"
    after = merged(model)
    torch.testing.assert_close(after(x), before, rtol=1e-5, atol=1e-5)
    assert ccrewrite.fold(after, x).check.ok


def test_adapters_on_adapters_and_somebodys_own() -> None:
    model, x = wrapped("dilated", Own)
    model[0] = Tuner(model[0])
    before = model(x)
    inner = model[0].merge()
    inner.merge()
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)


def test_a_branch_learns_and_the_geometry_with_it() -> None:
    model, x = wrapped("dilated")
    model(x).square().sum().backward()
    with_branch = model[0].base_layer.sampling.offset.grad.clone()
    assert model[0].delta.grad.abs().max() > 0
    merged(model).zero_grad()
    model(x).square().sum().backward()
    torch.testing.assert_close(model[0].sampling.offset.grad, with_branch, rtol=1e-4, atol=1e-4)


def test_copies_and_files_keep_the_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = wrapped("strided")
    for name in ("peft", Tuner.__module__):  # where pickle looks for the class
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    vars(sys.modules[Tuner.__module__])["Tuner"] = Tuner
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for again in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(again(x), model(x))
        assert type(again[0]).__name__ == "Tuner"


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo's, under any function mode
def test_branches_compile() -> None:
    torch._dynamo.reset()
    model, x = wrapped("dilated")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


def test_tuners_that_are_right_on_any_geometry_are_let_be() -> None:
    model, x = wrapped("strided", Scales)
    assert type(model[0]) is Scales
    assert ccrewrite.fold(model, x).check.ok


def test_other_tuners_are_refused() -> None:
    with pytest.raises(InputError, match=r"an adapter on a CCConv2d.*ccrewrite\.fold"):
        wrapped("strided", Unknown)
    model, x = wrapped("dilated", OnAnotherGrid)
    with pytest.raises(InputError, match="k3 p2 on a DclsConv2d of 4->6 k3 p2 d2"):
        model(x)


class Standardised(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight - self.weight.mean(), self.bias)


def test_layers_whose_weight_is_no_plain_kernel_are_refused() -> None:
    x = torch.randn(1, 4, 12, 12)
    own = ccrewrite.rewrite(Standardised(4, 4, 3, dilation=2).eval(), x).model
    for layer in (own, DclsConv2d(4, 4, elements=3, window=5)):
        with pytest.raises(InputError, match="adapter"):
            Tuner(layer)


def test_a_branch_is_merged_before_its_layer_is_folded() -> None:
    model, x = wrapped("dilated")
    with pytest.raises(InputError, match=r"0 is an adapter on the site 0\.base_layer.*merge it first"):
        ccrewrite.fold(model, x)


def test_reverted_layers_are_plain_again() -> None:
    model, x = wrapped("dilated")
    ccrewrite.revert(model)
    torch.testing.assert_close(model[0](x), model[0].base_layer(x) + model[0].branch(x))


def test_what_is_adapted_first_is_not_rewritten() -> None:
    """The branch is a functional call of a computed weight: by itself it would be a site."""
    torch.manual_seed(0)
    model = nn.Sequential(Tuner(nn.Conv2d(4, 6, 3, dilation=2)), nn.Conv2d(6, 4, 3, dilation=2))
    planned = ccrewrite.plan(model, torch.randn(1, 4, 16, 16))
    assert {site.name: site.code for site in planned} == {
        "0.base_layer": "adapter",
        "0:conv2d": "adapter",
        "1": "dilated-to-dcls",
    }


def test_channels_that_are_scaled_are_in_nobodys_way() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Scales(nn.Conv2d(4, 6, 3, dilation=2))).eval(), torch.randn(1, 4, 16, 16)
    assert [site.code for site in ccrewrite.rewrite(model, x).plan] == ["dilated-to-dcls"]
