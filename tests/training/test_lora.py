"""PEFT's LoRA on rewritten convolutions. `make train`."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from moved import move_
from torch import Tensor, nn

import ccrewrite
from ccrewrite import LargeToDcls
from ccrewrite.errors import InputError
from ccrewrite.nn import CCConv2d, DclsConv2d
from ccrewrite.training import register_lora

pytestmark = pytest.mark.slow
peft: Any = pytest.importorskip("peft", reason="installed by make train")


class Standardised(nn.Conv2d):
    """A forward of its own, which is not linear in the weight."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(input, weight / weight.std(), self.bias, self.stride, self.padding, self.dilation, self.groups)


def pictures(channels: int = 4) -> Tensor:
    return torch.randn(2, channels, 16, 16, generator=torch.Generator().manual_seed(0))


def network(layer: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict({"conv": layer, "after": nn.Tanh()})).eval()


def rewritten(layer: Any, **options: Any) -> nn.Module:
    shape = (2, 4, *(9 if isinstance(layer, (nn.Conv3d, nn.ConvTranspose3d)) else 16,) * (layer.weight.dim() - 2))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    model = move_(ccrewrite.rewrite(network(layer), x, **options).model)
    model.x = x
    return model


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "strided": lambda: rewritten(nn.Conv2d(4, 6, 3, 2, 1)),
    "dilated": lambda: rewritten(nn.Conv2d(4, 6, 3, 1, 2, 2, bias=False)),
    "one axis, dilated": lambda: rewritten(nn.Conv1d(4, 6, 3, 1, 4, 4)),
    "three axes, strided": lambda: rewritten(nn.Conv3d(4, 6, 3, 2, 1)),
    "transposed": lambda: rewritten(nn.ConvTranspose2d(4, 6, 4, 2, 1)),
    "depthwise, dilated": lambda: rewritten(nn.Conv2d(4, 4, 3, 1, 2, 2, groups=4)),
    "groups, transposed": lambda: rewritten(nn.ConvTranspose2d(4, 6, 4, 2, 1, groups=2)),
    "circular": lambda: rewritten(nn.Conv2d(4, 6, 3, 1, 2, 2, padding_mode="circular")),
    "a forward of its own": lambda: rewritten(Standardised(4, 6, 3, 2, 1)),
    "few taps of many": lambda: rewritten(nn.Conv2d(4, 4, 7, 1, 3, groups=4), rules=[LargeToDcls(elements=6)], verify=False),
}


def adapted(model: nn.Module, **options: Any) -> Any:
    torch.manual_seed(0)
    config = peft.LoraConfig(**{"target_modules": ["conv"], "r": 2, "init_lora_weights": False, **options})
    return peft.get_peft_model(model, register_lora(config)).eval()


