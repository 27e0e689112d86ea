"""Derivatives of any order, and moved geometry against a slow direct definition."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from family_layers import LAYERS
from geometries import CONVS, TRANSPOSED, Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ccrewrite import nn as ccnn
from ccrewrite.families.dcls.sampling import SHARINGS
from ccrewrite.ir.geometry import ConvGeometry

F64 = torch.float64


def hat(z: float) -> float:
    return max(0.0, 1 - abs(z))


def cubic(z: float) -> float:
    """Keys 1981, a = -1/2."""
    z = abs(z)
    if z < 1:
        return 1.5 * z**3 - 2.5 * z**2 + 1
    return -0.5 * z**3 + 2.5 * z**2 - 4 * z + 2 if z < 2 else 0.0


def dense(case: Case, kernel: Tensor, margin: tuple[int, ...]) -> Tensor:
    """The output for a dense ``kernel`` whose window exceeds the convolution's extent by ``margin`` on both sides."""
    conv, g = case.conv, ConvGeometry.from_module(case.conv)
    native = case.native()
    if not g.transposed:
        pads = [p for pair in reversed(g.pads) for p in pair]
        functions = torch.conv1d, torch.conv2d, torch.conv3d
        x = nn.functional.pad(case.batch, pads, mode="constant" if conv.padding_mode == "zeros" else conv.padding_mode)
        x = nn.functional.pad(x, [m for m in reversed(margin) for _ in range(2)])
        return functions[g.ndim - 1](x, kernel, conv.bias, g.stride, 0, 1, g.groups).view(native.shape)
    # Each input sample puts a scaled copy of the kernel into the output; one at a time.
    x = case.batch
    sizes = native.shape[-g.ndim :]
    out = torch.zeros(len(x), g.out_channels, *sizes, dtype=F64)
    rows, columns = g.in_channels // g.groups, g.out_channels // g.groups
    for place in itertools.product(*map(range, x.shape[2:])):
        for cell in itertools.product(*map(range, kernel.shape[2:])):
            corners = zip(place, cell, g.stride, g.pads, margin, sizes, strict=True)
            target = [i * s + c - m - low for i, c, s, (low, _), m, _ in corners]
            if all(0 <= t < n for t, n in zip(target, sizes, strict=True)):
                weights = kernel[(..., *cell)].view(g.groups, rows, columns)
                values = torch.einsum("ngr,grc->ngc", x[(..., *place)].view(-1, g.groups, rows), weights)
                out[(..., *target)] += values.reshape(len(x), -1)
    if conv.bias is not None:
        out += conv.bias.view(-1, *(1,) * g.ndim)
    return out.view(native.shape)


