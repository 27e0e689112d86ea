"""Every way to a rewritten convolution uses its geometry: whatever a method calls, wherever a callable is kept."""

from __future__ import annotations

import asyncio
import copy
import functools
import pickle
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from moved import move_
from torch import Tensor, nn
from torch.nn.functional import conv2d as other_name

import ccrewrite
from ccrewrite.passes.fold import fold

X = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(0))
CALL: dict[str, Any] = {"stride": 2, "padding": 1}


def elsewhere(x: Tensor, kernel: Tensor) -> Tensor:
    return other_name(x, kernel, **CALL)


def closed_over() -> Callable[..., Tensor]:
    function = F.conv2d
    return lambda x, kernel: function(x, kernel, **CALL)


class Base(nn.Module):
    """``encode`` is what each class does in its own way, and ``forward`` calls it."""

    encode: Callable[..., Tensor]

    def __init__(self, computed: bool = True) -> None:
        super().__init__()
        self.computed = computed
        self.w = nn.Parameter(torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(1)) / 5)
        self.keep_()

    def keep_(self) -> None:
        pass

    def kernel(self) -> Tensor:
        return self.w / 2 if self.computed else next(self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x).relu()


class Attribute(Base):
    def keep_(self) -> None:
        self.call = F.conv2d

    def encode(self, x: Tensor) -> Tensor:
        return self.call(x, self.kernel(), **CALL)


class PartialAttribute(Base):
    def keep_(self) -> None:
        self.call = functools.partial(F.conv2d, **CALL)

    def encode(self, x: Tensor) -> Tensor:
        return self.call(x, self.kernel())


class OtherName(Base):
    def encode(self, x: Tensor) -> Tensor:
        return other_name(x, self.kernel(), **CALL)


class Elsewhere(Base):
    def encode(self, x: Tensor) -> Tensor:
        return elsewhere(x, self.kernel())


class Closure(Base):
    def keep_(self) -> None:
        self.call = closed_over()

    def encode(self, x: Tensor) -> Tensor:
        return self.call(x, self.kernel())


class Static(Base):
    @staticmethod
    def up(x: Tensor, kernel: Tensor) -> Tensor:
        return other_name(x, kernel, **CALL)

    def encode(self, x: Tensor) -> Tensor:
        return self.up(x, self.kernel())


class Property(Base):
    @property
    def last(self) -> Tensor:
        return other_name(X, self.kernel(), **CALL)

    def encode(self, x: Tensor) -> Tensor:
        return self.last


class Super(OtherName):
    def encode(self, x: Tensor) -> Tensor:
        return super().encode(x)


