"""What sites cost once they have moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import InputError
from ccrewrite.families.sites import rewritten_sites
from ccrewrite.ir.capture import Inputs
from ccrewrite.lowering import costs
from ccrewrite.lowering.calls import SiteCall, site_calls
from ccrewrite.lowering.costs import moved_layer, plain_layer, random_input, site_costs

X = torch.randn(1, 4, 33, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Twice the same layer, one called twice, one that pads by itself, one transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(4, 4, 3, dilation=3, padding=3)
        self.second = nn.Conv1d(4, 4, 3, dilation=3, padding=3)
        self.again = nn.Conv1d(4, 4, 3, dilation=2, padding="same", groups=2)
        self.reflected = nn.Conv1d(4, 8, 5, stride=2, padding=2, padding_mode="reflect")
        self.up = nn.ConvTranspose1d(8, 2, 4, stride=2, padding=1, output_padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.reflected(self.again(self.again(self.second(self.first(x))))))


def sites() -> dict[str, SiteCall]:
    model = ccrewrite.rewrite(Net(), X).model
    known = rewritten_sites(model)
    return site_calls(model, Inputs.of(X), {name: site.sampling for name, site in known.items()})


def test_estimated() -> None:
    found = site_costs(ccrewrite.rewrite(Net(), X), X, how="estimated")
    assert [(name, cost.calls) for name, cost in found.items()] == [
        ("first", 1),
        ("second", 1),
        ("again", 2),
        ("reflected", 1),
        ("up", 1),
    ]
    assert all(cost.ratio > 1 and cost.how == "estimated" for cost in found.values())
    assert found["first"] == found["second"]


def test_measured_eagerly_once_for_equal_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def seconds_of(runs: Any, device: torch.device, effort: Any = None) -> dict[str, float]:
        for run in runs.values():
            run()
        asked.append(tuple(runs))
        return {"plain": 1.0, "moved": 3.0}

    monkeypatch.setattr(costs, "seconds_of", seconds_of)
    found = site_costs(ccrewrite.rewrite(Net(), X), X, mode="inference")
    assert len(asked) == 4
    assert {name: (cost.seconds, cost.plain_seconds) for name, cost in found.items() if name != "first"} == {
        "second": (3.0, 1.0),
        "again": (6.0, 2.0),
        "reflected": (3.0, 1.0),
        "up": (3.0, 1.0),
    }


@pytest.mark.parametrize("name", ["first", "again", "reflected", "up"])
def test_layers_are_like_the_sites_own(name: str) -> None:
    site = sites()[name]
    plain, moved, x = plain_layer(site), moved_layer(site), random_input(site)
    moved.load_state_dict(plain.state_dict(), strict=False)
    for parameter in moved.sampling.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(moved(x), plain(x), rtol=0, atol=1e-5)


def test_a_kernel_of_few_taps_is_compared_with_the_whole_one() -> None:
    x = torch.randn(1, 6, 20, 20)
    rules = [ccrewrite.LargeToDcls(elements=4)]
    large = ccrewrite.rewrite(nn.Conv2d(6, 6, 9, padding=4, groups=6), x, rules=rules, verify=False)
    (cost,) = site_costs(large, x, mode="inference").values()
    assert cost.form == "eager"
    assert min(cost.seconds, cost.plain_seconds) > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_lowered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCREWRITE_CACHE", str(tmp_path))
    model, x = ccrewrite.rewrite(nn.Conv1d(16, 16, 3, stride=2), X[:, :1].expand(1, 16, 33)), X[:, :1].expand(1, 16, 33)
    for mode in ("training", "inference"):
        first = site_costs(model, x, mode=mode, how="lowered")
        assert first["(root)"].ratio > 0
        again = site_costs(model, x, mode=mode, how="lowered")
        assert again["(root)"].seconds == first["(root)"].seconds


def test_nothing_rewritten() -> None:
    with pytest.raises(InputError, match="nothing in this Net was rewritten"):
        site_costs(Net(), X)
