"""Rules as users give them: for plain convolutions too, with reasons why not, and by patterns of site names."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import ccrewrite
from ccrewrite import DilatedToDcls, Rule, Sampling, StridedToCC, plan
from ccrewrite.errors import InputError, SelectionError, SelectionWarning
from ccrewrite.ir.sites import Plan, Site
from ccrewrite.nn import DclsSampling

X = torch.randn(1, 4, 33, 33, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict(
            {
                "down": nn.Conv2d(4, 4, 3, stride=2),
                "deep": nn.Conv2d(4, 4, 3, dilation=2, padding=2),
                "plain": nn.Conv2d(4, 4, 3, padding=1),
            }
        )
        self.depth = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4)
        self.pointwise = nn.Conv2d(4, 4, 1)
        self.head = nn.Conv2d(4, 4, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.encoder.values():
            x = layer(x)
        return self.head(self.pointwise(self.depth(x)))


@dataclass(frozen=True)
class PlainToDcls(Rule):
    """A stranger's: plain convolutions with more than one tap, not too many channels."""

    name: ClassVar[str] = "plain-to-dcls"
    channels: int = 8

    def takes(self, site: Site) -> bool:
        return site.kinds == ("plain",)

    def refuses(self, site: Site) -> str | None:
        if max(site.geometry.kernel_size) == 1:
            return "one tap has nowhere to go"
        found = site.geometry.in_channels
        return f"{found} channels, at most {self.channels}" if found > self.channels else None

    def sampling(self, site: Site, **factory: Any) -> Sampling:
        return DclsSampling.of(site.geometry, sharing="tap", **factory)


def codes(planned: Plan) -> dict[str, str]:
    return {site.name: site.code for site in planned}


def test_plain_convolutions_are_offered_to_every_rule() -> None:
    result: Any = ccrewrite.rewrite(Net(), X, rules=[PlainToDcls(), "strided-to-cc"])
    assert codes(result.plan) == {
        "encoder.down": "strided-to-cc",
        "encoder.deep": "no-rule",
        "encoder.plain": "plain-to-dcls",
        "depth": "no-rule",
        "pointwise": "refused",
        "head": "strided-to-cc",
    }
    assert result.check.ok
    assert isinstance(result.model.encoder["plain"].sampling, DclsSampling)
    assert result["pointwise"].message == "plain-to-dcls: one tap has nowhere to go"


def test_kinds_may_select_plain_convolutions() -> None:
    rules = [PlainToDcls(), DilatedToDcls()]
    chosen = plan(Net(), X, rules=rules, kinds=["plain"])
    assert [site.name for site in chosen.rewritten] == ["encoder.plain"]
    assert codes(chosen)["depth"] == "not-selected"
    assert codes(plan(Net(), X, kinds=["plain"]))["encoder.plain"] == "plain"
    with pytest.raises(SelectionError, match="nothing to rewrite: 6 sites: 0 rewritten; left alone: 4 not-selected, 2 plain"):
        ccrewrite.rewrite(Net(), X, kinds="plain")


def test_what_no_rule_wants_is_plain_as_before() -> None:
    assert codes(plan(Net(), X))["encoder.plain"] == "plain"
    assert codes(plan(Net(), X, rules=[PlainToDcls(exclude="encoder")]))["encoder.plain"] == "plain"  # pyright: ignore[reportArgumentType]
    assert codes(plan(Net(), X, rules=[PlainToDcls()], exclude="encoder"))["encoder.plain"] == "plain"


def test_a_refusal_has_its_values_and_the_next_rule_is_asked() -> None:
    planned = plan(Net(), X, rules=[PlainToDcls(channels=3)])
    assert planned["encoder.plain"].message == "plain-to-dcls: 4 channels, at most 3"
    both = plan(Net(), X, rules=[PlainToDcls(channels=3), PlainToDcls(channels=2)])
    assert both["encoder.plain"].message == "plain-to-dcls: 4 channels, at most 3; plain-to-dcls: 4 channels, at most 2"
    assert json.loads(both.to_json())["sites"][2]["decision"]["code"] == "refused"
    second = plan(Net(), X, rules=[PlainToDcls(channels=3), PlainToDcls()])
    assert second["encoder.plain"].decision.rewritten


