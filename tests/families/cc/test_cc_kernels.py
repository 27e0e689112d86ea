"""CC layers from scratch, the paper's own kernel, and the penalty on what samples can't carry."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.families.cc.sampling import nyquist_penalty
from ccrewrite.nn import CCConv1d, CCConv2d, CCConv3d, CCConvTranspose1d, CCConvTranspose2d, CCConvTranspose3d

# Dynamo's, of autograd functions.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
F64 = torch.float64
LAYERS = (CCConv1d, CCConv2d, CCConv3d, CCConvTranspose1d, CCConvTranspose2d, CCConvTranspose3d)


def psi(network: Any, u: float, extent: int) -> Tensor:
    """The network's outputs at ``u``, in plain words."""
    hidden = torch.tensor([u], dtype=F64)
    for layer in (network.inner, network.middle):
        hidden = torch.sin(layer.weight @ hidden + layer.bias)
    beyond = min(max(abs(u) - (extent - 1) / 2, 0.0), 1.0)
    return math.cos(math.pi * beyond / 2) ** 2 * (network.last.weight @ hidden + network.last.bias)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("kernel", ["nodes", "mlp"])
def test_from_scratch_starts_as_torchs_layer(kind: Any, kernel: str) -> None:
    torch.manual_seed(1)
    layer = kind(2, 4, 3, stride=2, padding=1, groups=2, kernel=kernel)
    torch.manual_seed(1)
    plain = kind.torch_class(2, 4, 3, stride=2, padding=1, groups=2)
    assert torch.equal(layer.weight, plain.weight)
    x = torch.randn(1, 2, *(7,) * len(plain.kernel_size))
    torch.testing.assert_close(layer(x), plain(x), atol=5e-5, rtol=0)
    assert isinstance(layer, kind.torch_class)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    layer.reset_parameters()
    assert not torch.equal(layer.weight, plain.weight)


@pytest.mark.parametrize(("taps", "dilation"), [(1, 1), (2, 1), (3, 1), (3, 2), (5, 1), (7, 1)])
def test_a_network_fitted_to_a_trained_filter_says_how_well(taps: int, dilation: int) -> None:
    conv = nn.Conv2d(3, 4, taps, 2, 2, dilation)
    layer = CCConv2d.from_conv(conv, kernel="mlp")
    error = layer.sampling.fit_error(conv.weight)
    assert error < 5e-5
    x = torch.randn(1, 3, 20, 20)
    assert float((layer(x) - conv(x)).detach().abs().max()) <= 50 * error + 1e-6
    with torch.no_grad():
        layer.sampling.network[0].last.bias += 0.1  # pyright: ignore[reportAttributeAccessIssue, reportOperatorIssue]
    assert layer.sampling.fit_error(conv.weight) > 0.05
    assert CCConv2d.from_conv(conv).sampling.fit_error(conv.weight) == 0


