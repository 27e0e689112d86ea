"""Folding a depthwise layer into one that visits, once compiled, only the cells of its kernel that aren't zero."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from ccrewrite.folded.sparse import SparseConv
from ccrewrite.nn import DclsConv1d, DclsConv2d, DclsConv3d
from ccrewrite.passes.fold import fold

LAYERS = {1: DclsConv1d, 2: DclsConv2d, 3: DclsConv3d}
CASES: dict[str, tuple[int, dict[str, Any], tuple[int, ...]]] = {
    "a position for each channel": (2, {"elements": 9, "window": 17, "sharing": "full", "padding": 8}, (2, 6, 15, 14)),
    "shared": (2, {"elements": 7, "window": (13, 9), "sharing": "tap", "padding": (6, 1)}, (1, 6, 15, 19)),
    "gaussian": (
        2,
        {"elements": 5, "window": 25, "sharing": "full", "interpolation": "gaussian", "width": 0.6},
        (1, 6, 30, 29),
    ),
    "circular": (1, {"elements": 5, "window": 33, "padding": 16, "padding_mode": "circular"}, (2, 6, 40)),
    "no batch, same": (1, {"elements": 5, "window": 32, "padding": "same"}, (6, 40)),
    "two outputs each": (2, {"elements": 4, "window": 11, "sharing": "full", "out_channels": 12}, (2, 6, 15, 15)),
    "two outputs each, in boxes": (2, {"elements": 2, "window": 15, "sharing": "tap", "out_channels": 12}, (2, 6, 17, 17)),
    "two outputs each, along a row": (1, {"elements": 2, "window": 65, "sharing": "tap", "out_channels": 12}, (2, 6, 80)),
    "no bias": (3, {"elements": 4, "window": 7, "bias": False}, (1, 6, 9, 8, 9)),
}


def layer(case: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, torch.Tensor]:
    ndim, options, shape = CASES[case]
    torch.manual_seed(0)
    options = {"out_channels": 6, "groups": 6, "position_init": "uniform", **options}
    return LAYERS[ndim](6, **options, dtype=dtype), torch.randn(shape, dtype=dtype)


def compiled(model: nn.Module, **options: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, **options)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_same_outputs(case: str, backend: str) -> None:
    model, x = layer(case)
    folded: Any = fold(model, x, forms={"(root)": "sparse"})
    assert (folded["(root)"].code, folded.check.ok) == ("sparse", True)
    assert folded.model.cells.shape[1] < folded.model.weight[0].numel()
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(folded.model(x), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(compiled(folded.model, backend=backend)(x), expected, rtol=1e-12, atol=1e-12)


def test_its_compiled_form_visits_no_more() -> None:
    model, x = layer("a position for each channel")
    folded: Any = fold(model, x, forms={"(root)": "sparse"}).model
    folded.weight.data.fill_(1.0)  # what is not visited doesn't count
    with torch.no_grad():
        middle = compiled(folded, backend="eager")(torch.ones(1, 6, 40, 40, dtype=x.dtype))[0, :, 20, 20] - folded.bias
    torch.testing.assert_close(middle, (folded.cells < folded.weight[0].numel()).sum(1).to(middle.dtype))


def test_gradients_of_the_compiled_form() -> None:
    model, x = layer("two outputs each")
    folded: Any = fold(model, x, forms={"(root)": "sparse"}).model
    out = compiled(folded, backend="aot_eager")(x)
    upstream = torch.randn_like(out)
    found = torch.autograd.grad(out, [folded.weight, folded.bias], upstream)
    expected = torch.autograd.grad(folded(x), [folded.weight, folded.bias], upstream)
    torch.testing.assert_close(found[0], expected[0] * (folded.weight != 0), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-10, atol=1e-10)


def test_norms_go_into_it() -> None:
    conv, x = layer("shared")
    model = nn.Sequential(conv, nn.BatchNorm2d(6, dtype=x.dtype)).eval()
    for tensor in (*model[1].parameters(), *model[1].buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    folded = fold(model, x, forms={"0": "sparse"}, batch_norm=True)
    assert [norm.code for norm in folded.norms] == ["folded"]
    torch.testing.assert_close(folded.model(x), model(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(compiled(folded.model, backend="eager")(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_adds_in_float32(dtype: torch.dtype) -> None:
    model, x = layer("a position for each channel", torch.float32)
    folded = fold(model, x, forms={"(root)": "sparse"}).model
    expected = folded(x)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        out = compiled(folded, backend="eager")(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, rtol=2e-2, atol=2e-2)


def test_is_an_ordinary_layer_in_eager_mode_and_export() -> None:
    model, x = layer("shared")
    folded = fold(model, x, forms={"(root)": "sparse"}).model
    assert isinstance(folded, nn.Conv2d)
    assert isinstance(folded, SparseConv)
    assert set(folded.state_dict()) == {"weight", "bias", "cells"}
    for again in (copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))):
        assert torch.equal(again(x), folded(x))
    for strict in (False, True):
        program = torch.export.export(folded, (x,), strict=strict)
        called = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
        assert [c for c in called if "conv" in c]
        assert not [c for c in called if "index" in c]
