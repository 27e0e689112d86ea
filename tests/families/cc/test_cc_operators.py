"""The form that is compiled: filters along each axis and one product, against the effective kernel, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ccrewrite.families.cc import operators
from ccrewrite.families.cc.sampling import CCSampling
from ccrewrite.ir.calls import CONV, CONV_TRANSPOSE
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.operators import bind

SIZES = (11, 8, 7)
CASES: dict[str, tuple[nn.Module, dict[str, Any]]] = {
    "groups": (nn.Conv2d(4, 6, 3, 2, 1, groups=2), {}),
    "pointwise": (nn.Conv2d(3, 5, 1, 2), {}),
    "uneven": (nn.Conv3d(2, 3, (3, 2, 1), (2, 2, 1), (1, 0, 0)), {}),
    "a plain axis": (nn.Conv2d(3, 2, (5, 1), (3, 1)), {"axes": (0,)}),
    "dilated": (nn.Conv1d(3, 5, 3, 3, 2, dilation=2), {}),
    "same": (nn.Conv1d(3, 5, 4, padding="same"), {}),
    "one residual": (nn.Conv1d(3, 4, 4, 2, 1), {"sharing": "axis"}),
    "within its extent": (nn.Conv2d(2, 4, 3, 2, 1), {"reach": 0}),
    "a network": (nn.Conv2d(2, 4, 5, 2, 2), {"kernel": "mlp"}),
    "transposed": (nn.ConvTranspose2d(3, 5, 2, 2), {}),
    "transposed, groups": (nn.ConvTranspose3d(4, 6, (3, 2, 3), (2, 2, 1), 1, output_padding=(1, 0, 0), groups=2), {}),
    "transposed, gaps": (nn.ConvTranspose1d(3, 5, 2, 7, dilation=2), {}),
    "transposed, dilated": (nn.ConvTranspose1d(3, 5, 4, 3, 2, dilation=5, output_padding=4), {}),
}


def moved(geometry: ConvGeometry, options: dict[str, Any]) -> CCSampling:
    sampling = CCSampling(geometry, dtype=torch.float64, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for mover in sampling.movers():
            mover += 0.2 * torch.randn(mover.shape, generator=generator, dtype=torch.float64)
    return sampling


def both(name: str, batch: tuple[int, ...] = (2,)) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(By filters, by the effective kernel, what can be differentiated by)."""
    torch.manual_seed(0)
    conv: Any
    conv, options = CASES[name]
    conv = conv.double()
    geometry = ConvGeometry.from_module(conv)
    sampling = moved(geometry, options)
    x = torch.randn(*batch, geometry.in_channels, *SIZES[: geometry.ndim], dtype=torch.float64, requires_grad=True)
    names = CONV_TRANSPOSE if geometry.transposed else CONV
    call = bind(geometry.transposed, geometry.ndim, (), {n: getattr(conv, n) for n in names})
    found = operators.cc_conv(x, conv.weight, conv.bias, sampling.along(), sampling.margin, call)
    expected = super(CCSampling, sampling).moved(x, conv.weight, conv.bias, call)
    return found, expected, [x, *conv.parameters(), *sampling.parameters()]


@pytest.mark.parametrize("name", CASES)
def test_computes_what_the_effective_kernel_does(name: str) -> None:
    found, expected, tensors = both(name)
    torch.testing.assert_close(found, expected)
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = [torch.autograd.grad(out, tensors, direction, retain_graph=True) for out in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["groups", "transposed"])
def test_gradients_of_some(name: str) -> None:
    found, expected, tensors = both(name)
    for tensor in tensors:
        one, other = (torch.autograd.grad(out.square().sum(), tensor, retain_graph=True)[0] for out in (found, expected))
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["groups", "transposed"])
def test_without_a_batch(name: str) -> None:
    found, expected, _ = both(name, ())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["uneven", "transposed, groups"])
def test_what_torch_asks_of_an_operator(name: str) -> None:
    seen: list[Any] = []
    operator = torch.ops.ccrewrite.cc_conv

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is operator.default:
                seen.append(args)
            return func(*args, **(kwargs or {}))

    with Watching():
        both(name)
    tensors = [
        [t.detach().requires_grad_() for t in a] if isinstance(a, list) and isinstance(a[0], Tensor) else a for a in seen[0]
    ]
    arguments = tuple(t.detach().requires_grad_() if isinstance(t, Tensor) else t for t in tensors)
    torch.library.opcheck(
        operator.default, arguments, test_utils=("test_schema", "test_faketensor", "test_autograd_registration")
    )
