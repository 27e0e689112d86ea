"""Folding taps that lie far apart into a 1x1 convolution and shifted sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ccrewrite.nn import DclsConv1d, DclsConv2d, DclsConv3d
from ccrewrite.passes.fold import fold

DCLS = {nn.Conv1d: DclsConv1d, nn.Conv2d: DclsConv2d, nn.Conv3d: DclsConv3d}
CASES = {
    "shifts first": (nn.Conv2d, (64, 64, 3), {"dilation": 6, "padding": 6}, (2, 64, 15, 14)),
    "products first": (nn.Conv2d, (256, 64, 3), {"dilation": 6, "padding": 6}, (1, 256, 9, 15)),
    "stride": (nn.Conv2d, (64, 64, 3), {"dilation": (6, 5), "padding": 4, "stride": (2, 3)}, (2, 64, 17, 16)),
    "circular, same": (nn.Conv1d, (64, 64, 5), {"dilation": 16, "padding": "same", "padding_mode": "circular"}, (2, 64, 70)),
    "no batch": (nn.Conv1d, (256, 64, 5), {"dilation": 16}, (256, 90)),
    "no bias": (nn.Conv3d, (128, 64, 2), {"dilation": 7, "bias": False}, (1, 128, 8, 9, 8)),
}


def rewritten(case: str, **options_of_sampling: object) -> tuple[nn.Module, torch.Tensor]:
    kind, args, options, shape = CASES[case]
    torch.manual_seed(0)
    conv, x = kind(*args, **options, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    model = DCLS[kind].from_conv(conv, **options_of_sampling)
    with torch.no_grad():
        model.sampling.offset.uniform_(-1.5, 1.5)
        model.sampling.offset[..., 0] = model.sampling.offset[..., 0].round()
    return model, x


@pytest.mark.parametrize("case", CASES)
def test_same_outputs(case: str) -> None:
    model, x = rewritten(case)
    folded = fold(model, x)
    assert folded["(root)"].code == "shifted"
    assert folded.check.ok
    torch.testing.assert_close(folded.model(x), model(x), rtol=1e-12, atol=1e-12)
    assert isinstance(folded.model, CASES[case][0])
    assert folded.model.reads_input == (case not in ("products first", "no batch"))


@pytest.mark.parametrize("case", ["shifts first", "products first", "stride"])
@torch.no_grad()
def test_what_is_compiled_computes_the_same(case: str) -> None:
    model, x = rewritten(case)
    folded = fold(model, x, forms={"(root)": "shifted"}).model
    traced = torch.compile(folded, backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(x), model(x), rtol=1e-12, atol=1e-12)


def test_with_a_reach_of_more_than_the_extent() -> None:
    model, x = rewritten("shifts first", reach=2)
    folded = fold(model, x)
    assert folded["(root)"].code == "shifted"
    torch.testing.assert_close(folded.model(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_gradients_and_transforms(case: str) -> None:
    """Where patches can't be written in place."""
    model, x = rewritten(case)
    folded = fold(model, x, forms={"(root)": "shifted"}).model
    found = []
    for layer in (folded, model):
        given = x.clone().requires_grad_()
        out = layer(given.sin())
        found.append((out, *torch.autograd.grad(out.square().sum(), given)))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)
    several = torch.stack([x, x.flip(-1)])
    with torch.no_grad():
        each = torch.vmap(folded)(several)
        torch.testing.assert_close(each, torch.stack([folded(one) for one in several]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", [case for case in CASES if case != "circular, same"])
def test_exported(case: str) -> None:
    """Read between samples by depthwise convolutions, and nothing is interpolated; the batch stays open."""
    model, x = rewritten(case)
    folded: Any = fold(model, x, forms={"(root)": "shifted"}).model.eval()
    batched = x.dim() == len(folded.window) + 2
    shapes = ({0: torch.export.Dim.DYNAMIC},) if batched else None
    program = torch.export.export(folded, (torch.cat([x, x]) if batched else x,), dynamic_shapes=shapes, strict=False)
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    between = [tap for tap in folded.taps if any(tap.fractions)]
    assert between
    assert sum("conv" in name for name in called) == len(between) + 1
    assert not [name for name in called if "lerp" in name]
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-12, atol=1e-12)
