"""Convolutions called from other methods than forward, in autograd functions, and in functions that fx keeps whole."""

from __future__ import annotations

import copy
import pickle
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from moved import move_
from torch import Tensor, fx, nn
from torch.nn.grad import conv2d_input, conv2d_weight
from torch.utils.checkpoint import checkpoint

import ccrewrite
from ccrewrite.errors import InputError, SelectionError
from ccrewrite.passes.fold import fold

X = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(0))


class Autoencoder(nn.Module):
    """Its weights are reached by name, by a property, as an argument, and by a getattr; ``features`` runs in no forward."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4, 3, 3) / 5)
        self.v = nn.Parameter(torch.randn(4, 4, 4, 4) / 5)

    @property
    def filters(self) -> Tensor:
        return self.w

    def encode(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.filters, stride=2, padding=1)

    @torch.autocast("cpu", enabled=False)
    def decode(self, z: Tensor) -> Tensor:
        return self._up(z, self.v)

    def features(self, x: Tensor) -> Tensor:
        return F.conv2d(x, getattr(self, "w"), stride=2, padding=1)  # noqa: B009

    @staticmethod
    def _up(z: Tensor, kernel: Tensor) -> Tensor:
        return F.conv_transpose2d(z, kernel, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Autoencoder()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner.encode(x)


class Computed(nn.Module):
    """The weight is computed, so that it can't be told by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4, 3, 3) / 5)

    def encode(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w / self.w.norm(), stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x).relu()


class Standardised(nn.Conv2d):
    """A layer with a forward of its own, and a second door to it."""

    def before_bias(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean(), None, self.stride, self.padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.before_bias(x) + cast(Tensor, self.bias).view(-1, 1, 1)


def moved(model: nn.Module) -> nn.Module:
    return move_(ccrewrite.rewrite(model.eval(), X).model)


def off(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max())


@pytest.mark.parametrize("how", ["moved", "folded", "copied", "pickled"])
def test_every_method_uses_the_geometry(how: str) -> None:
    model: Any = moved(Autoencoder())
    want = model(X)
    if how == "folded":
        model = fold(model, X).model
    elif how == "copied":
        model = copy.deepcopy(model)
    elif how == "pickled":
        model = pickle.loads(pickle.dumps(model))
    assert off(model.decode(model.encode(X)), want) <= 1e-6
    assert off(model.features(X), model.encode(X)) <= 1e-6


def test_the_geometry_is_trained_through_another_method() -> None:
    model: Any = moved(Autoencoder())
    model.encode(X).pow(2).sum().backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None}
    assert "w" in trained
    assert any("ccrewrite" in n for n in trained)
    assert "v" not in trained


def test_a_method_called_in_place_of_forward_belongs_to_its_own_module() -> None:
    for how in ("auto", "observe"):
        plan = ccrewrite.plan(Encoder().eval(), X, how=how)
        assert [(s.name, s.module) for s in plan] == [("inner.w", "inner")]
    model: Any = moved(Encoder())
    assert off(model.inner.encode(X), model(X)) == 0


def test_computed_weights_and_layers_with_their_own_forward() -> None:
    model: Any = moved(Computed())
    assert off(model.encode(X).relu(), model(X)) == 0
    model = moved(nn.Sequential(Standardised(4, 4, 3, 2, 1)))
    assert off(model[0].before_bias(X) + model[0].bias.view(-1, 1, 1), model(X)) == 0


def test_reverted_methods_are_the_originals() -> None:
    original: Any = Autoencoder().eval()
    model: Any = ccrewrite.revert(moved(original))
    assert type(model) is Autoencoder
    assert torch.equal(model.features(X), original.features(X))


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return F.conv2d(x, w, stride=2, padding=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        of_input = conv2d_input(x.shape, w, grads[0], stride=2, padding=1)
        return of_input, conv2d_weight(x, w.shape, grads[0], stride=2, padding=1)


class Separate(torch.autograd.Function):
    """Without ``ctx`` in its forward."""

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> Tensor:
        return F.conv2d(x, w, stride=2, padding=1)

    setup_context = staticmethod(lambda ctx, inputs, output: ctx.save_for_backward(*inputs))
    backward = Own.backward


class Straight(torch.autograd.Function):
    """A straight-through estimator around a whole layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module) -> Tensor:
        return layer(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return F.interpolate(grads[0], scale_factor=2), None


class InFunction(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind
        self.w = nn.Parameter(torch.randn(4, 4, 3, 3) / 5)
        self.layer = nn.Conv2d(4, 4, 3, 2, 1)
        self.free = nn.Conv2d(4, 4, 3, 1, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.kind.apply(self.free(x), self.layer if self.kind is Straight else self.w)


class OwnLayer(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return Own.apply(x, self.weight)


@pytest.mark.parametrize("how", ["auto", "observe"])
@pytest.mark.parametrize(("kind", "name"), [(Own, "w"), (Separate, "w"), (Straight, "layer")])
def test_calls_in_autograd_functions_are_left_alone(kind: Any, name: str, how: Any) -> None:
    plan = ccrewrite.plan(InFunction(kind).eval(), X, how=how)
    assert plan[name].code == "autograd-function"
    assert kind.__name__ in plan[name].message
    assert plan["free"].decision.rewritten


def test_a_layer_that_calls_an_autograd_function_is_left_alone() -> None:
    with pytest.raises(SelectionError, match="1 autograd-function"):
        ccrewrite.rewrite(OwnLayer(4, 4, 3, 2, 1, bias=False), X)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_checkpointed_layers_are_rewritten() -> None:
    """Checkpoints are autograd functions too, but they run the layer again."""

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Conv2d(4, 4, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.c, x, use_reentrant=True)

    model = ccrewrite.rewrite(Checkpointed().eval(), X, how="observe").model
    model(X.clone().requires_grad_()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@fx.wrap
def whole(x: Tensor, w: Tensor) -> Tensor:
    return F.conv2d(x, w, stride=2, padding=1)


class Wrapped(nn.Module):
    def __init__(self, computed: bool) -> None:
        super().__init__()
        self.computed = computed
        self.w = nn.Parameter(torch.randn(4, 4, 3, 3) / 5)
        self.dilated = nn.Conv2d(4, 4, 3, 1, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return whole(self.dilated(x), self.w * 2 if self.computed else self.w)


@pytest.mark.parametrize("computed", [False, True])
def test_a_rewritten_model_whose_call_fx_would_hide_is_not_traced(computed: bool) -> None:
    model = moved(Wrapped(computed))
    with pytest.raises(InputError, match=r"fx can't trace this Wrapped.*the function whole"):
        fx.symbolic_trace(model)
    with pytest.raises(InputError, match="fx can't trace"):
        fx.symbolic_trace(fold(model, X).model)
    only = move_(ccrewrite.rewrite(Wrapped(computed).eval(), X, include="dilated").model)
    assert off(fx.symbolic_trace(only)(X), only(X)) <= 1e-6


@pytest.mark.parametrize("computed", [False, True])
def test_what_a_trace_holds_whole_is_left_alone(computed: bool) -> None:
    traced = fx.symbolic_trace(Wrapped(computed).eval())
    result = ccrewrite.rewrite(traced, X)
    assert [s.code for s in result.plan] == ["dilated-to-dcls", "wrapped-function"]
    assert result.check.ok
