"""What a DCLS layer can be folded to besides a dense kernel, and when that is taken unasked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ccrewrite.errors import InputError
from ccrewrite.nn import DclsConv2d
from ccrewrite.passes.fold import alternatives, fold


def moved(channels: int = 8, by: float = 0.5, **options: Any) -> Any:
    layer = DclsConv2d(channels, 8, 3, **{"dilation": 4, **options})
    nn.init.constant_(layer.sampling.offset, by)
    return layer


def names(layer: nn.Module) -> list[str]:
    return [a.name for a in alternatives(layer).get("(root)", ())]


@pytest.mark.parametrize(
    ("options", "offered"),
    [
        ({}, ["shifted"]),
        ({"stride": 2}, ["shifted"]),
        ({"sharing": "out"}, ["gathered"]),
        ({"sharing": "in"}, []),
        ({"sharing": "full"}, []),
        ({"interpolation": "gaussian"}, []),
        ({"interpolation": "gaussian", "sharing": "out"}, []),
        ({"padding": 4, "padding_mode": "circular"}, ["shifted"]),
        ({"padding": 4, "padding_mode": "circular", "reach": 1}, []),
        ({"groups": 4}, []),
        ({"groups": 8}, ["sparse"]),
        ({"groups": 8, "interpolation": "gaussian"}, ["sparse"]),
        ({"groups": 8, "stride": 2}, []),
    ],
)
def test_which_layers_have_a_choice(options: dict[str, Any], offered: list[str]) -> None:
    assert names(moved(**options)) == offered


def test_no_choice_where_nothing_moved_or_the_class_is_somebody_elses() -> None:
    class Own(nn.Conv2d):
        pass

    assert names(moved(by=0.0)) == []
    for kind, offered in ((nn.Conv2d, ["shifted"]), (Own, [])):
        layer = DclsConv2d.from_conv(nn.Conv2d(256, 8, 3, dilation=12))
        if kind is Own:
            from ccrewrite import rewrite

            layer = rewrite(Own(256, 8, 3, dilation=12), torch.randn(1, 256, 26, 26)).model
        nn.init.constant_(layer.sampling.offset, 0.5)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
        assert names(layer) == offered
        result = fold(layer, torch.randn(1, 256, 26, 26), forms="estimated")
        assert (result["(root)"].code, result.check.ok) == (offered[0] if offered else "convolution", True)
        assert isinstance(result.model, kind)


def test_what_is_said_of_a_choice() -> None:
    (other,) = alternatives(moved(groups=8))["(root)"]
    assert (other.name, other.kernel, other.samples) == ("sparse", (9, 9), 25)
    assert other.cost_of_dense == 81 / 25
    (other,) = alternatives(moved())["(root)"]
    assert (other.name, other.kernel, other.samples) == ("shifted", (9, 9), 25)
    layer = moved(by=0.0, dilation=6, sharing="out")
    nn.init.uniform_(layer.sampling.offset, -1.5, 1.5)
    (other,) = alternatives(layer)["(root)"]
    assert (other.name, other.kernel) == ("gathered", (13, 13))
    assert 9 < other.samples <= 36


def test_a_form_that_a_site_lacks() -> None:
    with pytest.raises(InputError, match=r"can't be folded to 'shifted'.*\(root\) \(sparse or dense\)"):
        fold(moved(groups=8), torch.randn(1, 8, 21, 21), forms={"(root)": "shifted"})


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"channels": 256, "dilation": 12, "sharing": "out"}, "gathered"),
        ({"channels": 256, "dilation": 2, "sharing": "out"}, "convolution"),
        ({"channels": 64, "dilation": 12}, "shifted"),
        ({"channels": 64, "dilation": 2}, "convolution"),
    ],
)
def test_taken_where_a_dense_kernel_would_be_mostly_zeros(options: dict[str, Any], code: str) -> None:
    layer = moved(**options)
    assert fold(layer, torch.randn(1, options["channels"], 26, 26), forms="estimated")["(root)"].code == code


@pytest.mark.parametrize(("elements", "code"), [(3, "sparse"), (34, "convolution")])
def test_taken_where_few_cells_count(elements: int, code: str) -> None:
    layer = DclsConv2d(8, 8, groups=8, elements=elements, window=17, position_init="uniform")
    assert fold(layer, torch.randn(1, 8, 40, 40), forms="estimated")["(root)"].code == code
