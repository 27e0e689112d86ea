"""Comparing outputs: of any structure, discrete ones as such, and what is not finite."""

from __future__ import annotations

import math
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import ccrewrite
from ccrewrite import verify
from ccrewrite.errors import ModelRunError
from ccrewrite.passes.verify import compare_outputs, culprits, leaves

X = torch.randn(1, 2, 9, generator=torch.Generator().manual_seed(0))


@dataclass
class Boxes:
    scores: Tensor
    labels: list[Tensor]
    meta: Any = None


class Pair(NamedTuple):
    first: Tensor
    second: Any


Old = namedtuple("Old", "low high")


class Holder:
    """An object like a ModelOutput or a BatchEncoding."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self.myself = self


class Returns(nn.Module):
    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.conv, self.wrap = nn.Conv1d(2, 2, 3, dilation=2), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.conv(x))


@pytest.mark.parametrize(
    ("wrap", "paths"),
    [
        (lambda t: t, ["output"]),
        (lambda t: (t, [t + 1, {"deep": (t,)}]), ["output[0]", "output[1][0]", "output[1][1]['deep'][0]"]),
        (lambda t: {"a": t, 3: t}, ["output['a']", "output[3]"]),
        (lambda t: OrderedDict(b=t, a=t), ["output['b']", "output['a']"]),
        (lambda t: Boxes(t, [t, t]), ["output.scores", "output.labels[0]", "output.labels[1]"]),
        (lambda t: Pair(t, Old(t, t)), ["output.first", "output.second.low", "output.second.high"]),
        (lambda t: Holder(t), ["output.value"]),
        (lambda t: (t, None, 3, "text", True), ["output[0]"]),
        (lambda t: (t, (), {}, []), ["output[0]"]),
        (lambda t: t.unbind(), ["output[0]"]),
    ],
)
def test_structures(wrap: Any, paths: list[str]) -> None:
    model = Returns(wrap)
    for how in ("auto", "observe"):
        result = ccrewrite.rewrite(model, X, how=how)
        assert result.check.ran
        assert result.check.ok
        assert [o.path for o in result.check.outputs] == paths
        assert result.plan["conv"].decision.rewritten


@pytest.mark.parametrize("wrap", [lambda t: {"deep": [Boxes(t, [])]}, Holder, lambda t: Pair(t * 0, Old(None, t))])
def test_a_difference_anywhere_is_found(wrap: Any) -> None:
    class Tampers(Returns):
        def forward(self, x: Tensor) -> Any:
            return self.wrap(self.conv(x) + (type(self.conv) is not nn.Conv1d))

    result = ccrewrite.rewrite(Tampers(wrap), X)
    assert result.plan["conv"].decision.code == "verification-failed"
    assert "changed by" in result.plan["conv"].decision.message


class Quantizes(nn.Module):
    """A codebook: integer codes, which flip where the distance to two entries is nearly the same."""

    def __init__(self, tamper: float) -> None:
        super().__init__()
        self.conv, self.tamper = nn.Conv1d(2, 2, 3, dilation=2), tamper

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(x) + self.tamper * (type(self.conv) is not nn.Conv1d)
        return (x * 10).round().long(), x > 0


def test_discrete_outputs_are_compared_as_such() -> None:
    check = ccrewrite.rewrite(Quantizes(0), X).check
    assert [(o.dtype, o.flips, o.ok) for o in check.outputs] == [("int64", 0, True), ("bool", 0, True)]


def test_a_flip_is_explained_and_not_hidden() -> None:
    result = ccrewrite.rewrite(Quantizes(0.3), X)
    decision = result.plan["conv"].decision
    assert decision.code == "verification-failed"
    assert "of 10 values flipped" in decision.message
    codes = torch.tensor([1, 2, 3])
    (check,) = compare_outputs({"codes": codes}, {"codes": torch.tensor([1, 5, 3])})
    assert (check.flips, check.ok, check.max_abs_error) == (1, False, 3.0)
    assert check.note == "1 of 3 values flipped: rounding upstream of a discrete choice"


def compare(before: Any, after: Any) -> Any:
    (check,) = compare_outputs({"output": before}, {"output": after})
    return check


def test_errors_are_relative_to_the_outputs_largest_magnitude() -> None:
    check = compare(torch.tensor([100.0, 0.0]), torch.tensor([100.0, 1e-4]))
    assert (round(check.max_abs_error, 9), check.ok) == (1e-4, True)
    assert math.isclose(check.max_rel_error, 1e-6, rel_tol=1e-5)
    assert not compare(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1e-4])).ok


@pytest.mark.parametrize(
    ("dtype", "error", "ok"),
    [
        (torch.float64, 1e-13, True),
        (torch.float64, 1e-11, False),
        (torch.float32, 1e-6, True),
        (torch.float32, 1e-4, False),
        (torch.bfloat16, 1e-2, True),
        (torch.bfloat16, 1e-1, False),
        (torch.float16, 1e-3, True),
        (torch.float16, 1e-2, False),
        (torch.complex64, 1e-6, True),
        (torch.complex64, 1e-4, False),
        (torch.complex128, 1e-11, False),
    ],
)
def test_tolerances(dtype: torch.dtype, error: float, ok: bool) -> None:
    before = torch.ones(3, dtype=dtype)
    assert compare(before, before + error).ok is ok


def test_what_is_not_finite() -> None:
    inf, nan = float("inf"), float("nan")
    odd = torch.tensor([inf, -inf, nan, 1.0])
    assert compare(odd, odd.clone()).ok
    for other in (
        [inf, -inf, 0.0, 1.0],
        [inf, inf, nan, 1.0],
        [1.0, -inf, nan, 1.0],
        [inf, -inf, nan, nan],
        [inf, -inf, nan, inf],
    ):
        assert not compare(odd, torch.tensor(other)).ok
    assert not compare(torch.tensor([1.0]), torch.tensor([nan])).ok


def test_zeros_and_empty_outputs() -> None:
    assert compare(torch.zeros(3), torch.zeros(3)).ok
    assert not compare(torch.zeros(3), torch.full((3,), 1e-3)).ok
    assert compare(torch.zeros(0, 3), torch.zeros(0, 3)).ok


def test_other_shapes_types_and_values() -> None:
    assert "(3,) torch.float32 became (4,) torch.float32" in compare(torch.zeros(3), torch.zeros(4)).note
    assert "became (3,) torch.float64" in compare(torch.zeros(3), torch.zeros(3).double()).note
    assert "0.5 became 0.25" in compare(0.5, 0.25).note
    assert "None" in compare(torch.zeros(3), None).note
    assert not compare(1, True).ok
    assert compare_outputs({"output": "same"}, {"output": "same"}) == ()
    assert [c.path for c in compare_outputs({"a": 1}, {"b": 1})] == ["a", "b"]


def test_cycles_end() -> None:
    value: list[Any] = [torch.zeros(1)]
    value.append({"again": value})
    assert [path for path, _ in leaves(value, "x")] == ["x[0]"]


def test_one_tensor_twice_is_compared_twice() -> None:
    shared = torch.zeros(1)
    assert [path for path, _ in leaves([shared, [shared]], "x")] == ["x[0]", "x[1][0]"]


def test_two_models_by_hand() -> None:
    a, b = nn.Conv1d(2, 2, 3), nn.Conv1d(2, 2, 3)
    assert not verify(a, b, X).ok
    b.load_state_dict(a.state_dict())
    assert verify(a, b, X).ok
    assert "outputs DIFFER" in str(verify(a, nn.Conv1d(2, 2, 3), X))
    with torch.no_grad():
        layer: Any = ccrewrite.nn.DclsConv1d.from_conv(nn.Conv1d(2, 2, 3, dilation=2))
        original = nn.Conv1d(2, 2, 3, dilation=2)
        original.load_state_dict(layer.state_dict(), strict=False)
        assert verify(original, layer, X).ok
        layer.sampling.offset.add_(0.5)
        check = verify(original, layer, X)
    assert (check.ok, check.max_abs_error > 0.01) == (False, True)


def test_models_are_compared_in_evaluation_mode_and_left_in_theirs() -> None:
    model: Any = nn.Sequential(nn.Conv1d(2, 2, 3), nn.BatchNorm1d(2), nn.Dropout()).train()
    assert verify(model, model, X).ok
    assert all(m.training for m in model.modules())
    assert torch.equal(model[1].running_mean, torch.zeros(2))


def test_verifying_on_inputs_that_a_model_refuses() -> None:
    with pytest.raises(ModelRunError, match="raised RuntimeError on the example inputs"):
        verify(nn.Conv1d(2, 2, 3), nn.Conv1d(2, 2, 3), torch.zeros(1, 3, 9))


@pytest.mark.parametrize("bad", [set(), {0}, {7}, {3, 4}, {0, 5, 7}, set(range(8))])
def test_the_search_finds_the_culprits(bad: set[int]) -> None:
    names = [str(i) for i in range(8)]
    runs: list[int] = []

    def passes(some: Any) -> bool:
        runs.append(len(some))
        return not {int(n) for n in some} & bad

    assert {int(n) for n in culprits(names, passes)} == bad
    assert len(runs) <= 1 + 2 * 3 * max(1, len(bad))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_differences_of_every_dtype_and_of_what_is_not_finite(dtype: torch.dtype) -> None:
    before = torch.tensor([1.0, 2.0, 4.0, math.inf, math.nan]).to(dtype)
    after = before.clone()
    after[0] += 0.5
    (found,) = compare_outputs({"output": before}, {"output": after})
    assert (found.max_abs_error, found.max_rel_error, found.ok) == (0.5, 0.125, False)
    (same,) = compare_outputs({"output": before}, {"output": before.clone()})
    assert (same.max_abs_error, same.ok) == (0.0, True)
    after[2] = math.nan
    (lost,) = compare_outputs({"output": before}, {"output": after})
    assert not lost.ok
