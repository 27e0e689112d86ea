"""Layers made of trained convolutions: equal outputs and gradients at the start, and geometry that can move, for any geometry.

The full lane: ``python -m pytest -m slow tests/nn/test_exact.py`` (10,000 geometries).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from family_layers import LAYERS
from geometries import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ccrewrite import nn as ccnn
from ccrewrite.families.dcls.sampling import SHARINGS
from ccrewrite.ir.geometry import ConvGeometry

Layer = Any


def dcls(case: Case, **options: Any) -> Layer:
    return LAYERS[ccnn.DclsSampling, type(case.conv)].from_conv(case.conv, **options)


def cc(case: Case, **options: Any) -> Layer:
    return LAYERS[ccnn.CCSampling, type(case.conv)].from_conv(case.conv, **options)


@st.composite
def layers(draw: st.DrawFn) -> tuple[Case, Layer]:
    if draw(st.booleans()):
        case = draw(cases(transposed=False, taps=2))
        return case, dcls(case, sharing=draw(st.sampled_from(SHARINGS)), reach=draw(st.integers(0, 2)))
    case = draw(cases())
    return case, cc(case, basis=draw(st.sampled_from(["cubic", "linear"])), hidden=draw(st.integers(1, 4)))


def relative_error(found: Tensor, expected: Tensor) -> float:
    scale = float(expected.abs().max())
    difference = float((found - expected).abs().max())
    return difference / scale if scale else difference


def check_exact(case: Case, layer: Layer) -> None:
    conv, x = case.conv, case.input
    with torch.no_grad():
        native = case.native()
        assert torch.equal(layer(x, *case.extra), native)
    given = x.clone().requires_grad_(), x.clone().requires_grad_()
    weights = [p for p in (conv.weight, conv.bias) if p is not None]
    out, expected = layer(given[0], *case.extra), conv(given[1], *case.extra)
    assert out.shape == native.shape
    assert relative_error(out.detach(), native) <= 1e-12
    g = torch.randn_like(native)
    wanted = torch.autograd.grad(expected, (given[1], *weights), g)
    added = dict(layer.sampling.named_parameters())
    found = torch.autograd.grad(out, (given[0], *weights, *added.values()), g)
    for a, b in zip(found[: len(wanted)], wanted, strict=True):
        assert relative_error(a, b) <= 1e-11  # over the largest gradient: sums of some hundred products
    check_start(case, layer, dict(zip(added, found[len(wanted) :], strict=True)), g)


def check_start(case: Case, layer: Layer, found: dict[str, Tensor], g: Tensor) -> None:
    """Gradients of what starts at zero: the definition's, and not zero wherever samples of the input are within reach."""
    dense = dense_gradient(case, layer.sampling.margin, g)
    weight = case.conv.weight.detach()
    if isinstance(layer, ccnn.DclsConv1d | ccnn.DclsConv2d | ccnn.DclsConv3d):
        expected = {"offset": offset_gradient(layer.sampling, weight, dense)}
        zeros = {"offset"}
    else:
        expected = cc_gradients(layer.sampling, weight, dense)
        zeros = {n for n in found if n == "shift" or ".last." in n}
    for name, gradient in found.items():
        if name not in zeros:
            assert not gradient.any()  # it acts through a layer that is still zero
            continue
        assert gradient.isfinite().all()
        scale = max(float(weight.abs().max() * dense.abs().max()), 1e-300)
        assert (gradient - expected[name]).abs().max() / scale <= 1e-10, name
        if case.conv.padding_mode == "zeros":
            live = reached(case, layer, name)
            assert ((gradient.abs() > 1e-12 * scale) == live).all(), (name, gradient, live)


def dense_gradient(case: Case, margin: tuple[int, ...], g: Tensor) -> Tensor:
    """Gradient of the outputs' product with ``g`` for a dense kernel on the window of ``margin`` samples around the extent.

    By torch, and by hand where torch has no call: the same convolution, undilated, of an input padded by hand."""
    conv, geometry = case.conv, ConvGeometry.from_module(case.conv)
    functions = torch.nn.functional
    ndim, x = geometry.ndim, case.batch
    window = [e + 2 * m for e, m in zip(geometry.extent, margin, strict=True)]
    kernel = torch.zeros(*conv.weight.shape[:2], *window, dtype=torch.float64, requires_grad=True)
    g = g.view(-1, *g.shape[-ndim - 1 :])
    if geometry.transposed:
        function = (functions.conv_transpose1d, functions.conv_transpose2d, functions.conv_transpose3d)[ndim - 1]
        out = function(x, kernel, None, conv.stride, 0, 0, conv.groups)
        first = [m + p for m, (p, _) in zip(margin, geometry.pads, strict=True)]
        crop = [(-f, f + want - have) for f, have, want in zip(first, out.shape[2:], g.shape[2:], strict=True)]
        out = functions.pad(out, [n for pair in reversed(crop) for n in pair])
    else:
        function = (functions.conv1d, functions.conv2d, functions.conv3d)[ndim - 1]
        pads = [p for pair in reversed(geometry.pads) for p in pair]
        x = functions.pad(x, pads, mode="constant" if conv.padding_mode == "zeros" else conv.padding_mode)
        out = function(x, kernel, None, conv.stride, margin, 1, conv.groups)
    (gradient,) = torch.autograd.grad(out, kernel, g)
    return gradient


