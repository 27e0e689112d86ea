"""What layers compute of their geometry, as operators: the same numbers and gradients as without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import ccrewrite.nn as layers
from ccrewrite.families import regions
from ccrewrite.families.cc import factors

D2: dict[str, Any] = {"dilation": 2, "padding": 2}
LAYERS: dict[str, tuple[Callable[[], Any], str | None, set[str]]] = {
    "window": (lambda: layers.DclsConv2d(4, 6, 3, **D2, sharing="full"), "window", {"dcls_kernel"}),
    "gaussian": (lambda: layers.DclsConv2d(4, 4, 3, groups=4, interpolation="gaussian", width=0.6), None, {"dcls_kernel"}),
    "elements": (lambda: layers.DclsConv2d(4, 4, elements=3, window=5, groups=4), None, {"dcls_kernel"}),
    "bands": (lambda: layers.DclsConv2d(4, 6, 3, dilation=3, padding=1, sharing="out"), "bands", {"dcls_bands"}),
    "bands, strided": (lambda: layers.DclsConv1d(4, 6, 3, 2, 1, dilation=2, interpolation="triangle"), "bands", {"dcls_bands"}),
    "products": (lambda: layers.DclsConv2d(4, 6, 3, **D2, sharing="out"), "products", {"dcls_positions"}),
    "taps": (lambda: layers.DclsConv2d(4, 4, 3, **D2, groups=4), "taps", {"dcls_positions"}),
    "strided": (lambda: layers.CCConv2d(4, 6, 3, stride=2, padding=1), None, {"cc_factor"}),
    "strided, mlp": (lambda: layers.CCConv1d(4, 6, 5, stride=2, kernel="mlp"), None, {"cc_factor"}),
    "transposed": (lambda: layers.CCConvTranspose2d(4, 3, 4, 2, 1, basis="linear"), None, {"cc_factor"}),
}


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_operators_compute_what_the_functions_compute(name: str, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    make, form, expected = LAYERS[name]
    layer = make().double()
    x = torch.randn(2, 4, *(11,) * layer.sampling.ndim, dtype=torch.float64)
    for _, parameter in sorted(layer.sampling.named_parameters()):
        nn.init.uniform_(parameter, -0.4, 0.4)
    layer.sampling.form = form
    eager = _gradients(layer, x)

    asked: set[str] = set()
    code = regions.region_of

    def region_of(tensors: Any, name: str, *others: Any) -> Tensor:
        asked.add(name)
        return code(tensors, name, *others)

    monkeypatch.setattr(regions, "region_of", region_of)
    monkeypatch.setattr(regions, "called", lambda opaque: opaque)
    monkeypatch.setattr(regions, "traced", lambda: True)
    monkeypatch.setattr(factors, "_takes", lambda along: False)  # nothing that is traced
    layer.sampling.opaque = True
    for found, wanted in zip(_gradients(layer, x), eager, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    assert asked == expected


def _gradients(layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    out = layer(x)
    return [out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])]


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_operators_are_what_torch_expects_of_one(name: str, monkeypatch: pytest.MonkeyPatch):
    """Schema, fake results and autograd registration, by torch's own check (which the backward's torch.func doesn't pass
    through), on the arguments that a layer gives."""
    torch.manual_seed(0)
    make, form, _ = LAYERS[name]
    layer = make()
    x = torch.randn(2, 4, *(11,) * layer.sampling.ndim)
    layer.sampling.form, layer.sampling.opaque = form, True
    given: list[tuple[Any, ...]] = []
    call = regions.region

    def region(name: str, tensors: Any, constants: str, numbers: Any = ()) -> Tensor:
        given.append(([t.detach().clone().requires_grad_() for t in tensors], name, constants, list(numbers) or [0]))
        return call(name, tensors, constants, numbers)

    monkeypatch.setattr(regions, "called", lambda opaque: opaque)
    monkeypatch.setattr(regions, "region", region)
    monkeypatch.setattr(regions, "traced", lambda: True)
    monkeypatch.setattr(factors, "_takes", lambda along: False)  # nothing that is traced
    layer(x)
    monkeypatch.undo()
    assert given
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    for arguments in given:
        torch.library.opcheck(torch.ops.ccrewrite.region, arguments, test_utils=utils)
        wants = [True] * len(arguments[0])
        gradient = torch.ones_like(torch.ops.ccrewrite.region(*arguments)).detach()
        detached = [t.detach() for t in arguments[0]]
        found = torch.ops.ccrewrite.region_backward(gradient, detached, *arguments[1:], wants)
        with FakeTensorMode(allow_non_fake_inputs=True):
            fake = torch.ops.ccrewrite.region_backward(gradient, detached, *arguments[1:], wants)
        assert [(g.shape, g.stride(), g.dtype) for g in fake] == [(g.shape, g.stride(), g.dtype) for g in found]
