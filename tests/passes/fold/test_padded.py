"""Folded layers whose pads are uneven: torch's own classes, so that tools that go by them find what they know."""

from __future__ import annotations

import copy
import pickle
from typing import Any, cast

import pytest
import torch
from moved import worst
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import ccrewrite
from ccrewrite.folded.padded import Crop
from ccrewrite.ir.sites import ROOT
from ccrewrite.nn import Sampling
from ccrewrite.passes.fold import fold

CONVS = {
    "1d": (nn.Conv1d(4, 4, 3, stride=2, padding=1), (11,), ["pad", "conv"]),
    "2d": (nn.Conv2d(4, 4, 3, stride=2, padding=1), (11, 12), ["pad", "conv"]),
    "3d": (nn.Conv3d(4, 4, 3, stride=2, padding=1), (7, 8, 9), ["pad", "conv"]),
    "reflect": (nn.Conv2d(4, 4, 3, stride=2, padding=1, padding_mode="reflect"), (11, 12), ["border", "pad", "conv"]),
    "up": (nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1), (6, 7), ["conv", "crop"]),
    "up, extra": (nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1), (6, 7), ["conv", "crop"]),
    "up, 1d": (nn.ConvTranspose1d(4, 4, 4, stride=2, padding=1), (9,), ["conv", "crop"]),
}


def moved(model: nn.Module, x: Tensor) -> nn.Module:
    """``model`` rewritten, every layer one whole sample and a bit further along each axis: so its pads become uneven."""
    rewritten = ccrewrite.rewrite(model, x).model
    with torch.no_grad():
        for module in rewritten.modules():
            if isinstance(module, Sampling):
                cast(Any, module).shift.fill_(1.0)
    return rewritten


@pytest.mark.parametrize("name", CONVS)
def test_torchs_own_layers(name: str) -> None:
    conv, size, parts = CONVS[name]
    original, x = copy.deepcopy(conv).double(), torch.randn(2, 4, *size, dtype=torch.float64)
    rewritten = moved(original, x)
    result = fold(rewritten, x, forms="estimated")
    folded: Any = result.model
    assert result[ROOT].code == "padded"
    assert [n for n, _ in folded.named_children()] == parts
    assert type(folded.conv) is type(conv), "exactly torch's"
    assert all(type(m).__module__.startswith("torch.nn") or type(m) is Crop for m in folded)
    assert folded.weight is folded.conv.weight
    assert folded.bias is folded.conv.bias
    assert folded.stride == conv.stride, "for code that reads it"
    assert worst(folded, rewritten, x) <= 1e-12
    assert worst(folded, rewritten, x[0]) <= 1e-12, "without a batch"
    larger = torch.randn(1, 4, *(n + 3 for n in size), dtype=torch.float64)
    assert worst(folded, rewritten, larger) <= 1e-12
    for twin in (copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))):
        assert torch.equal(twin(x), folded(x))
    graph = torch.fx.symbolic_trace(nn.Sequential(folded))
    assert any(node.op == "call_module" and node.target == "0.conv" for node in graph.graph.nodes)
    assert torch.equal(graph(x), folded(x))


def test_an_output_size_that_is_asked_for_in_the_call() -> None:
    conv, x = nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1).double(), torch.randn(2, 4, 6, 7, dtype=torch.float64)
    rewritten = moved(conv, x)
    folded = fold(rewritten, x, forms="estimated").model
    for size in ([11, 13], [12, 14], [12, 13]):
        expected = rewritten(x, output_size=size)
        assert list(expected.shape[2:]) == size
        torch.testing.assert_close(folded(x, output_size=size), expected, rtol=1e-12, atol=1e-12)


def test_the_layer_stays_the_same_object_with_its_hooks() -> None:
    seen: list[tuple[int, ...]] = []
    model, x = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, padding=1)), torch.randn(1, 4, 9, 9)
    model.again = model[0]
    model[0].register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    folded: Any = fold(moved(model, x), x, forms="estimated").model
    assert folded.again is folded[0]
    seen.clear()
    folded[0](x)
    assert seen == [(1, 4, 9, 9)], "what the layer is given, and not what is padded"


def test_a_layer_with_submodules_keeps_its_weight() -> None:
    conv, x = nn.Conv2d(4, 4, 3, stride=2, padding=1), torch.randn(1, 4, 9, 9)
    conv.note = nn.Identity()
    assert fold(moved(conv, x), x, forms="estimated")[ROOT].code == "geometry"


@pytest.mark.parametrize("layer", ["2d", "up"])
def test_batch_norms_are_folded_by_us_and_by_torch(layer: str) -> None:
    conv, size, _ = CONVS[layer]
    x = torch.randn(4, 4, *size, dtype=torch.float64)
    model = nn.Sequential(copy.deepcopy(conv), nn.BatchNorm2d(4)).double()
    model(x)  # statistics
    rewritten = moved(model.eval(), x)
    result = fold(rewritten, x, batch_norm=True, forms="estimated")
    assert [(n.name, n.code, n.conv) for n in result.norms] == [("1", "folded", "0.conv")]
    assert worst(result.model, rewritten, x) <= 1e-10
    theirs: Any = fold(rewritten, x, forms="estimated").model
    theirs[0].conv = fuse_conv_bn_eval(theirs[0].conv, theirs[1], transpose=layer == "up")
    theirs[1] = nn.Identity()
    assert worst(theirs, rewritten, x) <= 1e-10


def test_a_hook_on_the_layer_sees_what_is_before_the_norm() -> None:
    x = torch.randn(4, 4, 9, 9)
    model = nn.Sequential(nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1), nn.BatchNorm2d(4)).eval()
    model[0].register_forward_pre_hook(lambda module, args: None)
    assert [n.code for n in fold(moved(model, x), x, batch_norm=True, forms="estimated").norms] == ["hooked"]
