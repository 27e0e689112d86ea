"""CC layers folded to filters and one product: the same numbers as with a dense kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ccrewrite
from ccrewrite.folded.filtered import FILTERED
from ccrewrite.passes.fold import alternatives, fold

CASES: dict[str, tuple[type[nn.Module], tuple[int, ...], dict[str, Any], tuple[int, ...]]] = {
    "strided": (nn.Conv2d, (24, 32, 3), {"stride": 2, "padding": 1}, (2, 24, 15, 14)),
    "pointwise": (nn.Conv2d, (24, 32, 1), {"stride": 2}, (2, 24, 15, 14)),
    "groups": (nn.Conv2d, (24, 32, 3), {"stride": (2, 3), "groups": 4, "padding": (0, 2)}, (1, 24, 15, 14)),
    "no bias, 1-d": (nn.Conv1d, (24, 32, 4), {"stride": 4, "bias": False}, (2, 24, 41)),
    "one plain axis": (nn.Conv2d, (24, 32, (3, 1)), {"stride": (2, 1), "padding": (1, 0)}, (2, 24, 15, 14)),  # pyright: ignore[reportAssignmentType]
    "volume": (nn.Conv3d, (8, 12, 2), {"stride": 2}, (1, 8, 8, 7, 6)),
    "unbatched": (nn.Conv2d, (24, 32, 2), {"stride": 2}, (24, 15, 14)),
    "transposed": (nn.ConvTranspose2d, (24, 16, 3), {"stride": 2, "padding": 1, "output_padding": 1}, (2, 24, 8, 7)),
    "transposed, 1-d": (nn.ConvTranspose1d, (24, 16, 8), {"stride": 4, "padding": 2}, (2, 24, 9)),
    "transposed volume": (nn.ConvTranspose3d, (8, 4, 2), {"stride": (2, 1, 2)}, (1, 8, 4, 5, 3)),
    "transposed, unbatched": (nn.ConvTranspose2d, (24, 16, 4), {"stride": 2, "bias": False}, (24, 8, 7)),
}


def rewritten(case: str, **options: Any) -> tuple[nn.Module, Tensor]:
    kind, arguments, named, shape = CASES[case]
    torch.manual_seed(0)
    conv, x = kind(*arguments, **named).double(), torch.randn(shape, dtype=torch.float64)
    rules = [ccrewrite.StridedToCC(**options), ccrewrite.TransposedToCC(**options)]
    model: Any = ccrewrite.rewrite(conv, x, rules=rules).model
    with torch.no_grad():
        for mover in model.sampling.movers():
            mover += 0.3 * torch.randn_like(mover)
    return model, x


@pytest.mark.parametrize("basis", ["cubic", "linear"])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_same_outputs(case: str, basis: str) -> None:
    model, x = rewritten(case, basis=basis)
    (offered,) = alternatives(model)["(root)"]
    assert offered.name == "filtered"
    folded = fold(model, x, forms={"(root)": "filtered"})
    dense = fold(model, x, forms={"(root)": "dense"})
    assert folded["(root)"].code == "filtered"
    assert folded.check.ok
    assert type(folded.model) is FILTERED[CASES[case][0]]
    torch.testing.assert_close(folded.model(x), model(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(folded.model(x), dense.model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_what_is_compiled_computes_the_same(case: str) -> None:
    model, x = rewritten(case)
    folded = fold(model, x, forms={"(root)": "filtered"}).model
    torch._dynamo.reset()
    traced = torch.compile(folded, backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_gradients_pass(case: str) -> None:
    """Of the input, and of the weights that folding left: a tap's weights are in a dense kernel's cells, times its factors."""
    model, x = rewritten(case)
    found: list[Tensor] = []
    for form in ("filtered", "dense"):
        given = x.clone().requires_grad_()
        out = fold(model, x, forms={"(root)": form}).model(given.sin())
        (gradient,) = torch.autograd.grad((out * out.detach().cos()).sum(), given)
        found.append(gradient)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    layer: Any = fold(model, x, forms={"(root)": "filtered"}).model
    slope = torch.ones_like(layer.weight)
    layer(x).square().sum().backward()
    with torch.no_grad():
        ends = []
        for step in (1e-5, -1e-5):
            layer.weight += step * slope
            ends.append(layer(x).square().sum())
            layer.weight -= step * slope
    torch.testing.assert_close(layer.weight.grad.sum(), (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_sharing_reach_and_shift_alone() -> None:
    for options in ({"sharing": "axis"}, {"reach": 0}, {"reach": 1}):
        model, x = rewritten("strided", **options)
        torch.testing.assert_close(fold(model, x, forms={"(root)": "filtered"}).model(x), model(x), rtol=1e-12, atol=1e-12)


def test_where_it_is_offered() -> None:
    def offered(conv: nn.Module, x: Tensor) -> list[str]:
        model: Any = ccrewrite.rewrite(conv, x).model
        with torch.no_grad():
            model.sampling.shift.fill_(0.2)
        return [a.name for of_site in alternatives(model).values() for a in of_site]

    x = torch.randn(1, 8, 12, 12)
    assert offered(nn.Conv2d(8, 8, 3, stride=2, groups=8), x) == [], "depthwise"
    assert offered(nn.ConvTranspose2d(8, 8, 3, stride=2, groups=2), x) == []
    assert offered(nn.Conv2d(8, 8, 3, stride=2, padding=1, padding_mode="circular"), x) == []
    assert offered(nn.Conv2d(8, 16, 3, stride=2), x) == ["filtered"]


@torch.no_grad()
def test_output_size_and_state() -> None:
    model, x = rewritten("transposed")
    folded = fold(model, x, forms={"(root)": "filtered"}).model
    for size in ([15, 13], [16, 14]):
        torch.testing.assert_close(folded(x, output_size=size), model(x, output_size=size), rtol=1e-12, atol=1e-12)
    other = fold(rewritten("transposed")[0], x, forms={"(root)": "filtered"}).model
    other.load_state_dict(folded.state_dict())
    assert torch.equal(other(x), folded(x))


def test_it_is_taken_where_it_pays() -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(256, 128, 1, stride=2), torch.randn(1, 256, 8, 8)
    model: Any = ccrewrite.rewrite(conv, x).model
    with torch.no_grad():
        model.sampling.shift.fill_(0.2)
    assert fold(model, x, forms="estimated")["(root)"].code == "filtered"
