"""Folding for a target: the cheapest of the forms that it takes, and a list of what it doesn't take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from moved import move_, worst
from torch import nn

import ccrewrite
from ccrewrite.errors import InputError
from ccrewrite.passes.fold import fold
from ccrewrite.passes.targets import TARGETS, Limits, Target, target_of


def rewritten(layer: nn.Module, *size: int) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    channels: Any = layer.in_channels
    model, x = nn.Sequential(layer).double(), torch.randn(2, channels, *size, dtype=torch.float64)
    return move_(ccrewrite.rewrite(model, x).model), x


def test_every_limit_of_the_table_has_its_source() -> None:
    for target in TARGETS.values():
        for limits in (target.conv, target.transposed):
            changed = {n for n, value in vars(limits).items() if n != "sources" and value != getattr(Limits(), n)}
            assert changed == limits.sources.keys(), target.name
        default = Target("", "onnx", "")
        changed = {n for n in ("forms", "opsets", "lacks") if getattr(target, n) != getattr(default, n)}
        assert changed <= target.sources.keys(), target.name
        assert all(source for source in target.sources.values())


@pytest.mark.parametrize(("target", "code"), [("onnxruntime-cpu", "shifted"), ("executorch-xnnpack", "convolution")])
def test_far_taps_stay_apart_where_the_target_takes_that(target: str, code: str) -> None:
    model, x = rewritten(nn.Conv2d(8, 8, 3, dilation=9, padding=9), 24, 24)
    result = fold(model, x, target=target)
    assert result["0"].code in (code, "padded" if code == "convolution" else code)
    assert result.not_taken == ()
    assert worst(result.model, model, x) <= 1e-12


def test_what_is_asked_for_by_name_is_done_and_listed() -> None:
    model, x = rewritten(nn.Conv2d(8, 8, 3, dilation=9, padding=9), 24, 24)
    result = fold(model, x, forms={"0": "shifted"}, target="executorch-xnnpack")
    assert [(n.where, n.what) for n in result.not_taken] == [("0", "the form 'shifted'")]
    assert "XnnpackPartitioner" in result.not_taken[0].source
    assert "not taken: 0: the form 'shifted'" in str(result)


@pytest.mark.parametrize("target", ["litert", "ethos-u"])
@pytest.mark.parametrize("options", [{"dilation": 2}, {"output_padding": 1}, {"dilation": 3, "output_padding": 1}])
def test_transposed_layers_without_dilation_and_output_padding(target: str, options: dict[str, Any]) -> None:
    """Instead, zeros in the kernel, and a crop."""
    model, x = rewritten(nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1, **options), 7, 8)
    result: Any = fold(model, x, target=target)
    folded: Any = result.model[0]
    conv = getattr(folded, "conv", folded)
    assert type(conv) is nn.ConvTranspose2d
    assert conv.dilation == (1, 1)
    assert conv.output_padding == (0, 0)
    assert result.not_taken == ()
    assert worst(result.model, model, x) <= 1e-12
    assert worst(result.model, model, torch.randn(1, 4, 5, 9, dtype=torch.float64)) <= 1e-12


def test_what_no_form_can_help_is_listed_of_other_layers_too() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 5, stride=4), nn.Conv2d(4, 4, 3, dilation=2, padding=2)).double()
    x = torch.randn(1, 4, 40, 40, dtype=torch.float64)
    moved = move_(ccrewrite.rewrite(model, x, include="1").model)
    listed = [(n.where, n.what) for n in fold(moved, x, target="ethos-u").not_taken]
    assert listed == [("0", "a Conv2d of stride (4, 4)")]
    volume, data = rewritten(nn.Conv3d(4, 4, 3, stride=2, padding=1), 8, 8, 8)
    assert {n.what for n in fold(volume, data, target="executorch-xnnpack").not_taken} == {"a Conv3d of 3-d"}
    assert fold(volume, data, target="tensorrt").not_taken == ()


def test_a_target_of_somebodys_own() -> None:
    mine = replace(target_of("onnxruntime-cpu"), name="mine", conv=Limits(area=9, sources={"area": "the data sheet"}))
    model, x = rewritten(nn.Conv2d(4, 4, 3, dilation=2, padding=2), 16, 16)
    assert [n.source for n in fold(model, x, target=mine).not_taken] == ["the data sheet"]
    with pytest.raises(InputError, match=r"onnxruntime-gpu.*Did you mean 'onnxruntime-cpu'"):
        fold(model, x, target="onnxruntime-gpu")
