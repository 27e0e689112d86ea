"""Every form of a DCLS convolution against the definition: the effective kernel, and torch's convolution with it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ccrewrite.families.dcls.forms.opaque import dcls_slices
from ccrewrite.families.dcls.forms.operators import FORMS, applicable, dcls_conv
from ccrewrite.families.dcls.place import place
from ccrewrite.families.dcls.sampling import DclsSampling
from ccrewrite.gathering.places import Layout
from ccrewrite.ir.geometry import ConvGeometry

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def reference(x: Tensor, weight: Tensor, positions: Tensor, window: tuple[int, ...], pads: list[tuple[int, int]], groups: int):
    (out, inner, taps), (ndim, sets, _) = weight.shape, positions.shape
    grouped = weight.reshape(sets, out // sets, 1, inner, taps).transpose(1, 2).flatten(2, 3)
    kernel = place(grouped, ("linear",) * ndim, window, [p[:, None] for p in positions], [None] * ndim)
    kernel = kernel.view(sets, 1, out // sets, inner, *window).transpose(1, 2).reshape(out, inner, *window)
    return CONV[ndim](F.pad(x, [n for pair in reversed(pads) for n in pair]), kernel, groups=groups)


@st.composite
def cases(draw: st.DrawFn):
    form = draw(st.sampled_from(sorted(FORMS)))
    ndim = draw(st.integers(1, 3))
    out, inner = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    if form == "taps":
        groups, channels, inner = out, out, 1
    else:
        groups, channels = 1, inner
    window = tuple(draw(st.integers(1, 5)) for _ in range(ndim))
    pads = [(draw(st.integers(0, 4)), draw(st.integers(0, 4))) for _ in range(ndim)]
    size = [draw(st.integers(max(1, w - low - high), 7)) for w, (low, high) in zip(window, pads, strict=True)]
    sets = draw(st.sampled_from([1, out])) if form != "shifts" else 1
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    taps = draw(st.integers(1, 5))

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    last = torch.tensor([w - 1.0 for w in window], dtype=torch.float64).view(-1, 1, 1)
    positions = torch.rand(ndim, sets, taps, dtype=torch.float64, generator=generator) * last
    # Some on samples, borders included: there the derivative is the mean of both sides.
    on_sample = torch.rand(positions.shape, generator=generator) < 0.4
    positions = torch.where(on_sample, positions.round(), positions)
    return form, groups, drawn(draw(st.integers(1, 2)), channels, *size), drawn(out, inner, taps), positions, window, pads


@settings(max_examples=150, deadline=None)
@given(cases())
def test_outputs_and_gradients_are_those_of_the_effective_kernel(case: Any):
    form, groups, x, weight, positions, window, pads = case
    given_ = x, weight, positions = tuple(t.clone().requires_grad_() for t in (x, weight, positions))
    expected = reference(x, weight, positions, window, pads, groups)
    out = dcls_conv(x, weight, positions, form, window, pads)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    gradient = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    found, wanted = (torch.autograd.grad(y, given_, gradient) for y in (out, expected))
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f, w, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_only_wanted_gradients_are_computed(form):
    x, weight = torch.randn(1, 3, 6, 6), torch.randn(3, 1 if form == "taps" else 3, 4)
    positions = torch.rand(2, 1, 4) * 2
    given_ = [x, weight, positions]
    for wanted in range(3):
        for i, t in enumerate(given_):
            t.requires_grad_(i == wanted)
        (gradient,) = torch.autograd.grad(dcls_conv(x, weight, positions, form, (3, 3), [(1, 1), (1, 1)]).sum(), given_[wanted])
        assert gradient.shape == given_[wanted].shape
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("form", sorted(FORMS))
def test_the_operators_are_declared_right(form):
    x = torch.randn(1, 2, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1 if form == "taps" else 2, 3, dtype=torch.float64, requires_grad=True)
    positions = (torch.rand(1, 1, 3, dtype=torch.float64) * 2).requires_grad_()
    torch.library.opcheck(torch.ops.ccrewrite.dcls_conv.default, (x, weight, positions, form, [3], [1, 1]))


@pytest.mark.parametrize("form", sorted(FORMS))
def test_half_precision_and_autocast(form):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 9, 9, generator=generator)
    weight = torch.randn(4, 1 if form == "taps" else 4, 5, generator=generator) / 4
    positions = torch.rand(2, 1, 5, generator=generator) * 4
    expected = dcls_conv(x, weight, positions, form, (5, 5), [(2, 2), (2, 2)])
    with torch.autocast("cpu", torch.bfloat16):
        out = dcls_conv(x, weight, positions, form, (5, 5), [(2, 2), (2, 2)])
    assert out.dtype == torch.bfloat16
    assert (out.float() - expected).abs().max() < 0.05 * math.sqrt(5) * expected.abs().max()


def test_which_forms_apply():
    assert applicable(1, (8, 4, 3, 3), (8, 1), (1, 1)) == ("products",)
    assert applicable(1, (8, 4, 3, 3), (1, 1), (2, 1)) == ()
    assert applicable(2, (8, 4, 3, 3), (1, 1), (1, 1)) == ()
    assert applicable(8, (8, 1, 3, 3), (1, 1), (1, 1)) == ("taps",)
    assert applicable(4, (8, 1, 3, 3), (8, 1), (1, 1)) == ()
    assert applicable(1, (8, 4, 3, 3), (8, 4), (1, 1)) == ()


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, dilation=3, padding=2, groups=2),
        nn.Conv1d(3, 5, 3, stride=2, padding=2, dilation=2),
        nn.Conv1d(8, 2, 3, dilation=2),
        nn.Conv3d(2, 3, (2, 1, 3), dilation=2, padding=1),
    ],
)
def test_slices_as_an_operator(conv: Any) -> None:
    torch.manual_seed(0)
    conv = conv.double()
    x = torch.randn(2, conv.in_channels, *(9, 8, 7)[: conv.weight.dim() - 2], dtype=torch.float64, requires_grad=True)
    geometry = ConvGeometry.from_module(conv)
    sampling = DclsSampling(geometry, dtype=torch.float64, sharing="tap")
    assert "slices" in sampling.forms
    nn.init.uniform_(sampling.offset, -0.6, 0.6)
    with torch.no_grad():
        sampling.offset[..., -1] = 0  # on a sample
    layout = Layout(sampling.window, geometry.stride, geometry.pads, geometry.groups)
    found = dcls_slices(x, conv.weight.flatten(2), sampling.offset, sampling.coded, layout)
    expected = CONV[geometry.ndim](x, sampling.kernel(conv.weight), None, conv.stride, conv.padding, 1, conv.groups)
    torch.testing.assert_close(found, expected)
    tensors: Any = (x, conv.weight, sampling.offset)
    gradients = [torch.autograd.grad(out.sin().sum(), tensors) for out in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    flat = [list(layout.window), list(layout.stride), [n for pair in layout.pads for n in pair], layout.groups]
    arguments = (x, conv.weight.detach().flatten(2).requires_grad_(), sampling.offset, sampling.coded, *flat)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.ccrewrite.dcls_slices.default, arguments, test_utils=tests)
