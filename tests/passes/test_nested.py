"""Calls in the nested bodies of exported graphs: all are listed; regions are rewritten, branches and loops left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from moved import move_, worst
from torch import Tensor, nn

import ccrewrite
from ccrewrite.ir.capture import capture
from ccrewrite.passes.fold import fold

X = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(0))


class Region(nn.Module):
    """Half of it runs in a region: a layer, a norm, a functional call on a weight that is cast, and another region."""

    def __init__(self, region: Callable[[], Any], inner: Callable[[], Any] = torch.no_grad) -> None:
        super().__init__()
        self.region, self.inner = region, inner
        self.a = nn.Conv2d(4, 4, 3, 2, 1)
        self.b = nn.Conv2d(4, 4, 3, 1, 2, 2)
        self.norm = nn.BatchNorm2d(4)
        self.w = nn.Parameter(torch.randn(4, 4, 3, 3) / 6)
        self.v = nn.Parameter(torch.randn(4, 4, 3, 3) / 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        with self.region():
            y = self.norm(self.b(x)) + F.conv2d(x, self.w.to(x.dtype), padding=2, dilation=2)
            with self.inner():
                y = y + F.conv2d(x, self.v, padding=3, dilation=3)
        return y


REGIONS: dict[str, tuple[Any, ...]] = {
    "bfloat16": (lambda: torch.autocast("cpu", dtype=torch.bfloat16),),
    "autocast off": (lambda: torch.autocast("cpu", enabled=False),),
    "gradients": (torch.enable_grad,),
    "nested": (torch.enable_grad, lambda: torch.autocast("cpu", enabled=False)),
    "alternating": (torch.enable_grad, torch.no_grad),
}


@pytest.mark.parametrize("name", REGIONS)
def test_export_and_observation_agree_in_regions(name: str) -> None:
    model = Region(*REGIONS[name]).eval()
    shown, seen = capture(model, X, how="export"), capture(model, X, how="observe")
    assert shown.note == ""
    assert [(c.module, c.weight) for c in seen.calls] == [("a", "a.weight"), ("b", "b.weight"), ("", "w"), ("", "v")]
    assert shown.calls == seen.calls


@pytest.mark.parametrize("name", REGIONS)
def test_regions_are_rewritten_moved_and_folded(name: str) -> None:
    model = Region(*REGIONS[name]).eval()
    result = ccrewrite.rewrite(model, X)
    assert [s.name for s in result.plan.rewritten] == ["a", "b", "w", "v"]
    assert result.check.ok
    assert worst(model, result.model, X) == 0
    moved = move_(result.model)
    folded = fold(moved, X, batch_norm=True)
    assert all(site.folded for site in folded)
    assert [n.code for n in folded.norms] in (["folded"], ["verification-failed"])  # the latter where bfloat16 rounds otherwise
    if name != "bfloat16":
        assert [n.code for n in folded.norms] == ["folded"]
        assert worst(moved, folded.model, X) <= 1e-5


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(4, 4, 3, 2, 1)
        self.d = nn.Conv2d(4, 4, 3, 1, 2, 2)
        self.w = nn.Parameter(torch.randn(4, 4, 3, 3) / 6)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(self.d(x), self.w, padding=2, dilation=2)
        return torch.cond(x.sum() > 0, lambda x: self.norm(self.c(x)), lambda x: F.conv2d(x, self.w, stride=2, padding=1), (x,))


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(4, 4, 3, 1, 2, 2)
        self.d = nn.Conv2d(4, 4, 3, 1, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        def step(i: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            return i + 1, self.c(x).clone()

        return torch.while_loop(lambda i, x: i < 2, step, (torch.tensor(0), self.d(x)))[1]


def test_branches_and_loops_are_left_alone_and_say_so() -> None:
    plan = ccrewrite.plan(Branches().eval(), X)
    # `w` is called outside as well, but whatever took that call would be asked for the other one too.
    assert {s.name: s.code for s in plan} == {
        "d": "dilated-to-dcls",
        "w": "control-flow",
        "c": "control-flow",
        "w#2": "control-flow",
    }
    assert plan["c"].message == "a branch or loop of torch.cond makes this call"
    plan = ccrewrite.plan(Loop().eval(), X)
    assert {s.name: s.code for s in plan} == {"d": "dilated-to-dcls", "c": "control-flow"}
    assert "torch.while_loop" in plan["c"].message


def test_a_model_with_a_branch_is_rewritten_elsewhere() -> None:
    model = Branches().eval()
    result = ccrewrite.rewrite(model, X)
    assert [s.name for s in result.plan.rewritten] == ["d"]
    assert result.check.ok
    folded = fold(move_(result.model), X, batch_norm=True)
    assert folded["d"].code == "convolution"
    assert [n.code for n in folded.norms] == ["control-flow"]


def test_an_observed_run_says_what_hides_calls() -> None:
    assert ccrewrite.plan(Branches().eval(), X, how="observe")["c"].code == "control-flow"
    program = capture(Branches().eval(), X, how="observe")
    assert program.note == "what torch.cond runs is hidden from the observed run"


class Twofold(nn.Module):
    """Another model where it is exported than where it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if torch.compiler.is_compiling() else self.b(self.a(x))


def test_where_export_shows_other_calls_the_run_counts() -> None:
    plan = ccrewrite.plan(Twofold().eval(), X)
    assert [s.name for s in plan.rewritten] == ["a", "b"]
    assert plan.how == "observed"
    assert plan.note.startswith("torch.export shows 1 convolution, the run itself makes 2 convolutions")
    forced = ccrewrite.plan(Twofold().eval(), X, how="export")
    assert [s.code for s in forced] == ["strided-to-cc", "never-called"]
    assert "listed are those of torch.export" in forced.note
