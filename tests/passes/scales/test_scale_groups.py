"""Scale groups of small models of many families: what hangs together, what is free, what is pinned and by what."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from scale_models import MODELS, Example
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import InputError, ModelRunError
from ccrewrite.passes.scales.resize import resized
from ccrewrite.passes.scales.scale_groups import ScaleGroup, ScaleGroups, scale_groups
from ccrewrite.passes.scales.sizes import samplings_of
from ccrewrite.passes.scales.trials import RATIOS, Pin

GROUPS: dict[str, dict[str, tuple[list[str], str]]] = {
    "resnet": {
        "conv1": (["n0 x n1"], ""),
        "layer2.0": (["n0 x n1"] * 2, ""),
        "layer3.0": (["n0 x n1"] * 2, ""),
        "layer4.0": (["n0 x n1"] * 2, ""),
    },
    "flattened": {
        "conv1": (["n0 x n1"], ""),
        "layer2.0": (["n0 x n1"] * 2, ""),
        "layer3.0": (["n0 x n1"] * 2, ""),
        "layer4.0": (["n0 x n1"] * 2, "linear in fc"),
    },
    "convnext": {"0.0": (["n0 x n1"], ""), "2.1": (["n0 x n1"], ""), "4.1": (["n0 x n1"], "")},
    "unet_cat_2d": {"down1": (["n0 x n1"] * 2, ""), "down2": (["n0 x n1"], ""), "up1": (["n0 x n1"], "cat_1 in the model")},
    "unet_add_2d": {"down1": (["n0 x n1"] * 2, ""), "down2": (["n0 x n1"], ""), "up1": (["n0 x n1"], "add_1 in the model")},
    "unet_cat_3d": {
        "down1": (["n0 x n1 x n2"] * 2, ""),
        "down2": (["n0 x n1 x n2"], ""),
        "up1": (["n0 x n1 x n2"], "cat_1 in the model"),
    },
    "unet_add_3d": {
        "down1": (["n0 x n1 x n2"] * 2, ""),
        "down2": (["n0 x n1 x n2"], ""),
        "up1": (["n0 x n1 x n2"], "add_1 in the model"),
    },
    "erfnet": {
        "0": (["n0 x n1", "(n0//2) x (n1//2)", "(n0//4) x (n1//4)"], ""),
        "3": (["n0 x n1"], ""),
        "5": (["n0 x n1"], ""),
        "6": (["n0 x n1"], "the model's output"),
    },
    "vocoder": {"2": (["n"], ""), "5": (["n"], ""), "8": (["n"], "the model's output")},
    "vit": {"stem": (["n0 x n1"], ""), "patch": (["n0 x n1"], "add in the model")},
    "mobilenet": {"0": (["n0 x n1"], ""), "2.body.3": (["n0 x n1"], ""), "4.body.3": (["n0 x n1"], "")},
    "windows": {"patch": (["n0 x n1"], "view in the model")},
    "numbers": {"stem": (["n0 x n1"], ""), "down": (["n0 x n1"], "")},
    "asking": {"fine": (["n0 x n1"], ""), "coarse": (["n0 x n1"], "")},
    "insisting": {"fine": (["n0 x n1"] * 2, "")},
    "cropped": {"up1": (["n"], ""), "up2": (["n"], "the model's output")},
    "normed": {"0": (["n0 x n1"], ""), "1": (["n0 x n1"], "instance_norm in 2")},
    "repeated": {"stem": (["n0 x n1"], ""), "down": (["n0 x n1"], "convolution in down"), "last": (["n0 x n1"], "")},
}
"""Model -> group -> each site's sizes, and what pins it ("": nothing)."""


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[str, Example, ScaleGroups]:
    torch.manual_seed(0)
    model, inputs = MODELS[request.param]()
    rewritten = ccrewrite.rewrite(model.eval(), inputs, verify=False).model
    return request.param, (rewritten, inputs), scale_groups(rewritten, inputs)


def test_the_groups_of_the_table(case: Any) -> None:
    name, (model, _), groups = case
    found = {g.name: (list(g.relations), "; ".join(dict.fromkeys(str(p.where) for p in g.pins if p))) for g in groups}
    assert found == GROUPS[name]
    assert sorted(s for g in groups for s in g.sites) == sorted(samplings_of(model)), "each site is in one group"


def test_every_free_group_really_takes_other_sizes(case: Any) -> None:
    _, (model, inputs), groups = case
    native = run(model, inputs)
    for group in groups.free:
        for ratio in RATIOS:
            with resized(model, {group.name: ratio}):
                out, sizes = run(model, inputs), sizes_of(model, inputs)
            assert out.shape == native.shape
            assert bool(out.isfinite().all())
            first = group.sites[0]
            assert sizes[first] == tuple(max(1, round(n * ratio)) for n in group.native[0])
    assert torch.equal(run(model, inputs), native)


def test_all_free_groups_at_once(case: Any) -> None:
    _, (model, inputs), groups = case
    native = run(model, inputs)
    for shift in range(3):
        settings = {g.name: RATIOS[(i + shift) % 3] for i, g in enumerate(groups.free)}
        with resized(model, settings):
            assert run(model, inputs).shape == native.shape


def test_every_pin_is_real(case: Any) -> None:
    name, (model, inputs), groups = case
    if name == "repeated":
        return  # its pin says that one size can't serve two calls, not that it would fail
    native = run(model, inputs)
    for group in groups:
        for axis, pin in enumerate(group.pins):
            if pin is not None:
                with pytest.raises(InputError, match="pinned by"), resized(model, {group.name: 0.7}, inputs):
                    pass
                force(model, groups, group, axis, pin)
                try:
                    assert run(model, inputs).shape != native.shape
                except (RuntimeError, ValueError):
                    pass
                finally:
                    for sampling in samplings_of(model).values():
                        sampling.output_size = None
    assert torch.equal(run(model, inputs), native)


