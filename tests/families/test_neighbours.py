"""What other tools do with our layers: transforms under torch.compile, adapters that build layers of our classes, pruning."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from moved import move_
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import InputError
from ccrewrite.nn import CCConv1d, CCConv2d, DclsConv2d

X = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(0))


class Ensemble(nn.Module):
    """Two sets of weights, one convolution of each."""

    def __init__(self, function: Callable[..., Tensor], shape: tuple[int, ...], **options: Any) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)) / 6)
        self.function, self.options = function, options

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda w: self.function(x, w, **self.options))(self.w)


class PerSample(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, **options)

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda sample: self.conv(sample[None])[0])(x)


class Slope(PerSample):
    """A network with a derivative in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: self.conv(x).square().sum())(x)


TRANSFORMED: dict[str, Callable[[], nn.Module]] = {
    "strided": lambda: Ensemble(F.conv2d, (4, 4, 3, 3), stride=2, padding=1),
    "dilated": lambda: Ensemble(F.conv2d, (4, 4, 3, 3), dilation=2, padding=2),
    "transposed": lambda: Ensemble(F.conv_transpose2d, (4, 4, 4, 4), stride=2, padding=1),
    "depthwise": lambda: Ensemble(F.conv2d, (4, 1, 3, 3), dilation=4, padding=4, groups=4),
    "samples, strided": lambda: PerSample(stride=2),
    "samples, dilated": lambda: PerSample(dilation=2),
    "derivative, strided": lambda: Slope(stride=2),
    "derivative, dilated": lambda: Slope(dilation=2),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_what_is_transformed_in_a_forward_compiles(name: str) -> None:
    torch._dynamo.reset()
    model = move_(ccrewrite.rewrite(TRANSFORMED[name]().eval(), X).model)
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    found: list[Any] = []
    for run in (model, compiled):
        x = X.clone().requires_grad_()
        out = run(x)
        out.square().sum().backward()
        assert x.grad is not None
        found.append([out.detach(), x.grad, *(p.grad for p in run.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1])
    torch.testing.assert_close(found[1], found[0])


class Named(CCConv2d):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "CC": lambda: CCConv2d(4, 8, 3, 2, 1),
    "one axis": lambda: CCConv1d(4, 8, 3, 2, 1),
    "DCLS on a grid": lambda: DclsConv2d(4, 8, 3, 1, 2, 2),
    "DCLS placed freely": lambda: DclsConv2d(4, 8, elements=3, window=5),
    "made of another": lambda: CCConv2d.from_conv(nn.Conv2d(4, 8, 3, 2, 1)),
    "a subclass": lambda: Named(4, 8, 3, 2, 1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_an_adapter_on_a_layer_from_scratch_is_refused(name: str) -> None:
    """PEFT's LoRA builds its branches like this."""
    layer = LAYERS[name]()
    adapters = types.ModuleType("peft.tuners.lora.layer")
    code = (
        "def update_layer(self, base, r):\n    return type(base)(4, r, base.kernel_size, base.stride, base.padding, bias=False)"
    )
    exec(code, vars(adapters))
    with pytest.raises(InputError, match=rf"PEFT builds a {type(layer).__name__}.*ccrewrite\.fold"):
        vars(adapters)["update_layer"](None, layer, 2)


def keep_(layer: Any, kept: list[int], axis: int) -> None:
    """What Torch-Pruning does."""
    layer.weight = nn.Parameter(layer.weight.detach().index_select(axis, torch.tensor(kept)))
    if axis == 0:
        layer.bias = nn.Parameter(layer.bias.detach()[kept])


@pytest.mark.parametrize("second", [{"dilation": 2, "padding": 2}, {"stride": 2, "padding": 1}])
def test_channels_pruned_from_a_rewritten_model_are_those_pruned_from_the_folded_one(second: dict[str, Any]) -> None:
    original = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.Tanh(), nn.Conv2d(8, 4, 3, **second)).eval()
    model = move_(ccrewrite.rewrite(original, X).model)
    folded = ccrewrite.fold(model, X).model
    for pruned in (model, folded):
        keep_(pruned[0], [0, 1, 3, 6], 0)  # pyright: ignore[reportIndexIssue]
        keep_(pruned[2], [0, 1, 3, 6], 1)  # pyright: ignore[reportIndexIssue]
    torch.testing.assert_close(model(X), folded(X), atol=1e-5, rtol=1e-5)
    again = ccrewrite.fold(model, X)
    assert again.check.ok
    torch.testing.assert_close(again.model(X), model(X), atol=1e-5, rtol=1e-5)


def test_channels_with_positions_of_their_own_are_not_pruned() -> None:
    model: Any = move_(ccrewrite.rewrite(nn.Sequential(nn.Conv2d(4, 4, 3, 1, 2, 2, groups=4)).eval(), X).model)
    keep_(model[0], [0, 1, 3], 0)
    model[0].groups = 3
    with pytest.raises(InputError, match="pruned before a model is rewritten, or after it is folded"):
        model(X[:, :3])