@pytest.mark.parametrize("name", LAYERS)
def test_an_adapter_goes_through_the_geometry_and_merges_exactly(name: str) -> None:
    model = LAYERS[name]()
    before: Any
    x, before = model.x, copy.deepcopy(model)
    tuned = adapted(model)
    with torch.no_grad():
        out = tuned(x)
        assert not torch.allclose(out, before(x), atol=1e-3)
        # The same by hand: the sum in the weight's place.
        layer = tuned.base_model.model.conv
        before.conv.weight += layer.get_delta_weight("default")
        torch.testing.assert_close(out, before(x), rtol=1e-5, atol=1e-5)
        with tuned.disable_adapter():
            apart = tuned(x)
        tuned.merge_adapter()
        torch.testing.assert_close(tuned(x), out, rtol=1e-5, atol=1e-5)
        tuned.unmerge_adapter()
        torch.testing.assert_close(tuned(x), out, rtol=1e-5, atol=1e-5)
        merged = tuned.merge_and_unload(safe_merge=True)
        torch.testing.assert_close(merged(x), out, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(apart, out, atol=1e-3)
    assert type(merged.conv) is type(before.conv)
    folded = ccrewrite.fold(merged, x)
    assert folded.check.ok
    torch.testing.assert_close(folded.model(x), out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [lambda: CCConv2d(4, 6, 3, 2, 1), lambda: DclsConv2d(4, 6, elements=3, window=5)])
def test_layers_from_scratch(layer: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = move_(network(layer())), pictures()
    tuned = adapted(model)
    out = tuned(x)
    torch.testing.assert_close(tuned.merge_and_unload()(x), out, rtol=1e-5, atol=1e-5)


def test_adapter_and_geometry_are_trained() -> None:
    model = LAYERS["dilated"]()
    x, tuned = model.x, adapted(model, init_lora_weights=True)
    torch.testing.assert_close(tuned(x), model(x))  # the second factor starts at zero
    for name, parameter in tuned.named_parameters():
        if ".sampling." in name:
            parameter.requires_grad_(True)
    groups = ccrewrite.training.param_groups(tuned, lr=1e-2)
    assert [group["name"] for group in groups] == ["weights", "positions"]
    optimizer = torch.optim.AdamW(groups)
    losses: list[float] = []
    start = {name: p.detach().clone() for name, p in tuned.named_parameters()}
    for _ in range(5):
        loss = (tuned(x) - 0.3).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    changed = {name for name, p in tuned.named_parameters() if not torch.equal(p, start[name])}
    assert {name.rpartition(".conv.")[2] for name in changed} == {
        "base_layer.sampling.offset",
        "lora_A.default.weight",
        "lora_B.default.weight",
    }


def test_dropout_is_before_the_adapter_alone() -> None:
    model = LAYERS["strided"]()
    x, tuned = model.x, adapted(model, lora_dropout=0.5)
    out = tuned(x)
    tuned.train()
    dropped = [tuned(x) for _ in range(2)]
    assert not torch.allclose(*dropped)
    for module in tuned.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    torch.testing.assert_close(tuned(x), out, rtol=1e-5, atol=1e-5)


def test_several_adapters() -> None:
    model = LAYERS["transposed"]()
    x, tuned = model.x, adapted(model)
    first = tuned(x)
    tuned.add_adapter("other", register_lora(peft.LoraConfig(target_modules=["conv"], r=3, init_lora_weights=False)))
    torch.testing.assert_close(tuned(x), first)
    tuned.set_adapter("other")
    assert not torch.allclose(tuned(x), first, atol=1e-3)
    tuned.set_adapter("default")
    torch.testing.assert_close(tuned(x), first)


def test_an_adapter_is_saved_and_loaded_beside_the_geometry(tmp_path: Path) -> None:
    def original() -> nn.Module:
        torch.manual_seed(1)
        return network(nn.Conv2d(4, 6, 3, 2, 1))

    x = pictures()
    model = move_(ccrewrite.rewrite(original(), x).model)
    ccrewrite.save(model, tmp_path / "geometry", geometry_only=True)
    tuned = adapted(model)
    tuned.save_pretrained(tmp_path / "adapter")
    loaded = ccrewrite.load(original(), tmp_path / "geometry")
    config = register_lora(peft.LoraConfig.from_pretrained(tmp_path / "adapter"))
    again = peft.PeftModel.from_pretrained(loaded, tmp_path / "adapter", config=config)
    torch.testing.assert_close(again(x), tuned(x), rtol=0, atol=0)


def test_copies_and_pickles() -> None:
    model = LAYERS["dilated"]()
    x, tuned = model.x, adapted(model).base_model.model
    expected = tuned(x)
    for other in (copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned))):
        torch.testing.assert_close(other(x), expected, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile's own doing
def test_compiled() -> None:
    model = LAYERS["strided"]()
    x, tuned = model.x, adapted(model)
    compiled = torch.compile(tuned, backend="eager", fullgraph=False)
    torch.testing.assert_close(compiled(x), tuned(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "error", "said"),
    [
        ("strided", {"lora_bias": True}, InputError, "lora_bias=True"),
        ("dilated", {"init_lora_weights": "pissa"}, InputError, "found 'pissa'"),
        ("a forward of its own", {"lora_dropout": 0.1}, InputError, "forward of its own"),
        ("strided", {"use_dora": True}, ValueError, "use_dora"),
    ],
)
def test_what_a_sum_can_not_have_is_refused(name: str, options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        adapted(LAYERS[name](), **options)


def test_a_computed_weight_is_refused() -> None:
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3, 2, 1))
    with pytest.raises(InputError, match="remove its parametrization"):
        adapted(rewritten(layer))


def test_a_config_that_is_not_registered_is_refused_with_what_to_do() -> None:
    with pytest.raises(InputError, match=r"ccrewrite\.training\.register_lora"):
        peft.get_peft_model(LAYERS["strided"](), peft.LoraConfig(target_modules=["conv"], r=2))


def test_an_adapter_for_each_sample_is_refused() -> None:
    model = LAYERS["strided"]()
    with pytest.raises(InputError, match="one adapter at a time"):
        adapted(model)(model.x, adapter_names=["default", "default"])


@pytest.mark.parametrize("call", [ccrewrite.fold, ccrewrite.lower, lambda model, x: ccrewrite.save(model, "never")])
def test_what_would_lose_an_adapter_refuses_it(call: Callable[[nn.Module, Tensor], object]) -> None:
    model: Any = LAYERS["strided"]()
    with pytest.raises(InputError, match=r"conv.*merge_and_unload"):
        call(adapted(model), model.x)