@pytest.mark.parametrize("name", ["mobilenet", "unet_add_2d", "vit"])
def test_the_analysis_leaves_no_trace(name: str) -> None:
    model, inputs = MODELS[name]()
    model = ccrewrite.rewrite(model, inputs, verify=False).model.eval()
    before = {n: dict(vars(m)) for n, m in model.named_modules()}
    state = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    scale_groups(model, inputs)
    assert all(m.training for m in model.modules())
    model.eval()
    assert {n: dict(vars(m)) for n, m in model.named_modules()}.keys() == before.keys()
    assert all(vars(m).keys() == before[n].keys() for n, m in model.named_modules())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_table_and_json() -> None:
    model, x = MODELS["unet_cat_2d"]()
    groups = scale_groups(ccrewrite.rewrite(model, x).model, x)
    assert "3 scale groups, 2 free" in str(groups)
    assert "cat_1 in the model" in str(groups)
    data = json.loads(groups.to_json())["groups"]
    assert [(g["name"], g["sites"], g["free_axes"]) for g in data] == [
        ("down1", ["down1", "up2"], [0, 1]),
        ("down2", ["down2"], [0, 1]),
        ("up1", ["up1"], []),
    ]
    assert data[2]["pins"][0]["node"] == "cat_1"
    assert groups["up2"] is groups["down1"] is groups[0]
    with pytest.raises(KeyError, match="nothing"):
        groups["nothing"]


def test_the_original_model_is_refused() -> None:
    model, x = MODELS["resnet"]()
    with pytest.raises(InputError, match="rewrite it first"):
        scale_groups(model, x)


def test_one_axis_can_be_free() -> None:
    """A linear layer over the frequencies of a spectrogram: the time axis stays free."""

    class Spectra(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, 2, 1)
            self.linear = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.conv(x)).mean((1, 2))

    model, x = Spectra(), torch.randn(1, 1, 40, 16)
    model = ccrewrite.rewrite(model, x).model
    (group,) = scale_groups(model, x)
    assert group.free_axes == (0,)
    assert not group.free
    with resized(model, {"conv": (0.7, 1)}):
        assert model(x).shape == (1, 5)
        assert sizes_of(model, x) == {"conv": (14, 8)}
    with pytest.raises(InputError, match="linear in linear"), resized(model, {"conv": 0.7}, x):
        pass


def test_axes_of_a_square_map_can_hang_together() -> None:
    """An attention of rows with columns: height and width must be equal."""

    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return (y + y.transpose(2, 3)).mean((2, 3))

    model, x = Square(), torch.randn(1, 1, 32, 32)
    model = ccrewrite.rewrite(model, x).model
    (group,) = scale_groups(model, x)
    assert group.relations == ("n x n",)
    with resized(model, {"conv": 0.5}):
        assert model(x).shape == (1, 4)
    with pytest.raises(InputError, match="must be equal"), resized(model, {"conv": (0.5, 0.6)}, x):
        pass


def test_a_model_that_reads_values_is_refused_with_the_reason() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return y if float(y.sum()) > 0 else -y

    x = torch.randn(1, 1, 8, 8)
    with pytest.raises(ModelRunError, match="can't be followed on fake tensors"):
        scale_groups(ccrewrite.rewrite(Reads(), x).model, x)


def test_numbers_that_the_model_owns_keep_their_values() -> None:
    """A pad length and a counter kept in buffers: the former is known, the latter not written."""

    class Counts(nn.Module):
        total: Tensor
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 4, 4, 2)
            self.register_buffer("total", torch.tensor(4) - torch.tensor(2))
            self.register_buffer("calls", torch.tensor(0))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            self.calls += 1
            left: Any = self.total // 2
            right: Any = self.total - left
            return self.conv(F.pad(x, (left, right), mode="reflect")).mean(2)

    x = torch.randn(1, 1, 16)
    model: Any = ccrewrite.rewrite(Counts(), x).model
    before = int(model.calls)
    (group,) = scale_groups(model, x)
    assert (group.free, group.native) == (True, ((8,),))
    assert int(model.calls) == before
    assert type(model.calls) is Tensor


def run(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return model(inputs)


def sizes_of(model: nn.Module, inputs: Tensor) -> dict[str, tuple[int, ...]]:
    """Output size of each site in a run."""
    sizes: dict[str, tuple[int, ...]] = {}
    handles = [
        s.register_forward_hook(lambda m, a, out, n=n, d=s.ndim: sizes.__setitem__(n, tuple(cast(Tensor, out).shape[-d:])))
        for n, s in samplings_of(model).items()
    ]
    run(model, inputs)
    for handle in handles:
        handle.remove()
    return sizes


def force(model: nn.Module, groups: ScaleGroups, group: ScaleGroup, axis: int, pin: Pin) -> None:
    """Set a pinned axis of a group to the size that was tried, in all of its sites, and let the others follow."""
    (root,) = groups.ties.size(groups.run.sites[group.sites[0]].symbols[axis]).free_symbols
    # Axes that fail together only have one failure.
    together = {r: p.tried for r, p in groups.pins.items() if p.failure == pin.failure}
    known = groups.ties.resolve({**together, root: pin.tried}, groups.pins)
    for name, sampling in samplings_of(model).items():
        sampling.output_size = tuple(known[s] for s in groups.run.sites[name].symbols)
