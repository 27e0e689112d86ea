"""Rewriting puts nothing on the user's class but ``sampling``, and subclasses it without a word to it."""

from __future__ import annotations

import copy
import pickle
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import ccrewrite
from ccrewrite.errors import InputError
from ccrewrite.nn import CCConv2d, CCConvTranspose2d, DclsConv2d, RewrittenConv

X = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(0))
REGISTRY: dict[str, type] = {}


def rewritten(layer: nn.Module) -> Any:
    return ccrewrite.rewrite(nn.Sequential(layer).eval(), X).model.get_submodule("0")


class Scaled(nn.Conv2d):
    """Weight-standardised, in its way, with a buffer, a parameter, an attribute and a property of names that ours have."""

    scale: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(4, 4, 3, **options)
        self.register_buffer("scale", torch.tensor(0.5))
        self.alignment = nn.Parameter(torch.ones(4, 1, 1, 1))
        self.kernel, self.window, self.margin, self.offset = "kernel", 7, (1, 1), 0.25

    @property
    def output_size(self) -> int:
        return 3

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.scale * self.alignment * self.output_size
        return F.conv2d(x, weight + self.offset, self.bias, self.stride, self.padding, self.dilation)


@pytest.mark.parametrize("options", [{"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2}], ids=["cc", "dcls"])
def test_a_users_attributes_are_what_they_were(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer: Any = Scaled(**options).eval()
    model = ccrewrite.rewrite(layer, X).model
    found: Any = model
    assert isinstance(found, RewrittenConv)
    for now in (found, copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert torch.equal(now(X), layer(X))
        assert (now.output_size, now.kernel, now.window, now.margin, now.offset) == (3, "kernel", 7, (1, 1), 0.25)
        assert (now.scale, now.alignment.shape) == (0.5, (4, 1, 1, 1))
    found.offset, layer.offset = 1.0, 1.0  # theirs: it is no geometry  # pyright: ignore[reportArgumentType]
    found.scale, layer.scale = torch.tensor(2.0), torch.tensor(2.0)
    torch.testing.assert_close(found(X), layer(X))


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 3, 2, 1), nn.ConvTranspose2d(4, 4, 4, 2, 1), nn.Conv2d(4, 4, 3, dilation=2)])
def test_nothing_public_is_added_to_the_class(layer: nn.Module) -> None:
    added = {n for n in dir(rewritten(layer)) if not hasattr(layer, n) and not n.startswith(("_", "ccrewrite_"))}
    assert added == {"sampling"}


@pytest.mark.parametrize(
    ("layer", "name", "value"),
    [
        (nn.Conv2d(4, 4, 3, 2, 1), "scale", 0.8),
        (nn.Conv2d(4, 4, 3, 2, 1), "output_size", (3, 4)),
        (nn.ConvTranspose2d(4, 4, 4, 2, 1), "alignment", "centred"),
        (nn.ConvTranspose2d(4, 4, 4, 2, 1), "rescaled", True),
        (nn.Conv2d(4, 4, 3, dilation=2), "offset", nn.Parameter(torch.zeros(2))),
        (parametrizations.weight_norm(nn.Conv2d(4, 4, 3, 2, 1)), "scale", 0.8),
    ],
)
def test_geometry_set_on_the_layer_is_refused(layer: nn.Module, name: str, value: Any) -> None:
    found = rewritten(layer)
    with pytest.raises(InputError, match=rf"layer\.sampling\.{name}"):
        setattr(found, name, value)
    setattr(found.sampling, name, value)
    found.note = "others' attributes are set as ever"
    assert not hasattr(found, name)


def test_layers_from_scratch_have_them() -> None:
    down, up = CCConv2d(4, 4, 3, 2, 1), CCConvTranspose2d.from_conv(nn.ConvTranspose2d(4, 4, 4, 2, 1))
    down.scale, up.output_size, up.alignment = 0.5, (9, 9), "centred"
    assert (down.sampling.scale, up.sampling.output_size, up.sampling.alignment) == (0.5, (9, 9), "centred")
    assert (down(X).shape[2:], up(X).shape[2:]) == ((3, 3), (9, 9))
    named: Any = nn.Conv2d(4, 4, 3, 2, 1)
    named.scale = 0.5
    with pytest.raises(InputError, match="attribute of its own called scale; "):
        CCConv2d.from_conv(named)
    assert rewritten(named).scale == 0.5


class Registered(nn.Module):
    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        REGISTRY[cls.__name__] = cls


class FunctionalNet(Registered):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(4, 4, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w, stride=2)


class RegisteredConv(nn.Conv2d, Registered):
    pass


class Keeping(type):
    made: ClassVar[list[str]] = []

    def __init__(cls, name: str, bases: tuple[type, ...], names: dict[str, Any]) -> None:
        super().__init__(name, bases, names)
        cls.made.append(name)


class KeptConv(nn.Conv2d, metaclass=Keeping):
    pass


class Final(nn.Conv2d):
    def __init_subclass__(cls, **options: Any) -> None:
        raise TypeError("Final can't be subclassed")


class Abstract(nn.Conv2d, ABC):
    @abstractmethod
    def name(self) -> str: ...


class Concrete(Abstract):
    def name(self) -> str:
        return "concrete"


class Frozen(nn.Conv2d):
    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__class__":
            raise TypeError("its class is what it is")
        super().__setattr__(name, value)


@pytest.mark.parametrize(
    "make",
    [
        FunctionalNet,
        *(lambda kind=kind: kind(4, 4, 3, stride=2) for kind in (RegisteredConv, KeptConv, Final, Concrete, Frozen)),
        lambda: parametrizations.weight_norm(RegisteredConv(4, 4, 3, stride=2)),
    ],
)
def test_classes_do_not_notice(make: Any) -> None:
    model, registry, kept = nn.Sequential(make()).eval(), dict(REGISTRY), list(Keeping.made)
    kind, expected = type(model[0]), model(X)
    result = ccrewrite.rewrite(model, X)
    assert result.plan.rewritten
    twin: Any = pickle.loads(pickle.dumps(copy.deepcopy(result.model))) if "Parametrized" not in kind.__name__ else result.model
    assert torch.equal(twin(X), expected)
    assert isinstance(twin[0], kind if "Parametrized" not in kind.__name__ else kind.__bases__[0])
    back: Any = ccrewrite.revert(result.model)
    assert type(back[0]).__name__ == kind.__name__
    assert (registry, kept) == (REGISTRY, Keeping.made)


def test_a_host_that_builds_another_of_its_class_gets_the_original() -> None:
    model = ccrewrite.rewrite(FunctionalNet().eval(), X).model
    with torch.no_grad():
        torch.testing.assert_close(type(model)()(X), FunctionalNet()(X))


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 3, 2, 1), nn.ConvTranspose2d(4, 4, 4, 2, 1), nn.Conv2d(4, 4, 3, dilation=2)])
def test_the_class_of_a_rewritten_layer_builds_nothing(layer: nn.Module) -> None:
    """PEFT's LoRA does: its branch would be without the geometry."""
    with pytest.raises(InputError, match=r"adapters on the original.*ccrewrite\.fold"):
        type(rewritten(layer))(4, 2, (3, 3), (2, 2), (1, 1), bias=False)


def test_drawing_anew_takes_the_geometry_along() -> None:
    layer = rewritten(nn.Conv2d(4, 4, 3, dilation=2))
    weight = layer.weight.detach().clone()
    nn.init.constant_(layer.sampling.offset, 0.5)
    layer.reset_parameters()
    assert not torch.equal(layer.weight, weight)
    assert not bool(layer.sampling.offset.any())


def test_names_that_are_shown() -> None:
    names = [
        type(rewritten(layer)).__name__ for layer in (nn.Conv2d(4, 4, 3, 2), nn.Conv2d(4, 4, 3, dilation=2), Final(4, 4, 3, 2))
    ]
    assert names == ["CCConv2d", "DclsConv2d", "CCConv2d_Final"]
    assert not isinstance(rewritten(nn.Conv2d(4, 4, 3, dilation=2)), DclsConv2d)