def dcls_kernel(sampling: Any, weight: Tensor) -> Tensor:
    """``K[s] = sum_t w_t prod_axis max(0, 1 - |s - p_t|)``, each position kept inside the window."""
    out, inner = weight.shape[:2]
    kernel = torch.zeros(out, inner, *sampling.window, dtype=F64)
    rows, columns = sampling.offset.shape[1:3]
    for o, i in itertools.product(range(out), range(inner)):
        for taps in itertools.product(*map(range, sampling.kernel_size)):
            position = [m + d * float(t) for m, d, t in zip(sampling.margin, sampling.dilation, taps, strict=True)]
            for a, axis in enumerate(sampling.axes):
                position[axis] += float(sampling.offset[(a, o * rows // out, i * columns // inner, *taps)])
                position[axis] = min(max(position[axis], 0.0), sampling.window[axis] - 1.0)
            for cell in itertools.product(*map(range, sampling.window)):
                share = math.prod(hat(s - p) for s, p in zip(cell, position, strict=True))
                kernel[(o, i, *cell)] += float(weight[(o, i, *taps)]) * share
    return kernel


def cc_kernel(sampling: Any, weight: Tensor) -> Tensor:
    """``K[s] = sum_t w_t prod_axis (basis(z) + cos^2(pi z / 4) residual_t(z))`` with ``z = s - d t - shift``."""
    kernel = torch.zeros(*weight.shape[:2], *sampling.window, dtype=F64)
    basis = {"linear": hat, "cubic": cubic}[sampling.basis]

    def phi(axis: int, t: int, cell: int) -> float:
        z = cell - sampling.margin[axis] - sampling.dilation[axis] * t
        if axis not in sampling.axes:
            return basis(z)
        index = sampling.axes.index(axis)
        z -= min(max(float(sampling.shift[index]), -0.5), 0.5)
        if abs(z) >= 2:
            return basis(z)
        network = sampling.residual[index]
        hidden = torch.sin(network.inner.weight[:, 0] * z + network.inner.bias)
        return basis(z) + math.cos(math.pi * z / 4) ** 2 * float(network.last.weight[t] @ hidden + network.last.bias[t])

    for taps in itertools.product(*map(range, sampling.kernel_size)):
        for cell in itertools.product(*map(range, sampling.window)):
            share = math.prod(phi(a, t, c) for a, (t, c) in enumerate(zip(taps, cell, strict=True)))
            kernel[(..., *cell)] += weight[(..., *taps)] * share
    return kernel


def moved(layer: Any, scale: float = 1.0) -> Any:
    with torch.no_grad():
        for p in layer.sampling.movers():
            p += scale * torch.randn_like(p)
    return layer


@settings(max_examples=60)
@given(cases(transposed=False, taps=2), st.sampled_from(SHARINGS), st.integers(0, 2))
@torch.no_grad()
def test_moved_taps_against_the_definition(case: Case, sharing: str, reach: int) -> None:
    layer: Any = moved(LAYERS[ccnn.DclsSampling, type(case.conv)].from_conv(case.conv, sharing=sharing, reach=reach))
    expected = dense(case, dcls_kernel(layer.sampling, case.conv.weight), layer.sampling.margin)
    torch.testing.assert_close(layer(case.input), expected, rtol=0, atol=1e-11)


@settings(max_examples=40)
@given(cases(), st.sampled_from(["linear", "cubic"]), st.integers(0, 2))
@torch.no_grad()
def test_moved_continuous_kernels_against_the_definition(case: Case, basis: str, reach: int) -> None:
    layer: Any = moved(LAYERS[ccnn.CCSampling, type(case.conv)].from_conv(case.conv, basis=basis, hidden=2, reach=reach), 0.3)
    expected = dense(case, cc_kernel(layer.sampling, case.conv.weight), layer.sampling.margin)
    torch.testing.assert_close(layer(case.input, *case.extra), expected, rtol=0, atol=1e-11)


def small(ndim: int, transposed: bool) -> tuple[Any, Tensor]:
    options: dict[str, Any] = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2, "dtype": F64}
    conv = (TRANSPOSED if transposed else CONVS)[ndim - 1](2, 4, (3, 2, 2)[:ndim], **options)  # pyright: ignore[reportArgumentType]
    return conv, torch.randn(1, 2, *(3, 3, 2)[:ndim] if transposed else (7, 5, 4)[:ndim], dtype=F64)


def function_of(layer: Any, x: Tensor) -> tuple[Any, tuple[Tensor, ...]]:
    names, values = zip(*layer.named_parameters(), strict=True)

    def function(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    return function, (x.requires_grad_(), *(v.detach().requires_grad_() for v in values))


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_dcls_derivatives_away_from_kinks(ndim: int) -> None:
    conv, x = small(ndim, transposed=False)
    layer: Any = LAYERS[ccnn.DclsSampling, type(conv)].from_conv(conv, sharing="group", reach=1)
    with torch.no_grad():
        layer.sampling.offset.uniform_(0.15, 0.85).mul_(torch.randn_like(layer.sampling.offset).sign())
    function, values = function_of(layer, x)
    # Fast mode: random projections of both Jacobians instead of all their entries.
    assert torch.autograd.gradcheck(function, values, fast_mode=ndim > 1)
    assert torch.autograd.gradgradcheck(function, values, fast_mode=ndim > 1)


@pytest.mark.parametrize("basis", ["cubic", "linear"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_cc_derivatives_away_from_kinks(ndim: int, transposed: bool, basis: str) -> None:
    conv, x = small(ndim, transposed)
    layer: Any = moved(LAYERS[ccnn.CCSampling, type(conv)].from_conv(conv, basis=basis, hidden=2), 0.3)
    with torch.no_grad():
        layer.sampling.shift.copy_(torch.tensor([0.2, -0.3, 0.1])[:ndim])
    function, values = function_of(layer, x)
    # Fast mode: random projections of both Jacobians instead of all their entries.
    assert torch.autograd.gradcheck(function, values, fast_mode=ndim > 1)
    assert torch.autograd.gradgradcheck(function, values, fast_mode=ndim > 1)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_shift_moves_the_picture(axis: int, sign: int) -> None:
    """Every node moved by half a sample: the convolution of what lies half a sample further along."""
    conv = nn.Conv2d(1, 1, 3, dtype=F64)
    layer: Any = ccnn.CCConv2d.from_conv(conv, basis="linear")
    with torch.no_grad():
        layer.sampling.shift[axis] = sign * 0.5
        x = torch.randn(1, 1, 9, 9, dtype=F64)
        half = (x + x.roll(-sign, 2 + axis)) / 2
        inner = (..., slice(1, -1), slice(1, -1))
        torch.testing.assert_close(layer(x)[inner], conv(half)[inner], rtol=0, atol=1e-12)


def test_a_shift_beyond_half_a_sample_stops_there() -> None:
    conv = nn.Conv1d(1, 1, 3, stride=2, dtype=F64)
    layer: Any = ccnn.CCConv1d.from_conv(conv)
    x = torch.randn(1, 1, 9, dtype=F64)
    with torch.no_grad():
        layer.sampling.shift.fill_(0.5)
        at_the_border = layer(x)
        layer.sampling.shift.fill_(3.0)
        assert torch.equal(layer(x), at_the_border)


def test_a_shift_at_its_border_can_come_back() -> None:
    conv = nn.Conv1d(1, 1, 3, stride=2, dtype=F64)
    layer: Any = ccnn.CCConv1d.from_conv(conv)
    x = torch.randn(1, 1, 9, dtype=F64)
    gradients = []
    for sign in (1, -1):
        layer.zero_grad()
        with torch.no_grad():
            layer.sampling.shift.fill_(0.7)
        (sign * layer(x).sum()).backward()
        gradients.append(float(layer.sampling.shift.grad))
    assert any(g > 0 for g in gradients)  # descent lowers it


def test_dcls_taps_stay_in_the_window_and_come_back() -> None:
    conv = nn.Conv1d(1, 1, 3, dilation=2, dtype=F64)
    layer: Any = ccnn.DclsConv1d.from_conv(conv)
    x = torch.randn(1, 1, 9, dtype=F64)
    with torch.no_grad():
        layer.sampling.offset.fill_(100.0)
        assert layer.sampling.positions().max() == 2
    gradients = []
    for sign in (1, -1):
        layer.zero_grad()
        (sign * layer(x).sum()).backward()
        gradients.append(layer.sampling.offset.grad.flatten())
    assert all(a > 0 or b > 0 for a, b in zip(*gradients, strict=True))
    assert not any(a < 0 or b < 0 for a, b in zip(*gradients, strict=True))
