"""``ConvGeometry`` and its coordinate maps against what torch computes."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from geometries import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.families.interpolation import hat, keys_cubic
from ccrewrite.ir.calls import as_call
from ccrewrite.ir.geometry import AxisMap, ConvGeometry, per_axis

aten = torch.ops.aten


@settings(max_examples=300)
@given(cases())
def test_output_size_is_torchs(case: Case) -> None:
    geometry = ConvGeometry.from_module(case.conv)
    native = case.conv(case.input)
    assert geometry.output_size(case.sizes) == tuple(native.shape[-geometry.ndim :])
    assert native.shape[-geometry.ndim - 1] == geometry.out_channels


@settings(max_examples=200)
@given(cases(transposed=False))
def test_pads_are_torchs(case: Case) -> None:
    """Padding by hand, then convolving without padding, gives the same numbers."""
    conv, geometry = case.conv, ConvGeometry.from_module(case.conv)
    pads = [p for pair in reversed(geometry.pads) for p in pair]
    padded = F.pad(case.batch, pads, mode="constant" if conv.padding_mode == "zeros" else conv.padding_mode)
    function = (F.conv1d, F.conv2d, F.conv3d)[geometry.ndim - 1]
    by_hand = function(padded, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)
    torch.testing.assert_close(by_hand.view(case.native().shape), case.native(), rtol=0, atol=1e-12)


def spellings(case: Case) -> list[ConvGeometry]:
    """The geometry of the same call, said in every way that torch has."""
    conv, batched = case.conv, case.batch
    g = ConvGeometry.from_module(conv)
    found = []
    if g.transposed:
        function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[g.ndim - 1]
        overload = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)[g.ndim - 1]
        arguments = (conv.stride, conv.padding, conv.output_padding, conv.groups, conv.dilation)
    else:
        function = (F.conv1d, F.conv2d, F.conv3d)[g.ndim - 1]
        packet = (aten.conv1d, aten.conv2d, aten.conv3d)[g.ndim - 1]
        overload = packet.padding if isinstance(conv.padding, str) else packet.default
        arguments = (conv.stride, conv.padding, conv.dilation, conv.groups)
    calls = [(function, arguments), (overload, arguments)]
    if not isinstance(conv.padding, str):
        whole = (conv.stride, conv.padding, conv.dilation, g.transposed, conv.output_padding, conv.groups)
        calls += [(torch.convolution, whole), (aten.convolution.default, whole)]
    for target, values in calls:
        out = target(batched, conv.weight, conv.bias, *values)
        call = as_call(target, (batched, conv.weight, conv.bias, *values))
        assert call is not None
        found.append(call.geometry(conv.weight.shape))
        assert found[-1].output_size(case.sizes) == tuple(out.shape[2:])
    named = dict(
        zip(
            ("stride", "padding", "output_padding", "groups", "dilation")
            if g.transposed
            else ("stride", "padding", "dilation", "groups"),
            arguments,
            strict=True,
        )
    )
    call = as_call(function, (), {"input": batched, "weight": conv.weight, "bias": conv.bias, **named})
    assert call is not None
    return [*found, call.geometry(conv.weight.shape)]


@settings(max_examples=200)
@given(cases())
def test_every_spelling_of_a_call_has_the_modules_geometry(case: Case) -> None:
    case.conv.padding_mode = "zeros"  # padding modes are no argument of a functional call
    geometry = ConvGeometry.from_module(case.conv)
    assert set(spellings(case)) == {geometry}


@pytest.mark.parametrize(
    ("conv", "kinds"),
    [
        (nn.Conv1d(1, 1, 3), ("plain",)),
        (nn.Conv1d(1, 1, 3, dilation=2), ("dilated",)),
        (nn.Conv1d(1, 1, 1, dilation=2), ("plain",)),  # a kernel of one tap is not dilated
        (nn.Conv2d(1, 1, (1, 3), dilation=(2, 1)), ("plain",)),
        (nn.Conv2d(1, 1, (1, 3), dilation=(1, 2)), ("dilated",)),
        (nn.Conv2d(1, 1, 1, stride=2), ("strided",)),
        (nn.Conv2d(1, 1, 3, stride=(1, 2), dilation=2), ("dilated", "strided")),
        (nn.Conv2d(1, 1, 7), ("large",)),
        (nn.Conv2d(1, 1, (1, 6)), ("plain",)),
        (nn.Conv2d(1, 1, 7, stride=2), ("strided", "large")),
        (nn.Conv2d(1, 1, 7, dilation=2), ("dilated",)),
        (nn.ConvTranspose2d(1, 1, 3), ("transposed",)),
        (nn.ConvTranspose2d(1, 1, 4, stride=2), ("transposed", "strided")),
        (nn.ConvTranspose1d(1, 1, 3, dilation=2), ("transposed", "dilated")),
        (nn.ConvTranspose1d(1, 1, 1, dilation=2), ("transposed",)),
    ],
)
def test_kinds(conv: Any, kinds: tuple[str, ...]) -> None:
    assert ConvGeometry.from_module(conv).kinds == kinds


def by_definition(geometry: ConvGeometry, x: Tensor, weight: Tensor, phi: str) -> Tensor:
    """``out(y) = sum_t w_t sum_i phi((i - proj(y) - node_t) / width) x_i`` with the coordinates of ``axis_map``; one group."""
    maps = [geometry.axis_map(a) for a in range(geometry.ndim)]
    basis = {"hat": hat, "keys": keys_cubic}[phi]
    letters = "ijk"[: geometry.ndim], "stu"[: geometry.ndim], "yzw"[: geometry.ndim]
    factors = []
    for m, n, size in zip(maps, x.shape[2:], geometry.output_size(x.shape[2:]), strict=True):
        exact = [
            [[float((i - m.project(y) - m.node(t)) / m.width) for i in range(n)] for t in range(m.taps)] for y in range(size)
        ]
        factors.append(basis(torch.tensor(exact, dtype=torch.float64)))
    terms = [f"{y}{t}{i}" for i, t, y in zip(*letters, strict=True)]
    channels = "cd" if geometry.transposed else "dc"
    return torch.einsum(f"nc{letters[0]},{channels}{letters[1]},{','.join(terms)}->nd{letters[2]}", x, weight, *factors)


@settings(max_examples=120)
@given(cases(), st.sampled_from(["hat", "keys"]))
def test_coordinate_maps_give_torchs_outputs(case: Case, phi: str) -> None:
    conv = case.conv
    geometry = ConvGeometry.from_module(conv)
    x = case.batch
    if geometry.padding_mode != "zeros":
        # As torch has it: pad first, then convolve without padding.
        pads = [p for pair in reversed(geometry.pads) for p in pair]
        x = F.pad(x, pads, mode=geometry.padding_mode)
        geometry = ConvGeometry.from_call(
            f"conv{geometry.ndim}d",
            conv.weight.shape,
            {"stride": conv.stride, "dilation": conv.dilation, "groups": conv.groups},
        )
    bias = 0 if conv.bias is None else conv.bias.view(-1, *(1,) * geometry.ndim)
    rows = geometry.in_channels // geometry.groups
    weights = conv.weight.chunk(geometry.groups)
    found = (
        torch.cat([by_definition(geometry, part, w, phi) for part, w in zip(x.split(rows, 1), weights, strict=True)], 1) + bias
    )
    torch.testing.assert_close(found.view(conv(case.input).shape), conv(case.input), rtol=0, atol=1e-12)


def test_maps_are_exact() -> None:
    m = ConvGeometry.from_module(nn.Conv1d(1, 1, 4, stride=3, padding=1, dilation=2)).axis_map(0)
    assert (m.project(10**9), m.node(0), m.node(3)) == (3 * 10**9 + 2, Fraction(-3), Fraction(3))
    m = ConvGeometry.from_module(nn.ConvTranspose1d(1, 1, 3, stride=3, padding=1)).axis_map(0)
    assert (m.project(1), m.node(0), m.width) == (Fraction(1, 3), Fraction(1, 3), Fraction(1, 3))


@given(
    st.integers(1, 7),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(1, 3),
    st.integers(1, 50),
    st.integers(1, 50),
    st.booleans(),
)
def test_resized_maps_cover_the_same_interval(k: int, s: int, p: int, d: int, native: int, size: int, transposed: bool) -> None:
    conv = (nn.ConvTranspose1d if transposed else nn.Conv1d)(1, 1, k, s, p, dilation=d, device="meta")
    m = ConvGeometry.from_module(conv).axis_map(0)
    r = m.resized(native, size)
    # The cells of the outputs, each ``step`` wide around its centre, begin and end where they did.
    assert r.project(0) - r.step / 2 == m.project(0) - m.step / 2
    assert r.project(size - 1) + r.step / 2 == m.project(native - 1) + m.step / 2
    assert (r.spacing, r.taps, r.width) == (m.spacing, m.taps, m.width)
    assert m.resized(native, native) == m


@given(st.integers(1, 99), st.integers(1, 99), st.integers(1, 5))
def test_centred_origin_puts_centre_on_centre(n: int, m: int, s: int) -> None:
    native = AxisMap(Fraction(s), Fraction(0), Fraction(1), 3, Fraction(1))
    origin = native.centred_origin(n, m)
    assert native.step * Fraction(m - 1, 2) + origin == Fraction(n - 1, 2)


def test_the_offsets_of_the_common_layers() -> None:
    """How far a layer's own grid lies from the centred one on an even input."""

    def offset(conv: Any) -> Fraction:
        geometry = ConvGeometry.from_module(conv)
        m = geometry.axis_map(0)
        return m.origin - m.centred_origin(32, geometry.output_size([32])[0])

    assert (
        offset(nn.Conv1d(1, 1, 3, 2, 1)) == offset(nn.Conv1d(1, 1, 7, 2, 3)) == offset(nn.Conv1d(1, 1, 1, 2)) == Fraction(-1, 2)
    )
    assert offset(nn.Conv1d(1, 1, 2, 2)) == offset(nn.Conv1d(1, 1, 4, 2, 1)) == 0
    assert offset(nn.ConvTranspose1d(1, 1, 3, 2, 1, 1)) == Fraction(1, 4)


