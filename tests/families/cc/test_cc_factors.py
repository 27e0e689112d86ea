"""Factors of all axes at once: as one by one, with the same derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ccrewrite.families.cc.factors import factors
from ccrewrite.families.cc.profile import factor
from ccrewrite.nn import CCConv2d, CCConv3d, CCSampling

CASES: dict[str, tuple[nn.Module, dict[str, Any]]] = {
    "alike": (nn.Conv2d(2, 2, 3, 2), {}),
    "shapes that differ": (nn.Conv3d(2, 2, (2, 3, 2), 2, dilation=(1, 2, 1)), {}),
    "one residual": (nn.Conv2d(2, 2, 3, 2), {"sharing": "axis"}),
    "a plain axis": (nn.Conv2d(2, 2, (3, 1), (2, 1)), {"axes": (0,)}),
    "cut at the extent": (nn.Conv2d(2, 2, 3, 2), {"reach": 0}),
    "linear": (nn.Conv2d(2, 2, 3, 2), {"basis": "linear"}),
    "a network": (nn.Conv2d(2, 2, 3, 2), {"kernel": "mlp"}),
}


def moved(name: str) -> CCSampling:
    conv, options = CASES[name]
    torch.manual_seed(0)
    layer = (CCConv2d if isinstance(conv, nn.Conv2d) else CCConv3d).from_conv(conv, **options).double()
    with torch.no_grad():
        for parameter in layer.sampling.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        if layer.sampling.shift is not None:
            layer.sampling.shift[0] = 0.7  # beyond what a shift may be
    return layer.sampling


def both(s: CCSampling) -> tuple[list[Tensor], list[Tensor]]:
    each = list(zip(s.along(), s.kernel_size, s.dilation, s.margin, strict=True))
    together = factors(s.along(), s.kernel_size, s.dilation, s.margin, range(s.ndim))
    return [together[a] for a in range(s.ndim)], [factor(*one, torch.device("cpu")) for one in each]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("sign", [1, -1])
def test_as_one_by_one(name: str, sign: int) -> None:
    s = moved(name)
    results = both(s)
    arrived = [sign * torch.randn_like(each) for each in results[0]]
    learned = [a for a, along in enumerate(s.along()) if along.layers]
    gradients = [
        torch.autograd.grad([found[a] for a in learned], list(s.parameters()), [arrived[a] for a in learned], allow_unused=True)
        for found in results
    ]
    for one, other in zip((*results[0], *gradients[0]), (*results[1], *gradients[1]), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_second_derivatives() -> None:
    s = moved("alike")
    seconds: list[list[Tensor]] = []
    for found in both(s):
        total = torch.stack([each.square().sum() for each in found]).sum()
        first = torch.autograd.grad(total, list(s.parameters()), create_graph=True)
        seconds.append(list(torch.autograd.grad(sum(g.square().sum() for g in first), list(s.parameters()))))  # pyright: ignore[reportArgumentType, reportCallIssue]
    for one, other in zip(*seconds, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_half_types() -> None:
    s = moved("alike").to(torch.bfloat16)
    for one, other in zip(*both(s), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other)
    torch.stack([each.sum() for each in both(s)[0]]).sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in s.parameters())