class PartialMethod(Base):
    def _encode(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return other_name(x, self.kernel(), bias, **CALL)

    encode = functools.partialmethod(_encode, bias=None)  # pyright: ignore[reportAssignmentType]


class Dispatched(Base):
    @functools.singledispatchmethod
    def encode(self, x: Tensor) -> Tensor:
        return other_name(x, self.kernel(), **CALL)


class Steps(Base):
    def steps(self, x: Tensor) -> Iterator[Tensor]:
        yield other_name(x, self.kernel(), **CALL)
        yield x

    def forward(self, x: Tensor) -> Tensor:
        return next(self.steps(x)).relu()

    def encode(self, x: Tensor) -> Tensor:
        return x

    def from_outside(self) -> Callable[[Tensor], Tensor]:
        return lambda x: next(self.steps(x))


class Awaited(Base):
    async def wait(self, x: Tensor) -> Tensor:
        return other_name(x, self.kernel(), **CALL)

    def encode(self, x: Tensor) -> Tensor:
        return other_name(x, self.kernel(), **CALL)

    def from_outside(self) -> Callable[[Tensor], Tensor]:
        return lambda x: asyncio.run(self.wait(x))


class Called(Base):
    def __call__(self, x: Tensor) -> Tensor:
        return other_name(x, self.kernel(), **CALL).relu()

    def encode(self, x: Tensor) -> Tensor:
        return self(x)


class BoundPartial(Base):
    def keep_(self) -> None:
        self.encode = functools.partial(self._encode, bias=None)

    def _encode(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return other_name(x, self.kernel(), bias, **CALL)


def patch(self: Base, x: Tensor) -> Tensor:
    return other_name(x, self.kernel(), **CALL)


class Patched(Base):
    def keep_(self) -> None:
        self.encode = types.MethodType(patch, self)


class ByName(OtherName):
    """A dictionary of what it can do."""

    def keep_(self) -> None:
        self.can = {"encode": self.encode}

    def from_outside(self) -> Callable[[Tensor], Tensor]:
        return self.can["encode"]


class Around(nn.Module):
    """Keeps a method of a module inside as its own."""

    def __init__(self, computed: bool = True) -> None:
        super().__init__()
        self.inside = OtherName(computed)
        self.encode = self.inside.encode

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x)


class Compiled(Base):
    @torch.compile(backend="eager")
    def encode(self, x: Tensor) -> Tensor:
        return other_name(x, self.kernel(), **CALL)


class Lambda(Base):
    """A copy's lambda would go on with the original's weight."""

    def keep_(self) -> None:
        self.encode = lambda x: other_name(x, self.kernel(), **CALL)


METHODS = (Attribute, PartialAttribute, OtherName, Elsewhere, Closure, Static, Property, Super, PartialMethod, Dispatched)
LATER = (Steps, Awaited, Called, Compiled)
KEPT = (BoundPartial, Patched, ByName, Around)


def both(model: Any) -> tuple[Tensor, Tensor]:
    """From outside, and in its forward."""
    encode = model.from_outside() if hasattr(model, "from_outside") else model.encode
    with torch.no_grad():
        return encode(X).relu(), model(X)


@pytest.mark.parametrize("computed", [True, False])
@pytest.mark.parametrize("kind", [*METHODS, *LATER, *KEPT, Lambda])
def test_what_convolves_from_outside_uses_the_geometry(kind: Any, computed: bool) -> None:
    model: Any = kind(computed).eval()
    plain, _ = both(model)
    result = ccrewrite.rewrite_(model, X)
    assert len(result.plan.rewritten) == 1
    outside, inside = both(move_(model))
    assert torch.equal(outside, inside)
    assert not torch.allclose(outside, plain)
    ccrewrite.revert(model)
    assert torch.equal(both(model)[0], plain)


@pytest.mark.parametrize("how", ["copied", "pickled", "folded"])
@pytest.mark.parametrize("kind", [Attribute, PartialMethod, BoundPartial, ByName, Around])
def test_copies_keep_it(kind: Any, how: str) -> None:
    model: Any = move_(ccrewrite.rewrite(kind().eval(), X).model)
    want = model(X)
    if how == "folded":
        model = fold(model, X).model
    else:
        model = copy.deepcopy(model) if how == "copied" else pickle.loads(pickle.dumps(model))
    outside, inside = both(model)
    assert torch.equal(outside, inside)
    assert torch.allclose(inside, want, atol=1e-5)


def test_a_function_that_knows_nothing_of_the_model_stays_itself() -> None:
    model: Any = Attribute().eval()
    model.activation = F.relu
    ccrewrite.rewrite_(model, X)
    assert model.activation is F.relu
    assert model.call is F.conv2d


def test_a_generator_is_left_and_entered_as_it_was() -> None:
    """Between its steps nothing of the caller's is rerouted; what is sent or thrown into it arrives."""

    class Talks(Base):
        def steps(self, x: Tensor) -> Iterator[Any]:
            try:
                scale = yield other_name(x, self.kernel(), **CALL)
                yield other_name(x, self.kernel(), **CALL) * scale
            except KeyError as error:
                yield str(error)

        def forward(self, x: Tensor) -> Tensor:
            return next(self.steps(x))  # pyright: ignore[reportArgumentType]

    model: Any = move_(ccrewrite.rewrite(Talks().eval(), X).model)
    steps = model.steps(X)
    first = next(steps)
    plain = other_name(X, model.kernel(), **CALL)
    assert not torch.allclose(first, plain)
    assert torch.equal(steps.send(2.0), 2 * first)
    assert steps.throw(KeyError("k")) == "'k'"
    steps.close()


class Twice(nn.Conv2d):
    """torch's own forward, and another method that convolves."""

    def again(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class PaddedByHand(nn.Conv2d):
    def again(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.weight, self.bias, 2)


class Cast(nn.Conv2d):
    def again(self, x: Tensor) -> Tensor:
        call = functools.partial(F.conv2d, stride=2, padding=1)
        return call(x, self.weight.to(x.dtype), self.bias)


class CalledItself(nn.Conv2d):
    def __call__(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, 2, 1)

    again = __call__


LAYERS = (Twice, PaddedByHand, Cast, CalledItself)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_another_method_of_a_layer_uses_its_geometry(kind: Any, normed: bool) -> None:
    mode = "reflect" if kind is PaddedByHand else "zeros"
    layer = kind(4, 4, 3, stride=2, padding=1, padding_mode=mode)
    if normed:
        layer = nn.utils.parametrizations.weight_norm(layer)
    model: Any = move_(ccrewrite.rewrite(nn.Sequential(layer).eval(), X).model)
    assert torch.equal(model[0].again(X), model(X))
    loaded: Any = fold(model, X).model
    assert torch.allclose(loaded[0].again(X), model(X), atol=1e-5)


def test_another_method_of_a_loaded_layer_uses_its_geometry(tmp_path: Any) -> None:
    original = nn.Sequential(*(kind(4, 4, 3, stride=1, padding=2, dilation=2) for kind in (Bare, Widened))).eval()
    result = ccrewrite.rewrite(original, X)
    move_(result.model)
    ccrewrite.save(result, tmp_path)
    loaded: Any = ccrewrite.load(original, tmp_path)
    for i in range(2):
        assert torch.equal(loaded[i].again(X), loaded[i](X))


class Bare(nn.Conv2d):
    def again(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, 1, 2, 2)


class Widened(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self.again(x)

    def again(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * 2, self.bias, 1, 2, 2)


class Tool:
    def __init__(self, weight: Any) -> None:
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, **CALL)

    def given(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, **CALL)


class Owner(Base):
    def keep_(self) -> None:
        self.tool = Tool(self.w)

    def encode(self, x: Tensor) -> Tensor:
        return self.tool(x)


class Given(Base):
    def keep_(self) -> None:
        self.tool = Tool(None)

    def encode(self, x: Tensor) -> Tensor:
        return self.tool.given(x, self.w)


class Counting:
    """A mixin that is no module, around the model's own."""

    def encode(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel(), **CALL)  # pyright: ignore[reportAttributeAccessIssue]


class Mixed(Counting, Base):
    pass


def test_objects_that_hold_weights_are_refused_others_are_not() -> None:
    assert [s.code for s in ccrewrite.plan(Owner().eval(), X)] == ["other-object"]
    assert [s.code for s in ccrewrite.plan(Given().eval(), X)] == ["strided-to-cc"]
    assert [s.code for s in ccrewrite.plan(Mixed().eval(), X)] == ["strided-to-cc"]
    plan = ccrewrite.plan(Owner().eval(), X, how="observe")
    assert "Tool" in plan[0].message