@torch.no_grad()
def test_the_network_is_the_filter() -> None:
    layer: Any = CCConv2d(2, 3, (3, 2), 2, dilation=(1, 2), kernel="mlp", hidden=8, dtype=F64, bias=False)
    for p in layer.sampling.parameters():
        p += 0.3 * torch.randn_like(p)
    kernel = layer.sampling.kernel(layer.weight)
    assert kernel.shape == (3, 2, 3, 3)
    rows, columns = layer.sampling.network
    for y, x in itertools.product(range(3), range(3)):
        expected = torch.einsum("oiyx,y,x->oi", layer.weight, psi(rows, y - 1.0, 3), psi(columns, x - 1.0, 3))
        torch.testing.assert_close(kernel[..., y, x], expected, rtol=0, atol=1e-13)
    image = torch.randn(1, 2, 9, 9, dtype=F64)
    torch.testing.assert_close(layer(image), nn.functional.conv2d(image, kernel, stride=2), rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("asked", [3, 7, 13, 33])
def test_the_network_at_other_sizes_is_the_definition(asked: int) -> None:
    layer: Any = CCConv1d(1, 1, 3, 2, 1, kernel="mlp", hidden=8, dtype=F64, bias=False)
    for p in layer.sampling.parameters():
        p += 0.1 * torch.randn_like(p)
    layer.output_size = asked
    x = torch.randn(18, dtype=F64)
    found, (network,) = layer(x[None, None])[0, 0], layer.sampling.network
    step = 2 * 9 / asked
    rho = max(1.0, 9 / asked)

    def keys(z: float) -> float:
        z = abs(z)
        return 1.5 * z**3 - 2.5 * z**2 + 1 if z < 1 else -0.5 * z**3 + 2.5 * z**2 - 4 * z + 2 if z < 2 else 0.0

    for y in range(asked):
        centre = step * y + (step - 2) / 2
        total = torch.zeros((), dtype=F64)
        for t in range(3):
            lattice = range(-60, 80)
            values = [psi(network, (i - centre) / rho, 3)[t] / rho for i in lattice]
            bumps = [keys((i - centre) / rho - (t - 1)) for i in lattice]
            missing = sum(psi(network, float(n), 3)[t] for n in (-1, 0, 1)) - sum(values)
            for i, value, bump in zip(lattice, values, bumps, strict=True):
                if 0 <= i < 18:
                    total += layer.weight[0, 0, t] * (value + missing * bump / sum(bumps)) * x[i]
        assert abs(float(found[y] - total)) < 1e-12


def test_networks_learn_travel_and_export() -> None:
    layer: Any = CCConv2d(2, 3, 3, stride=2, kernel="mlp", hidden=6, dtype=F64)
    layer.scale = 0.7
    x = torch.randn(1, 2, 12, 11, dtype=F64)
    names = [n for n, _ in layer.named_parameters()]

    def call(*values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, tuple(layer.parameters()), atol=1e-7)
    gradients = torch.autograd.grad(call(*layer.parameters()).square().sum(), list(layer.parameters()))
    assert all(g.abs().max() > 0 for g in gradients)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.fx.symbolic_trace(nn.Sequential(layer))):
        assert torch.equal(twin(x), layer(x))
    h = torch.export.Dim("h", min=16, max=300)
    program = torch.export.export(nn.Sequential(layer), (torch.randn(1, 2, 20, 11, dtype=F64),), dynamic_shapes=({2: h},))
    x = torch.randn(1, 2, 45, 11, dtype=F64)
    torch.testing.assert_close(program.module()(x), layer(x), rtol=0, atol=1e-12)
    meta = CCConv2d(2, 3, 3, stride=2, kernel="mlp", device="meta")
    assert meta(torch.empty(1, 2, 9, 9, device="meta")).shape == (1, 3, 4, 4)


def test_the_penalty_is_on_what_samples_cannot_carry() -> None:
    model: Any = nn.Sequential(CCConv1d(1, 1, 3, 2, hidden=1, dtype=F64), nn.ReLU())
    assert float(nyquist_penalty(model).detach()) == 0  # nothing learned
    residual = model[0].sampling.residual[0]

    def of(frequency: float) -> float:
        """A residual of so many cycles per sample."""
        with torch.no_grad():
            residual.inner.weight.fill_(2 * math.pi * frequency)
            residual.last.weight.fill_(1.0)
        return float(nyquist_penalty(model).detach())

    slow, fast = of(0.1), of(1.5)
    assert fast > 100 * slow
    nyquist_penalty(model).backward()
    assert float(residual.inner.weight.grad.abs().max()) > 0
    with pytest.raises(InputError, match="no CC layer"):
        nyquist_penalty(nn.Linear(2, 2))


def test_unknown_kernels_are_named() -> None:
    with pytest.raises(InputError, match="kernel must be one of 'nodes', 'mlp', found 'spline'"):
        CCConv2d(1, 1, 3, kernel="spline")
    with pytest.raises(InputError, match="hidden"):
        CCConv2d(1, 1, 3, kernel="mlp", hidden=0)
