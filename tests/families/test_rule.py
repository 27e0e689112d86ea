"""Rules check their options when they are made."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import pytest
from torch import nn

from ccrewrite import DilatedToDcls, LargeToDcls, Rule, StridedToCC, TransposedToCC
from ccrewrite.errors import InputError
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.nn import CCSampling, DclsConv2d, DclsSampling

STRIDED = ConvGeometry.from_module(nn.Conv2d(4, 4, 3, stride=2))

DCLS = [
    ({"sharing": "typo"}, "sharing must be one of 'auto', 'tap', 'group', 'out', 'in', 'full', found 'typo'"),
    ({"sharing": None}, "sharing must be one of .* found None"),
    ({"reach": "1"}, "reach must be an integer, found '1'"),
    ({"reach": 0.5}, "reach must be an integer, found 0.5"),
    ({"reach": True}, "reach must be an integer, found True"),
    ({"reach": -1}, "reach must be at least 0 samples, found -1"),
]
CC = [
    ({"kernel": "net"}, "kernel must be one of 'nodes', 'mlp', found 'net'"),
    ({"basis": "spline"}, "basis must be one of 'linear', 'cubic', found 'spline'"),
    ({"alignment": "corners"}, "alignment must be one of 'native', 'centred', found 'corners'"),
    ({"hidden": "16"}, "hidden must be an integer or None, found '16'"),
    ({"hidden": 0}, "hidden must be at least 1, found 0"),
    ({"reach": 3}, "reach must be 0 to 2 samples for kernel 'nodes', found 3"),
    ({"reach": -1}, "reach must be 0 to 2 samples for kernel 'nodes', found -1"),
    ({"kernel": "mlp", "reach": 1}, "reach must be 0 to 0 samples for kernel 'mlp', found 1"),
]


@pytest.mark.parametrize(("options", "says"), DCLS)
def test_dcls(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=f"rule dilated-to-dcls: {says}"):
        DilatedToDcls(**options)
    with pytest.raises(InputError, match=f"DclsSampling: {says}"):
        DclsSampling(STRIDED, **options)


@pytest.mark.parametrize(("options", "says"), CC)
def test_cc(options: dict[str, Any], says: str) -> None:
    for rule in (StridedToCC, TransposedToCC):
        with pytest.raises(InputError, match=f"rule {rule.name}: {says}"):
            rule(**options)
    with pytest.raises(InputError, match=f"CCSampling: {says}"):
        CCSampling(STRIDED, **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"elements": 2.5}, "elements must be an integer or None"),
        ({"elements": 3, "interpolation": "cubic"}, "interpolation must be one of 'linear', 'gaussian', 'triangle'"),
        ({"elements": 3, "sharing": "out"}, "sharing must be one of 'auto', 'tap', 'full', found 'out'"),
        ({"budget": "half"}, "budget must be a number or None"),
    ],
)
def test_large_to_dcls(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=f"rule large-to-dcls: {says}"):
        LargeToDcls(**options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"interpolation": "cubic"}, "DclsSampling: interpolation must be one of"),
        ({"axes": 1}, "DclsSampling: axes must be a sequence or None"),
        ({"width": "1", "interpolation": "gaussian"}, "DclsSampling: width must be a number or None"),
        ({"position_init": "grid"}, "DclsSampling: position_init must be one of 'normal', 'uniform'"),
        ({"weight_init": "zeros"}, "DclsConv2d: weight_init must be one of 'kaiming', 'trunc_normal', found 'zeros'"),
    ],
)
def test_layers_from_scratch(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        DclsConv2d(4, 4, 3, dilation=2, **options)


def test_lists_become_tuples_and_one_pattern_a_tuple_of_it() -> None:
    @dataclass(frozen=True)
    class Weighted(DilatedToDcls):
        name: ClassVar[str] = "weighted"
        weights: tuple[float, ...] = (1.0,)

    rule = Weighted(include="a", exclude=["b", "re:c"], weights=[1, 2.5])  # type: ignore[arg-type]
    assert (rule.include, rule.exclude, rule.weights) == (("a",), ("b", "re:c"), (1, 2.5))
    with pytest.raises(InputError, match="rule weighted: weights must be a tuple of a number, found"):
        Weighted(weights=["heavy"])  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_patterns(option: str) -> None:
    for value in (None, 3, [3]):
        with pytest.raises(InputError, match=f"rule strided-to-cc: {option} takes names, globs"):
            StridedToCC(**{option: value})  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"'re:\(' is no regular expression"):
        StridedToCC(**{option: "re:("})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("rule", [DilatedToDcls, StridedToCC])
def test_the_page_lists_the_options(rule: type[Rule]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "choosing.md").read_text()
    (row,) = (line for line in page.splitlines() if f"`{rule.name}` |" in line)
    options = ", ".join(f"`{field.name}`" for field in fields(rule) if field.name not in ("include", "exclude"))
    assert row.endswith(f"| {options} |")


def test_rules_are_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Rule()  # type: ignore[abstract]
