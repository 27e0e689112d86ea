"""Where feature maps lie: exact, against ramps that carry their own coordinates, and on networks known by hand."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scale_models import MODELS
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import InputError
from ccrewrite.passes.scales.alignment import FeatureMap, misalignment
from ccrewrite.passes.scales.resize import resized
from ccrewrite.passes.scales.sizes import samplings_of

HALF = Fraction(1, 2)


def by_module(model: nn.Module, inputs: Any) -> dict[str, FeatureMap]:
    return {m.module: m for m in misalignment(model, inputs)}


def test_the_last_map_of_a_resnet_is_centred_on_pixel_96() -> None:
    model, _ = MODELS["resnet"]()
    maps = by_module(model.eval(), torch.randn(1, 3, 224, 224))
    found = {n: (maps[n].size[0], maps[n].step[0], maps[n].centre[0]) for n in maps}
    assert found["conv1"] == (112, 2, 111)
    assert found["maxpool"] == (56, 4, 110)
    assert found["layer2.0.conv1"] == found["layer2.0.downsample"] == (28, 8, 108)
    assert found["layer3.0.conv2"] == (14, 16, 104)
    assert found["layer4.0.conv2"] == (7, 32, 96)
    assert all(m.expected == (223 * HALF, 223 * HALF) for m in maps.values())
    assert maps["layer4.0.conv1"].offset == (Fraction(-31, 2), Fraction(-31, 2))


def test_a_rewritten_model_lies_where_the_original_does() -> None:
    for name in ("resnet", "erfnet", "unet_cat_3d", "vocoder"):
        model, x = MODELS[name]()
        rewritten = ccrewrite.rewrite(model.eval(), x, verify=False).model
        for old, new in zip(misalignment(model, x), misalignment(rewritten, x), strict=True):
            assert (old.size, old.step, old.centre) == (new.size, new.step, new.centre)


def test_a_moved_layer_lies_where_it_did_however_it_is_computed() -> None:
    model = nn.Sequential(
        nn.Conv2d(32, 32, 3, 2, dilation=6, padding=3), nn.ConvTranspose2d(32, 8, 4, 2, 1), nn.Conv2d(8, 8, 7, 2)
    )
    x = torch.randn(1, 32, 24, 24)
    moved = ccrewrite.rewrite(model, x).model
    with torch.no_grad():
        for sampling in moved.modules():
            for mover in sampling.movers() if isinstance(sampling, ccrewrite.nn.Sampling) else ():
                mover += 0.1
    found = [(m.name, m.size, m.step, m.centre, m.code) for m in misalignment(moved, x)]
    assert found == [(m.name, m.size, m.step, m.centre, m.code) for m in misalignment(model, x)]


def test_other_sizes_keep_the_layers_own_offset_and_centred_removes_it() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3, 2, 1), nn.Conv2d(1, 1, 3, 2, 1), nn.AdaptiveAvgPool2d(1))
    x = torch.randn(1, 1, 64, 64)
    model = ccrewrite.rewrite(model, x).model
    with resized(model, {"1": (0.75, 1)}, x):
        one = by_module(model, x)["1"]
    assert one.size == (12, 16)
    assert one.step == (Fraction(16, 3), 4)
    assert one.centre == (30, 30)
    for sampling in samplings_of(model).values():
        sampling.alignment = "centred"
    with resized(model, {"1": (0.75, 1)}, x):
        assert misalignment(model, x).worst == 0
    assert misalignment(model, x).worst == 0


def test_functional_calls_at_another_size() -> None:
    class Host(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(4, 1, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.kernel, stride=2, padding=1).mean((2, 3))

    x = torch.randn(1, 1, 32, 32)
    model = ccrewrite.rewrite(Host(), x).model
    (name,) = samplings_of(model)
    native = misalignment(model, x)[0]
    assert (native.size, native.centre) == ((16, 16), (15, 15))
    with resized(model, {name: 0.5}, x):
        (half,) = misalignment(model, x)
    assert (half.size, half.centre, half.step) == ((8, 8), (15, 15), (4, 4))


@st.composite
def layers(draw: st.DrawFn) -> nn.Module:
    """A layer whose output at a ramp is a ramp: its value is its place."""
    kind = draw(st.sampled_from(["conv", "up", "pool", "linear", "corners", "pad", "crop"]))
    if kind == "conv":
        k, s, d = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
        conv = nn.Conv1d(1, 1, k, s, draw(st.integers(0, 4)), d, bias=False, dtype=torch.float64)
        nn.init.constant_(conv.weight, 1 / k)
        return conv
    if kind == "up":
        s = draw(st.sampled_from([2, 4]))
        up = nn.ConvTranspose1d(1, 1, 2 * s, s, draw(st.integers(0, s)), bias=False, dtype=torch.float64)
        hat = 1 - (torch.arange(2 * s) - (s - 0.5)).abs() / s
        up.weight.data.copy_(hat[None, None])
        return up
    if kind == "pool":
        k = draw(st.integers(1, 4))
        return nn.AvgPool1d(k, draw(st.integers(1, 3)), draw(st.integers(0, k // 2)))
    factor = draw(st.sampled_from([0.5, 1.5, 2.0]))
    return Op(kind, draw(st.integers(1, 5)), factor)


class Op(nn.Module):
    def __init__(self, kind: str, count: int, factor: float) -> None:
        super().__init__()
        self.kind, self.count, self.factor = kind, count, factor

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "pad":
            return F.pad(x, (self.count, 2))
        if self.kind == "crop":
            return x[..., self.count : -1]
        return F.interpolate(x, scale_factor=self.factor, mode="linear", align_corners=self.kind == "corners")


@given(st.lists(layers(), min_size=1, max_size=4))
def test_against_ramps(stack: list[nn.Module]) -> None:
    """The value in the middle of the last map, on an input that holds its own coordinates, is the place the table says."""
    last = nn.Conv1d(1, 1, 1, bias=False)
    nn.init.ones_(last.weight)
    model = nn.Sequential(*stack, last).double()
    ramp = torch.arange(2000, dtype=torch.float64)[None, None]
    *_, found = misalignment(model, ramp)
    (size,), (step,), (centre,) = found.size, found.step, found.centre
    middle = size // 2
    with torch.no_grad():
        value = float(model(ramp)[0, 0, middle])
    assert abs(value - float(centre + step * (middle - Fraction(size - 1, 2)))) < 1e-6
    assert found.expected == (Fraction(1999, 2),)


def test_views_permutes_and_shuffles_keep_track() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, 2, 1)
            self.fine = nn.Conv2d(2, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x.permute(0, 3, 1, 2)).flatten(2)
            y = y.transpose(1, 2).transpose(1, 2).unflatten(2, (16, 24))
            return self.fine(F.pixel_shuffle(y, 2)).unsqueeze(0).squeeze(0)

    stem, fine = misalignment(Shuffled(), torch.randn(1, 32, 48, 3))
    assert (stem.size, stem.centre, stem.expected) == ((16, 24), (15, 23), (31 * HALF, 47 * HALF))
    assert (fine.size, fine.centre, fine.step) == ((32, 48), (15, 23), (1, 1))


def test_maps_without_a_place_in_the_input_are_left_out() -> None:
    class Generator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 64)
            self.up = nn.ConvTranspose2d(4, 1, 4, 2, 1)

        def forward(self, z: Tensor) -> Tensor:
            return self.up(self.linear(z).view(-1, 4, 4, 4))

    assert len(misalignment(Generator(), torch.randn(2, 8))) == 0


def test_table_and_json() -> None:
    table = misalignment(nn.Sequential(nn.Conv2d(3, 4, 2, 2)), torch.randn(1, 3, 8, 9))
    assert "should be" in str(table)
    (row,) = json.loads(table.to_json())["maps"]
    assert row == {
        "module": "0",
        "operation": "conv2d",
        "node": table[0].node,
        "size": [4, 4],
        "step": [2.0, 2.0],
        "centre": [3.5, 3.5],
        "expected": [3.5, 4.0],
        "offset": [0.0, -0.5],
    }
    assert table.worst == HALF


def test_a_model_without_a_graph_is_refused() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return y if float(y.sum()) > 0 else -y

    with pytest.raises(InputError, match="misalignment follows the exported graph"):
        misalignment(Reads(), torch.randn(1, 1, 8, 8))
