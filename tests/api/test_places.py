"""Geometry that is not where hooks or loaders put things; tensors made in inference mode; scripted and traced models."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import InputError
from ccrewrite.nn import CCConv2d, DclsConv2d, Sampling

X = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(0))


class Host(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4, 3, 3) / 5)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w, stride=2, padding=1)


class Own(nn.Conv2d):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * 2, self.bias, self.stride, self.padding, self.dilation)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "dilated": lambda: nn.Conv2d(4, 4, 3, 1, 2, 2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, 1, 2, 2, groups=4),
    "strided": lambda: nn.Conv2d(4, 4, 3, 2, 1),
    "transposed": lambda: nn.ConvTranspose2d(4, 4, 4, 2, 1),
    "functional": Host,
    "subclass": lambda: Own(4, 4, 3, 2, 1),
}
SITES = dict.fromkeys(LAYERS, "0") | {"functional": "0.w"}


def network(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(LAYERS[kind]()).eval()


def moved(model: Any) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Sampling):
                for parameter in module.parameters():
                    parameter.add_(0.2 * torch.rand_like(parameter))
    return model


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_geometry_left_on_meta_is_named(kind: str, gradients: bool) -> None:
    model = network(kind)
    rewritten: Any = ccrewrite.rewrite(copy.deepcopy(model).to("meta"), X.to("meta")).model
    rewritten.load_state_dict(model.state_dict(), strict=False, assign=True)
    with (
        torch.set_grad_enabled(gradients),
        pytest.raises(InputError, match=rf"the geometry of {SITES[kind]} is on the meta device"),
    ):
        rewritten(X)
    full: Any = ccrewrite.rewrite(model, X).model
    rewritten.load_state_dict(full.state_dict(), assign=True)
    torch.testing.assert_close(rewritten(X), model(X))


def test_a_part_of_the_geometry_left_on_meta() -> None:
    layer = CCConv2d(4, 4, 3, 2, 1)
    layer.sampling.residual[1].inner.to_empty(device="meta")  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(InputError, match="the geometry of this CCSampling is on the meta device"):
        layer(X)
    with torch.no_grad():
        assert layer(X).shape == (2, 4, 6, 6)  # at its start nothing of it is read
        wide = DclsConv2d(4, 4, 3, dilation=2, interpolation="gaussian")
        wide.sampling.widening = nn.Parameter(cast(Tensor, wide.sampling.widening).to("meta"))
        with pytest.raises(InputError, match="this DclsSampling"):
            wide(X)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_default_device_does_not_matter(kind: str) -> None:
    model = network(kind)
    with torch.device("meta"):
        result = ccrewrite.rewrite(model, X)
        torch.testing.assert_close(result.model(X), model(X))
        folded = ccrewrite.fold(moved(result.model), X)
        torch.testing.assert_close(folded.model(X), result.model(X), atol=1e-5, rtol=1e-5)
    assert result.check.ok
    assert {p.device.type for p in result.model.parameters()} == {"cpu"}


def test_the_default_device_does_not_matter_where_filters_are_networks() -> None:
    with torch.device("meta"):
        layer = CCConv2d(4, 4, 3, 2, 1, kernel="mlp", device="cpu")
    assert layer.sampling.fit_error(layer.weight) < 1e-4


@pytest.mark.parametrize("kind", LAYERS)
def test_offloaded_after_rewriting(kind: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    rewritten = moved(ccrewrite.rewrite(network(kind), X).model)
    with torch.no_grad():
        expected = rewritten(X)
        accelerate.cpu_offload(rewritten, execution_device=torch.device("cpu"))
        assert all(p.is_meta for p in rewritten.parameters())
        torch.testing.assert_close(rewritten(X), expected)


@pytest.mark.parametrize("kind", LAYERS)
def test_offloaded_before_rewriting(kind: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = network(kind)
    with torch.no_grad():
        expected = model(X)
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
        result = ccrewrite.rewrite(model, X)
        assert result.check.ran
        torch.testing.assert_close(result.model(X), expected)
        if kind == "functional":  # its weight is another tensor in each call: nothing says that the call is the site's
            assert result["0:conv2d"].code == "verification-failed"
            return
        assert result.plan.rewritten
        shifted = moved(result.model)(X)
    assert not torch.allclose(shifted, expected), "the geometry is really used"


@pytest.mark.parametrize("kind", LAYERS)
def test_rewritten_in_inference_mode_trains(kind: str) -> None:
    model = network(kind)
    with torch.inference_mode():
        rewritten = ccrewrite.rewrite(model, X).model
        folded = ccrewrite.fold(moved(copy.deepcopy(rewritten)), X).model
    rewritten(X).sum().backward()
    assert not any(p.is_inference() for p in (*rewritten.parameters(), *folded.parameters()))


def test_weights_of_inference_mode_are_refused_where_they_would_stay(tmp_path: Any) -> None:
    ccrewrite.save(ccrewrite.rewrite(network("strided"), X), tmp_path)
    with torch.inference_mode():
        model = network("strided")
        with pytest.raises(InputError, match=r"0\.weight was made inside torch\.inference_mode"):
            ccrewrite.rewrite_(model, X)
        with pytest.raises(InputError, match=r"0\.weight was made inside torch\.inference_mode"):
            ccrewrite.load(model, tmp_path)
    result = ccrewrite.rewrite(model, X)
    result.model(X).sum().backward()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", LAYERS)
def test_traced(kind: str) -> None:
    model = moved(ccrewrite.rewrite(network(kind), X).model)
    traced = torch.jit.trace(model, X)
    for size in ((12, 12), (17, 22)):
        x = torch.randn(1, 4, *size)
        torch.testing.assert_close(traced(x), model(x), atol=1e-5, rtol=1e-5)  # pyright: ignore[reportCallIssue]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_a_resized_layer_is_not_traced() -> None:
    model: Any = ccrewrite.rewrite(network("strided"), X).model
    model[0].sampling.scale = 0.5
    with pytest.raises(InputError, match=r"torch\.jit\.trace would keep the sizes"):
        torch.jit.trace(model, X)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_folded_layers_are_scripted(kind: type[Any], mode: str) -> None:
    torch.manual_seed(0)
    size = {nn.Conv1d: (13,), nn.Conv2d: (13, 12), nn.Conv3d: (9, 8, 7)}[kind]
    model, x = nn.Sequential(kind(4, 4, 3, stride=2, padding=1, padding_mode=mode)).eval(), torch.randn(1, 4, *size)
    folded = ccrewrite.fold(moved(ccrewrite.rewrite(model, x).model), x, forms="estimated")
    assert [s.code for s in folded] == ["padded"]
    scripted = torch.jit.script(folded.model)
    assert torch.equal(scripted(x), folded.model(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("kind", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
def test_folded_transposed_layers_are_scripted(kind: type[Any]) -> None:
    torch.manual_seed(0)
    size = {nn.ConvTranspose1d: (13,), nn.ConvTranspose2d: (7, 8), nn.ConvTranspose3d: (5, 4, 3)}[kind]
    model, x = nn.Sequential(kind(4, 4, 3, stride=2, padding=1)).eval(), torch.randn(1, 4, *size)
    folded = ccrewrite.fold(moved(ccrewrite.rewrite(model, x).model), x, forms="estimated")
    assert [s.code for s in folded] == ["padded"]
    assert torch.equal(torch.jit.script(folded.model)(x), folded.model(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_what_can_not_be_scripted_says_so() -> None:
    rewritten = moved(ccrewrite.rewrite(network("dilated"), X).model)
    with pytest.raises(InputError, match=r"torch\.jit\.script can't read a DclsSampling.*ccrewrite\.fold"):
        torch.jit.script(rewritten)
    x = torch.randn(1, 8, 40, 40)
    far = ccrewrite.fold(moved(ccrewrite.rewrite(nn.Conv2d(8, 8, 3, dilation=9), x).model), x, forms="estimated")
    assert far.sites[0].code == "shifted"
    with pytest.raises(InputError, match=r"can't read a ShiftedConv2d.*torch\.export"):
        torch.jit.script(far.model)