def offset_gradient(sampling: Any, weight: Tensor, dense: Tensor) -> Tensor:
    """``dK/d offset = weight (delta(s - p - 1) - delta(s - p + 1)) / 2`` along the moved axis: the mean of both sides, of which
    the outer one is zero at the window's border, where a tap stays in its cell."""
    expected = torch.zeros(sampling.offset.shape, dtype=torch.float64)
    rows, columns = sampling.offset.shape[1:3]
    out, inner = weight.shape[:2]
    for taps in itertools.product(*map(range, sampling.kernel_size)):
        place = [m + d * t for m, d, t in zip(sampling.margin, sampling.dilation, taps, strict=True)]
        for a, axis in enumerate(sampling.axes):
            for side in (1, -1):
                cell = [p + side * (i == axis) for i, p in enumerate(place)]
                cell[axis] = min(max(cell[axis], 0), dense.shape[2 + axis] - 1)
                term = weight[(..., *taps)] * dense[(..., *cell)] * side / 2
                expected[(a, ..., *taps)] += term.view(rows, out // rows, columns, inner // columns).sum((1, 3))
    return expected


def cc_gradients(sampling: Any, weight: Tensor, dense: Tensor) -> dict[str, Tensor]:
    """From ``phi_t(z) = basis(z - shift) + cos^2(pi z / 4) residual_t(z)`` at the start, where ``basis`` is 1 at 0 and 0 at
    the other integers, and its derivative is 1/2 at -1, -1/2 at 1 and 0 at the others."""
    expected = {}
    grid = zip(sampling.kernel_size, sampling.dilation, sampling.margin, strict=True)
    places = [[m + d * t for t in range(k)] for k, d, m in grid]
    shift = torch.zeros(len(sampling.axes), dtype=torch.float64)
    for index, (axis, network) in enumerate(zip(sampling.axes, sampling.residual, strict=True)):
        weights, bias = torch.zeros_like(network.last.weight), torch.zeros_like(network.last.bias)
        for z, taps in itertools.product((-1, 0, 1), itertools.product(*map(range, sampling.kernel_size))):
            cell = [p[t] + z * (a == axis) for a, (p, t) in enumerate(zip(places, taps, strict=True))]
            along = (weight[(..., *taps)] * dense[(..., *cell)]).sum()
            shift[index] += along * z / 2
            window = math.cos(math.pi * z / 4) ** 2
            bias[taps[axis]] += along * window
            weights[taps[axis]] += along * window * torch.sin(z * network.inner.weight[:, 0] + network.inner.bias).detach()
        expected |= {f"residual.{index}.last.weight": weights.detach(), f"residual.{index}.last.bias": bias.detach()}
    return expected | {"shift": shift}


def reached(case: Case, layer: Layer, name: str) -> Tensor:
    """Which entries of a parameter the output depends on: some output's cell next to the tap falls on a sample of the input."""
    sampling = layer.sampling
    sizes = zip(sampling.kernel_size, case.sizes, case.native().shape[-sampling.ndim :], strict=True)
    cells = [Cells(case, sampling, a, k, n, m) for a, (k, n, m) in enumerate(sizes)]
    still = [torch.tensor([c.hits(t, {0}) for t in range(c.taps)]) for c in cells]

    def along(axis: int, steps: set[int]) -> Tensor:
        """(*taps) if the taps can move along ``axis``."""
        moved = torch.tensor([cells[axis].hits(t, steps) for t in range(cells[axis].taps)])
        mask = torch.ones(sampling.kernel_size, dtype=torch.bool)
        for a, flags in enumerate(still):
            mask &= (moved if a == axis else flags).view([-1 if i == a else 1 for i in range(sampling.ndim)])
        return mask

    shape = getattr(sampling, name).shape if "." not in name else sampling.get_parameter(name).shape
    if name == "offset":
        return torch.stack([along(a, {-1, 1}) for a in sampling.axes])[:, None, None].expand(shape)
    if name == "shift":
        return torch.stack([along(a, {-1, 1}).any() for a in sampling.axes])
    axis = sampling.axes[int(name.split(".")[1])]
    others = [a for a in range(sampling.ndim) if a != axis]
    mask = along(axis, {-1, 0, 1})
    mask = mask.sum(others).bool() if others else mask
    return mask.view([-1] + [1] * (len(shape) - 1)).expand(shape)


class Cells:
    """One axis: whether a sample of the input meets an output through the cell ``step`` from tap ``t``."""

    def __init__(self, case: Case, sampling: Any, axis: int, taps: int, size: int, out: int) -> None:
        geometry = ConvGeometry.from_module(case.conv)
        self.taps, self.size, self.out = taps, size, out
        self.stride, self.dilation, (self.low, _) = geometry.stride[axis], geometry.dilation[axis], geometry.pads[axis]
        self.transposed = geometry.transposed
        margin = sampling.margin[axis]
        self.first, self.last = -margin, geometry.extent[axis] + margin - 1

    def hits(self, t: int, steps: set[int]) -> bool:
        places = [min(max(self.dilation * t + s, self.first), self.last) for s in steps]
        if self.transposed:
            return any(0 <= i * self.stride - self.low + p < self.out for p in places for i in range(self.size))
        return any(0 <= y * self.stride - self.low + p < self.size for p in places for y in range(self.out))


@settings(max_examples=300)
@given(layers())
def test_layers_start_exact_and_free_to_move(case: tuple[Case, Layer]) -> None:
    check_exact(*case)


@pytest.mark.slow
@settings(max_examples=10_000)
@given(layers())
def test_layers_start_exact_and_free_to_move_10_000_times(case: tuple[Case, Layer]) -> None:
    check_exact(*case)
