"""A rewritten model at other internal sizes: what is set, what follows, what is put back, what is refused."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Generator
from typing import Any, cast

import pytest
import torch
from scale_models import MODELS
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import InputError, SelectionError
from ccrewrite.passes.scales.resize import Resizing, resize_, resized
from ccrewrite.passes.scales.sizes import samplings_of


@functools.cache
def rewritten(name: str) -> tuple[nn.Module, Tensor]:
    """One model for all tests, so that its scale groups are found once."""
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    return ccrewrite.rewrite(model.eval(), inputs, verify=False).model, inputs


@pytest.fixture(autouse=True)
def _as_before() -> Generator[None]:
    yield
    for name in MODELS:
        model, _ = rewritten(name)
        resize_(model, None)
        model.zero_grad()
        for sampling in samplings_of(model).values():
            sampling.output_size = sampling.scale = None


def run(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return model(inputs)


def sizes_in(model: nn.Module, inputs: Tensor) -> dict[str, tuple[int, ...]]:
    sizes: dict[str, tuple[int, ...]] = {}
    handles = [
        s.register_forward_hook(lambda m, a, out, n=n, d=s.ndim: sizes.__setitem__(n, tuple(cast(Tensor, out).shape[-d:])))
        for n, s in samplings_of(model).items()
    ]
    run(model, inputs)
    for handle in handles:
        handle.remove()
    return sizes


def test_stages_of_a_resnet_by_module_name() -> None:
    model, x = rewritten("resnet")
    native = run(model, x)
    with resized(model, {"layer3": 0.5, "layer4": (2, 1)}) as same:
        assert same is model
        assert sizes_in(model, x) == {
            "conv1": (48, 48),
            "layer2.0.conv1": (12, 12),
            "layer2.0.downsample": (12, 12),
            "layer3.0.conv1": (3, 3),
            "layer3.0.downsample": (3, 3),
            "layer4.0.conv1": (6, 3),  # of its own native 3 x 3, whatever layer 3 does
            "layer4.0.downsample": (6, 3),
        }
        assert not torch.equal(run(model, x), native)
    assert torch.equal(run(model, x), native)
    assert not any(isinstance(hook, Resizing) for hook in model._forward_pre_hooks.values())


def test_what_nobody_asks_for_follows() -> None:
    model, x = rewritten("resnet")
    with resized(model, {"layer2.0": 2}):
        sizes = sizes_in(model, x)
    assert sizes["layer2.0.conv1"] == (24, 24)
    assert sizes["layer3.0.conv1"] == sizes["layer3.0.downsample"] == (12, 12)
    assert sizes["layer4.0.conv1"] == (6, 6)


def test_one_site_takes_its_group_along() -> None:
    model, x = rewritten("resnet")
    with resized(model, {"layer3.0.downsample": 0.5}):
        assert sizes_in(model, x)["layer3.0.conv1"] == (3, 3)


@pytest.mark.parametrize("name", ["unet_cat_2d", "unet_add_2d", "unet_cat_3d", "unet_add_3d"])
def test_up_layers_return_to_the_size_of_their_skip(name: str) -> None:
    model, x = rewritten(name)
    ndim = x.ndim - 2
    native = sizes_in(model, x)
    ratios = (0.8, 0.9, 0.7)[:ndim]
    with resized(model, {"down1": ratios, "down2": 0.75}):
        sizes, out = sizes_in(model, x), run(model, x)
    assert sizes["down1"] == sizes["up2"] == tuple(round(n * r) for n, r in zip(native["down1"], ratios, strict=True))
    assert sizes["down2"] == tuple(round(n * 0.75) for n in native["down2"])
    assert sizes["up1"] == tuple(x.shape[2:])
    assert out.shape == run(model, x).shape


@pytest.mark.parametrize("name", ["unet_cat_2d", "unet_add_3d"])
def test_a_skip_that_nobody_asks_for_keeps_its_size(name: str) -> None:
    model, x = rewritten(name)
    native = sizes_in(model, x)
    with resized(model, {"down2": 0.6}):
        sizes = sizes_in(model, x)
    assert sizes == {**native, "down2": tuple(round(n * 0.6) for n in native["down2"])}


def test_the_pool_branch_decides_for_the_convolution_beside_it() -> None:
    model, x = rewritten("erfnet")
    with resized(model, {"0": 0.85}):
        assert sizes_in(model, x) == {
            "0": (27, 27),
            "1.conv": (13, 13),
            "2.conv": (6, 6),
            "3": (12, 12),
            "5": (24, 24),
            "6": (64, 64),
        }


def test_a_vocoder_keeps_its_length() -> None:
    model, x = rewritten("vocoder")
    length = run(model, x).shape
    with resized(model, {"2": 0.7, "5": 1.2}):
        assert run(model, x).shape == length
        assert sizes_in(model, x) == {"2": (34,), "5": (230,), "8": (384,)}


def test_inputs_of_other_shapes_get_their_own_sizes() -> None:
    model, x = rewritten("unet_cat_2d")
    with resized(model, {"down1": 0.75}):
        assert sizes_in(model, x)["down1"] == (12, 15)
        other = torch.randn(2, 1, 48, 64)
        assert sizes_in(model, other) == {"down1": (18, 24), "down2": (9, 12), "up2": (18, 24), "up1": (48, 64)}
        assert sizes_in(model, x)["up1"] == (32, 40)


def test_a_site_that_is_called_for_different_sizes_follows() -> None:
    model, x = rewritten("repeated")
    with resized(model, {"stem": 1.5, "last": 1.5}):
        assert run(model, x).shape == (1, 4)
        assert sizes_in(model, x) == {"stem": (24, 24), "down": (6, 6), "last": (3, 3)}


def test_other_arguments_count_too() -> None:
    """A flag that makes the inner map an output: then it is pinned."""

    class Flagged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, 2, 1)

        def forward(self, x: Tensor, maps: bool = False) -> Any:
            y = self.conv(x)
            return (y.mean((2, 3)), y) if maps else y.mean((2, 3))

    x = torch.randn(1, 1, 32, 32)
    model = ccrewrite.rewrite(Flagged(), x).model
    with resized(model, {"conv": 0.5}):
        assert model(x=x).shape == (1, 4)
        assert model(x, maps=False).shape == (1, 4)
        with pytest.raises(InputError, match=r"pinned by the model's output\[1\]"):
            model(x, maps=True)


def test_values_are_those_of_the_layers_at_these_sizes() -> None:
    model, x = rewritten("resnet")
    with resized(model, {"layer3": 0.5}):
        there = run(model, x)
    for name in ("layer3.0.conv1", "layer3.0.downsample"):
        samplings_of(model)[name].output_size = (3, 3)
    assert torch.equal(run(model, x), there)


def test_restored_after_an_exception() -> None:
    model, x = rewritten("resnet")
    native = run(model, x)
    with pytest.raises(RuntimeError, match="channels"), resized(model, {"layer3": 0.5}, x):
        run(model, x[:, :2])
    assert torch.equal(run(model, x), native)
    assert not any(isinstance(hook, Resizing) for hook in model._forward_pre_hooks.values())


def test_sizes_that_the_user_had_set_come_back() -> None:
    model, x = rewritten("resnet")
    samplings_of(model)["conv1"].scale = 0.5
    for name in ("layer4.0.conv1", "layer4.0.downsample"):
        samplings_of(model)[name].output_size = (4, 5)
    before = sizes_in(model, x)
    with resized(model, {"layer3": 0.5}):
        assert sizes_in(model, x)["conv1"] == (48, 48)
    assert sizes_in(model, x) == before
    assert samplings_of(model)["conv1"].scale == 0.5


def test_resize_stays_and_none_undoes() -> None:
    model, x = rewritten("unet_add_2d")
    native = run(model, x)
    assert resize_(model, {"down1": 0.5}) is model
    assert sizes_in(model, x)["up2"] == (8, 10)
    halved = run(model, x)
    with resized(model, {"down1": 0.75}):
        assert sizes_in(model, x)["up2"] == (12, 15)
    assert torch.equal(run(model, x), halved), "the outer sizes count again"
    resize_(model, {"down2": 0.5})
    assert sizes_in(model, x)["down1"] == (16, 20), "new settings replace the old"
    resize_(model, None)
    assert torch.equal(run(model, x), native)
    assert not any(isinstance(hook, Resizing) for hook in model._forward_pre_hooks.values())
    assert all(s.output_size is None for s in samplings_of(model).values())


def test_copies_and_pickles_stay_resized() -> None:
    model, x = rewritten("unet_add_2d")
    resize_(model, {"down1": 0.75}, x)
    there = run(model, x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(twin, x), there)
        resize_(twin, None)
        assert torch.equal(run(model, x), there)


def test_a_reverted_model_runs() -> None:
    model, x = MODELS["unet_add_2d"]()
    original = run(model, x)
    model = ccrewrite.rewrite(model, x).model
    resize_(model, {"down1": 0.75}, x)
    ccrewrite.revert(model)
    assert torch.equal(run(model, x), original)
    assert run(model, x[..., :16]).shape == (1, 2, 32, 16)


def test_gradients_reach_everything_at_another_size() -> None:
    model, x = rewritten("unet_cat_2d")
    with resized(model, {"down1": 0.75, "down2": 1.2}):
        model(x).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile's own doing
def test_compiles_whole_where_the_sizes_are_known() -> None:
    model, x = rewritten("unet_cat_2d")
    with resized(model, {"down1": 0.75}, x), torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), model(x))
    torch._dynamo.reset()


def test_exports_where_the_sizes_are_known() -> None:
    model, x = rewritten("unet_cat_2d")
    resize_(model, {"down1": 0.75}, x)
    program = torch.export.export(model, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), model(x))
    resize_(model, {"down1": 0.8})
    with pytest.raises(InputError, match="can't be found while the model is traced"):
        torch.export.export(model, (x,), strict=False)


def test_plans_of_a_resized_model() -> None:
    """Capture runs the model: the sizes stay out of the way where they can't be known."""
    model, x = rewritten("resnet")
    resize_(model, {"layer3": 0.5}, x)
    plan = ccrewrite.plan(model, x)
    assert {s.decision.code for s in plan if "strided" in s.kinds} == {"already-rewritten"}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("flattened", {"layer4": 0.5}, r"layer4.*pinned by linear in fc"),
        ("vit", {"patch": 1.2}, r"'patch'.*pinned by add in the model"),
        ("unet_cat_2d", {"up1": 0.5}, r"pinned by cat_1 in the model"),
        ("vocoder", {"8": 0.5}, r"pinned by the model's output"),
        ("windows", {"patch": 0.7}, r"pinned by view in the model"),
        ("repeated", {"down": 0.7}, r"called for different sizes, 8x8, 4x4"),
        ("unet_cat_2d", {"down1": 0.5, "up2": 0.6}, r"must be equal"),
        ("resnet", {"layer3": (0.5, 0.5, 0.5)}, r"one positive ratio, or 2"),
        ("resnet", {"layer3": -1}, r"one positive ratio"),
        ("resnet", {"layer3": float("nan")}, r"one positive ratio"),
    ],
)
def test_what_can_not_be_is_refused(name: str, settings: Any, message: str) -> None:
    model, x = rewritten(name)
    native = run(model, x)
    with pytest.raises(InputError, match=message), resized(model, settings, x):
        pass
    with pytest.raises(InputError, match=message), resized(model, settings):
        run(model, x)
    assert torch.equal(run(model, x), native)
    assert not any(isinstance(hook, Resizing) for hook in model._forward_pre_hooks.values())


