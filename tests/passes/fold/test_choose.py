"""``fold(forms="measured")``: what is timed, and that the fastest is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import InputError
from ccrewrite.passes.fold import choose, fold

X = torch.randn(2, 8, 21, 19, generator=torch.Generator().manual_seed(0))
Runs = Mapping[str, Callable[[], Tensor]]


class Net(nn.Module):
    """Sites that have a choice: two that are alike and one of another kind, and one whose kernel is the only form."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 8, 3, dilation=2, padding=2)
        self.second = nn.Conv2d(8, 8, 3, dilation=2, padding=2)
        self.down = nn.Conv2d(8, 6, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, stride=2, groups=6)

    def forward(self, x: Tensor) -> Tensor:
        return self.depthwise(self.down(input=self.second(self.first(x))))


def moved() -> Any:
    model = ccrewrite.rewrite(Net(), X).model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("offset", "shift")):
                parameter.fill_(0.3)
    return model


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> tuple[list[tuple[str, ...]], dict[str, float]]:
    """What is timed, and what a clock says that the tests set: seconds by form."""
    asked: list[tuple[str, ...]] = []
    clock: dict[str, float] = {}

    def seconds_of(runs: Runs, device: torch.device) -> dict[str, float]:
        asked.append(tuple(runs))
        first, *others = (run() for run in runs.values())
        for other in others:
            torch.testing.assert_close(other, first, rtol=1e-4, atol=1e-5)
        return {form: clock[form] for form in runs}

    monkeypatch.setattr(choose, "seconds_of", seconds_of)
    monkeypatch.setattr(choose, "WORTH_MEASURING", 1e9)
    return asked, clock


@pytest.mark.parametrize("fastest", ["dense", "other"])
def test_the_fastest_is_taken(timed: tuple[list[tuple[str, ...]], dict[str, float]], fastest: str) -> None:
    asked, clock = timed
    clock |= (
        {"dense": 1.0, "shifted": 0.5, "filtered": 0.5} if fastest == "other" else dict.fromkeys(("shifted", "filtered"), 1.5)
    )
    clock.setdefault("dense", 1.0)
    model = moved()
    folded = fold(model, X, forms="measured")
    assert folded.check.ok
    codes = [site.code for site in folded]
    assert codes[:3] == (["convolution"] * 2 + ["padded"] if fastest == "dense" else ["shifted", "shifted", "filtered"])
    assert asked == [("dense", "shifted"), ("dense", "filtered")], (
        "layers that are alike are timed once, those without a choice never"
    )
    assert folded["first"].milliseconds == folded["second"].milliseconds == {"dense": 1e3, "shifted": 1e3 * clock["shifted"]}
    assert folded["depthwise"].milliseconds == {}
    torch.testing.assert_close(folded.model(X), model(X), rtol=1e-4, atol=1e-5)


def test_what_is_as_fast_stays_a_plain_layer(timed: tuple[list[tuple[str, ...]], dict[str, float]]) -> None:
    timed[1].update(dense=1.0, shifted=0.98, filtered=0.98)
    assert [site.code for site in fold(moved(), X)][:3] == ["convolution", "convolution", "padded"]


def test_what_is_named_or_left_out_is_not_timed(timed: tuple[list[tuple[str, ...]], dict[str, float]]) -> None:
    asked, clock = timed
    clock.update(dense=1.0, shifted=0.5, filtered=0.5)
    folded = fold(moved(), X, forms={"first": "dense", "second": "dense"})
    assert [site.code for site in folded][:3] == ["convolution", "convolution", "filtered"]
    folded = fold(moved(), X, include="down")
    assert [site.code for site in folded][:3] == ["not-selected", "not-selected", "filtered"]
    assert asked == [("dense", "filtered")] * 2
    fold(moved(), X, forms="estimated")
    assert len(asked) == 2


def test_forms_that_are_estimated_to_be_far_off_are_not_built() -> None:
    """A dense kernel of 1,000 x 1,000 cells."""
    layer = ccrewrite.nn.DclsConv2d(8, 8, 3, dilation=512, padding=512)
    nn.init.constant_(layer.sampling.offset, 0.5)
    folded = fold(layer, torch.randn(1, 8, 24, 24))
    assert (folded[0].code, folded[0].milliseconds) == ("shifted", {})


def test_hooks_and_random_states_are_left_alone() -> None:
    model, calls = moved(), []
    model.down.register_forward_hook(lambda module, args, out: calls.append(tuple(args[0].shape) if args else ()))
    state = torch.get_rng_state()
    assert fold(model, X)["down"].milliseconds
    assert torch.equal(torch.get_rng_state(), state)
    assert all(shape in ((), (2, 8, 21, 19)) for shape in calls)


def test_unknown() -> None:
    with pytest.raises(InputError, match="forms must be 'measured' or 'estimated' or name the form of a site; found 'fastest'"):
        fold(moved(), X, forms="fastest")  # pyright: ignore[reportArgumentType]