def test_patterns_in_order() -> None:
    rules = {
        "encoder.down": None,
        "encoder": {"rule": "strided-to-cc", "reach": 0},
        "re:.*depth.*": DilatedToDcls(sharing="out"),
        "*": "strided-to-cc",
    }
    result: Any = ccrewrite.rewrite(Net(), X, rules=rules)
    assert codes(result.plan) == {
        "encoder.down": "not-selected",
        "encoder.deep": "no-rule",  # the first pattern counts, and its rule takes strided ones
        "encoder.plain": "plain",
        "depth": "dilated-to-dcls",
        "pointwise": "plain",
        "head": "strided-to-cc",
    }
    assert result["encoder.down"].message == "left alone by rules: encoder.down"
    assert result.model.depth.sampling.sharing == "out"
    assert result.model.head.sampling.margin == (2, 2)
    assert result.check.ok


def test_patterns_in_another_order() -> None:
    planned = plan(Net(), X, rules={"*": "strided-to-cc", "encoder.down": None, "depth": "dilated-to-dcls"})
    assert [site.name for site in planned.rewritten] == ["encoder.down", "head"]


def test_several_rules_for_a_pattern() -> None:
    planned = plan(Net(), X, rules={"encoder": ["strided-to-cc", DilatedToDcls(exclude="encoder.deep")], "head": []})  # pyright: ignore[reportArgumentType]
    assert [site.name for site in planned.rewritten] == ["encoder.down"]
    assert codes(planned)["head"] == "no-rule"


def test_patterns_of_a_toml_file() -> None:
    text = """
    [rules]
    "encoder.down" = "leave-alone"
    "encoder.*" = { rule = "dilated-to-dcls", reach = 1 }
    "head" = ["dilated-to-dcls", { rule = "strided-to-cc", basis = "linear" }]

    [rules."re:de.*"]
    rule = "dilated-to-dcls"
    sharing = "full"
    """
    planned = plan(Net(), X, rules=tomllib.loads(text)["rules"])
    assert [(site.name, site.code) for site in planned.rewritten] == [
        ("encoder.deep", "dilated-to-dcls"),
        ("depth", "dilated-to-dcls"),
        ("head", "strided-to-cc"),
    ]
    assert [rule.name for rule in planned.rules] == [
        "leave-alone",
        "dilated-to-dcls",
        "dilated-to-dcls",
        "strided-to-cc",
        "dilated-to-dcls",
    ]
    assert planned.rules[3] == StridedToCC(include=("head",), exclude=("encoder.down", "encoder.*"), basis="linear")


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"head": 3}, "a rule must be one of .*, its name, or a mapping with its options; found 3"),
        ({"head": {"reach": 1}}, "unknown rule None; the rules are .*leave-alone"),
        ({"head": "magic"}, "unknown rule 'magic'"),
        (
            {"head": StridedToCC(include="head")},  # pyright: ignore[reportArgumentType]
            r"rules\['head'\]: rule strided-to-cc is for what the pattern hits, found its",
        ),
        ({"re:(": None}, r"'re:\(' is no regular expression"),
        ({3: None}, r"rules takes names, globs or 're:...' of sites, .* found \(3,\)"),
        ([None], "a rule must be one of .* found None"),
    ],
)
def test_patterns_that_cannot_be(rules: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        plan(Net(), X, rules=rules)


@pytest.mark.parametrize("rules", [{"heda": "strided-to-cc", "*": None}, [StridedToCC(include=("head", "heda"))]])
def test_a_pattern_of_a_rule_that_hits_nothing_warns_at_the_users_line(rules: Any) -> None:
    with pytest.warns(SelectionWarning, match="'heda' hits no convolution") as caught:
        plan(Net(), X, rules=rules)
    assert [warning.filename for warning in caught] == [__file__]