def test_a_key_that_hits_nothing() -> None:
    model, _ = rewritten("resnet")
    with (
        pytest.raises(SelectionError, match=r"layer9.*the sites are conv1, layer2\.0\.conv1"),
        resized(model, {"layer9": 1}),
    ):
        pass


def test_a_glob_of_modules() -> None:
    model, x = rewritten("resnet")
    with resized(model, {"layer[34]": 0.5}):
        sizes = sizes_in(model, x)
    assert sizes["layer3.0.conv1"] == (3, 3)
    assert sizes["layer4.0.conv1"] == (2, 2)


def test_a_pinned_axis_may_be_asked_for_its_own_size() -> None:
    model, x = rewritten("vit")
    native = run(model, x)
    with resized(model, {"patch": 1.0}, x):
        assert torch.equal(run(model, x), native)


def test_the_original_model_is_refused() -> None:
    model, x = MODELS["resnet"]()
    with pytest.raises(InputError, match="rewrite it first"), resized(model, {"layer3": 0.5}):
        run(model, x)


def test_scale_groups_of_a_resized_model_are_those_of_the_model() -> None:
    from ccrewrite.passes.scales.scale_groups import scale_groups

    model, x = rewritten("unet_cat_2d")
    native = scale_groups(model, x).to_json()
    resize_(model, {"down1": 0.5}, x)
    assert scale_groups(model, x).to_json() == native
    resize_(model, {"down1": 0.6})  # of sizes that no call has asked for so far
    assert scale_groups(model, x).to_json() == native
    assert any(isinstance(hook, Resizing) for hook in model._forward_pre_hooks.values())


def test_reverting_takes_the_sizes_away() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.AdaptiveAvgPool2d(1))
    x = torch.randn(1, 3, 16, 16)
    rewritten = ccrewrite.rewrite(model, x).model
    resize_(rewritten, {"0": 0.8}, x)
    ccrewrite.revert(rewritten)
    assert not any(isinstance(hook, Resizing) for hook in rewritten._forward_pre_hooks.values())
    assert ccrewrite.verify(model, rewritten, x).max_abs_error == 0