def test_describe_says_what_differs_from_the_defaults() -> None:
    described = [
        (nn.Conv2d(8, 16, 3), "8->16 k3"),
        (nn.Conv2d(8, 16, (1, 3), stride=2, padding=1), "8->16 k1x3 s2 p1"),
        (nn.Conv1d(8, 8, 3, padding="same", dilation=2, groups=8), "8->8 k3 psame d2 g8"),
        (nn.Conv1d(8, 8, 3, padding=1, padding_mode="reflect"), "8->8 k3 p1 reflect"),
        (nn.ConvTranspose3d(4, 2, 2, stride=(1, 2, 2), output_padding=(0, 1, 1)), "4->2 k2 s1x2x2 op0x1x1"),
    ]
    for conv, line in described:
        assert ConvGeometry.from_module(conv).describe() == line


def test_depthwise() -> None:
    assert ConvGeometry.from_module(nn.Conv1d(4, 8, 1, groups=4)).depthwise
    assert not ConvGeometry.from_module(nn.Conv1d(4, 8, 1, groups=2)).depthwise
    assert not ConvGeometry.from_module(nn.Conv1d(1, 8, 1)).depthwise


def test_what_cannot_be_a_geometry_is_named() -> None:
    with pytest.raises(InputError, match=r"stride must have 1 or 3 entries \(one per axis\), found 2"):
        per_axis((1, 2), 3, "stride")
    with pytest.raises(InputError, match="'same', 'valid' or integers, found 'sane'"):
        ConvGeometry.from_call("conv1d", (1, 1, 3), {"padding": "sane"})
    m = ConvGeometry.from_module(nn.Conv1d(1, 1, 3)).axis_map(0)
    for native, size in itertools.product((0, 4), (0, 4)):
        if min(native, size) < 1:
            with pytest.raises(InputError, match="at least one sample"):
                m.resized(native, size)
