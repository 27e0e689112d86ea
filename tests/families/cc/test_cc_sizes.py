"""CC layers at any output size, against a slow direct evaluation of the definition in float64."""

from __future__ import annotations

import copy
import itertools
import math
import os
import pickle
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from family_layers import LAYERS
from geometries import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ccrewrite import nn as ccnn
from ccrewrite.errors import InputError
from ccrewrite.families.cc import resized as module
from ccrewrite.families.resizable import scaled_size
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.typed import compiled

# Dynamo's, of autograd functions.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
F64 = torch.float64
EXAMPLES = int(os.environ.get("CCREWRITE_EXAMPLES", "0"))


def cc(conv: Any, **options: Any) -> Any:
    return LAYERS[ccnn.CCSampling, type(conv)].from_conv(conv, **options)


def moved(layer: Any, by: float = 0.3) -> Any:
    with torch.no_grad():
        for p in layer.sampling.movers():
            p += by * torch.randn_like(p)
    return layer


def hat(z: float) -> float:
    return max(0.0, 1 - abs(z))


def cubic(z: float) -> float:
    """Keys 1981, a = -1/2."""
    z = abs(z)
    if z < 1:
        return 1.5 * z**3 - 2.5 * z**2 + 1
    return -0.5 * z**3 + 2.5 * z**2 - 4 * z + 2 if z < 2 else 0.0


def phi(sampling: Any, axis: int, t: int, z: float) -> tuple[float, float]:
    """(the tap's continuous kernel, its interpolant alone) at distance ``z``."""
    basis = {"linear": hat, "cubic": cubic}[sampling.basis]
    if axis not in sampling.axes:
        return basis(z), basis(z)
    learned = sampling.axes.index(axis)
    half = sampling.dilation[axis] * (sampling.kernel_size[axis] - 1) / 2
    beyond = abs(z + sampling.dilation[axis] * t - half) - half - sampling.reach
    inside = math.cos(math.pi / 2 * min(max(beyond, 0), 1)) ** 2 if sampling.reach < 2 else 1.0
    start = basis(z)
    z -= min(max(float(sampling.shift[learned]), -0.5), 0.5)
    value = bump = basis(z)
    if abs(z) < 2:
        network = sampling.residual[learned]
        hidden = torch.sin(network.inner.weight[:, 0] * z + network.inner.bias)
        own = t if sampling.sharing == "tap" else 0
        value += math.cos(math.pi * z / 4) ** 2 * float(network.last.weight[own] @ hidden + network.last.bias[own])
    return start + inside * (value - start), start + inside * (bump - start)


def wrap(i: int, size: int, mode: str) -> int | None:
    """The sample of the input at place ``i`` of its continuation; None: zero."""
    if 0 <= i < size:
        return i
    if mode == "zeros":
        return None
    if mode == "circular":
        return i % size
    if mode == "replicate":
        return min(max(i, 0), size - 1)
    period = max(2 * size - 2, 1)
    return min(i % period, period - i % period) if size > 1 else 0


def axis_matrix(sampling: Any, g: ConvGeometry, axis: int, size: int, asked: int, centred: bool, mode: str) -> Tensor:
    """``(asked, taps, size)``: how much of input sample ``i`` reaches output ``y`` through tap ``t``, by exact coordinates."""
    k, s, d, low = g.kernel_size[axis], g.stride[axis], g.dilation[axis], g.pads[axis][0]
    sizes = [1] * g.ndim
    sizes[axis] = size
    native = g.output_size(sizes)[axis]
    rho = max(Fraction(1), Fraction(native, asked))
    reach = math.ceil(Fraction(5, 2) * rho) + 1
    result = torch.zeros(asked, k, size, dtype=F64)
    step = Fraction(native, asked) * (1 if g.transposed else s)
    for y, t in itertools.product(range(asked), range(k)):
        if g.transposed:  # in samples of the native output
            origin = (step - 1) / 2
            if centred:
                origin = Fraction(s * (size - 1) + d * (k - 1), 2) - low - step * Fraction(asked - 1, 2)
            place = step * y + origin
        else:
            origin = Fraction(d * (k - 1), 2) - low + (step - s) / 2
            middle = Fraction(size - 1, 2) - step * Fraction(asked - 1, 2)
            if sampling.rescaled:  # everything in the picture's measure
                origin = middle + (origin - middle) * Fraction(native, asked)
            if centred:
                origin = middle
            apart = Fraction(native, asked) if sampling.rescaled else rho
            place = step * y + origin + apart * d * (t - Fraction(k - 1, 2))
        lattice = range(math.floor(place) - reach, math.floor(place) + reach + 2)
        sign = -1 if g.transposed else 1
        found = [phi(sampling, axis, t, sign * float((n - place) / rho)) for n in lattice]
        native_gain = sum(phi(sampling, axis, t, float(n))[0] for n in range(-3, 4))
        missing = native_gain - sum(v for v, _ in found) / float(rho)
        total = sum(b for _, b in found)
        for n, (value, bump) in zip(lattice, found, strict=True):
            weight = value / float(rho) + missing * bump / total
            if g.transposed:  # the sample and tap that the native layer puts at n
                if (n + low - d * t) % s == 0 and 0 <= (n + low - d * t) // s < size:
                    result[y, t, (n + low - d * t) // s] += weight
            else:
                i = wrap(n, size, mode)
                if i is not None:
                    result[y, t, i] += weight
    return result


def definition(case: Case, layer: Any, asked: tuple[int, ...]) -> Tensor:
    """``out(y) = sum_t w_t sum_i prod_axis T[y, t, i] x_i + bias``."""
    conv, x, sampling = case.conv, case.batch, layer.sampling
    g = ConvGeometry.from_module(conv)
    for axis, (n, m) in enumerate(zip(case.sizes, asked, strict=True)):
        matrix = axis_matrix(sampling, g, axis, n, m, sampling.alignment == "centred", conv.padding_mode)
        x = torch.tensordot(x, matrix, dims=([2], [2]))  # each axis in turn becomes (outputs, taps) at the end  # pyright: ignore[reportArgumentType]
    nd = g.ndim
    x = x.permute(0, 1, *range(2, 2 + 2 * nd, 2), *range(3, 3 + 2 * nd, 2)).flatten(-nd)
    x = x.reshape(len(x), g.groups, -1, *x.shape[2:])
    w = conv.weight.flatten(2)
    if g.transposed:
        out = torch.einsum("ngi...t,giot->ngo...", x, w.reshape(g.groups, -1, *w.shape[1:]))
    else:
        out = torch.einsum("ngi...t,goit->ngo...", x, w.reshape(g.groups, -1, *w.shape[1:]))
    out = out.reshape(len(x), -1, *asked)
    if conv.bias is not None:
        out = out + conv.bias.view(-1, *(1,) * nd)
    return out if case.input.dim() == nd + 2 else out[0]


@st.composite
def resized_cases(draw: st.DrawFn, **options: Any) -> tuple[Case, Any, tuple[int, ...]]:
    case = draw(cases(**options))
    case.extra = ()
    native = case.native().shape[-len(case.sizes) :]
    asked = tuple(draw(st.one_of(st.just(m), st.integers(1, 2 * m + 2))) for m in native)
    basis, alignment = draw(st.sampled_from(["cubic", "linear"])), draw(st.sampled_from(["native", "centred"]))
    made: dict[str, Any] = {"basis": basis, "alignment": alignment, "hidden": 2, "reach": draw(st.sampled_from([2, 2, 1, 0]))}
    made["sharing"] = draw(st.sampled_from(["tap", "axis"]))
    if draw(st.booleans()):  # else those with more than one tap or a stride
        axes = draw(st.sets(st.integers(0, len(case.sizes) - 1), min_size=1))
        made["axes"] = tuple(sorted(axes))
    layer = cc(case.conv, **made)
    layer.sampling.rescaled = draw(st.booleans())
    return case, layer, asked


def check(case: Case, layer: Any, asked: tuple[int, ...]) -> None:
    with torch.no_grad():
        layer.output_size = asked
        found = layer(case.input)
        expected = definition(case, layer, asked)
        assert found.shape == expected.shape
        scale = max(1.0, float(expected.abs().max()))
        assert float((found - expected).abs().max()) <= 1e-12 * scale


@settings(max_examples=60)
@given(resized_cases())
def test_any_size_untouched_is_the_definition(case: Any) -> None:
    check(*case)


@settings(max_examples=30)
@given(resized_cases(transposed=False), st.sampled_from(["taps", "dense"]))
def test_every_form_is_the_definition(case: Any, form: str) -> None:
    """Whatever is taken to be cheaper."""
    case, layer, asked = case
    chosen = module._forms

    def forced(axes: Any, changed: list[int], geometry: ConvGeometry, still: bool) -> dict[int, str]:
        def possible(a: int) -> bool:  # dense: taps a sample apart
            return form == "taps" or axes[a].apart == axes[a].asked

        return {a: form if possible(a) else f for a, f in chosen(axes, changed, geometry, still).items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_forms", forced)
        check(case, layer, asked)


@settings(max_examples=40)
@given(resized_cases())
def test_any_size_moved_is_the_definition(case: Any) -> None:
    # Where nothing is continued, a native axis and its matrix are the same thing; continued, only the matrix reaches further.
    case, layer, asked = case
    if case.conv.padding_mode == "zeros" or case.conv.transposed:
        check(case, moved(layer), asked)


@settings(max_examples=max(EXAMPLES, 100))
@given(cases())
@torch.no_grad()
def test_the_matrices_at_native_size_are_the_plain_convolution(case: Case) -> None:
    """Exactness at the native size through the resampled path; ``CCREWRITE_EXAMPLES`` sets the number of geometries."""
    case.extra = ()
    layer, native = cc(case.conv, hidden=1), case.native()
    before = module._changes
    module._changes = lambda *_: True  # type: ignore[assignment]
    try:
        layer.output_size = tuple(native.shape[-len(case.sizes) :])
        found = layer(case.input)
    finally:
        module._changes = before
    scale = max(float(native.abs().max()), 1e-300)
    assert float((found - native).abs().max()) <= 1e-12 * scale


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("basis", ["cubic", "linear"])
def test_outputs_of_neighbouring_sizes_approach_each_other(transposed: bool, basis: str) -> None:
    """A smooth picture at M and M + 1 outputs: the difference, over places common to both, shrinks as both grow."""
    differences = []
    for n in (32, 64, 128):
        conv = (nn.ConvTranspose1d(1, 1, 4, 2, 1) if transposed else nn.Conv1d(1, 1, 3, 2, 1)).double()
        with torch.no_grad():
            conv.weight.copy_(torch.tensor([1.0, 3.0, 3.0, 1.0] if transposed else [1.0, 2.0, 1.0]) / 4)
        x = torch.cos(torch.arange(n, dtype=F64) * 9 / n)[None, None]
        layer = cc(conv, basis=basis)
        size = conv(x).shape[-1] * 3 // 4
        curves = []
        for m in (size, size + 1):
            layer.output_size = m
            at = (torch.linspace(0.2, 0.8, 50, dtype=F64) * m - 0.5).view(1, -1, 1)
            grid = torch.cat([(2 * at + 1) / m - 1, torch.zeros_like(at)], -1)[:, None]
            y = layer(x).detach()[:, :, None]
            curves.append(nn.functional.grid_sample(y, grid.flip(1), align_corners=False, mode="bilinear"))
        differences.append(float((curves[0] - curves[1]).abs().max()))
    assert differences[2] < differences[1] / 1.8 < differences[0] / 3


@settings(max_examples=60)
@given(st.integers(1, 7), st.integers(1, 3), st.integers(1, 4), st.integers(1, 90), st.sampled_from(["cubic", "linear"]))
def test_constant_signals_keep_their_gain(taps: int, dilation: int, stride: int, asked: int, basis: str) -> None:
    """Circular, so that there is no border; random kernels, also with a learned shift and residual."""
    conv = nn.Conv1d(2, 3, taps, stride, dilation=dilation, padding_mode="circular", dtype=F64)
    x = torch.ones(1, 2, 40, dtype=F64) * torch.tensor([[[1.0], [-2.0]]], dtype=F64)
    for layer in (cc(conv, basis=basis), moved(cc(conv, basis=basis))):
        native = layer(x).detach()[..., 3:4]
        layer.output_size = asked
        assert float((layer(x).detach()[..., asked // 2] - native[..., 0]).abs().max()) <= 1e-6 * max(
            1.0, float(native.abs().max())
        )


@pytest.mark.parametrize("asked", [11, 16, 23, 40, 77, 250])
def test_a_constant_output_of_a_transposed_layer_stays_constant(asked: int) -> None:
    conv = nn.ConvTranspose1d(1, 1, 4, 2, 1, dtype=F64)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([0.1, 0.7, 0.9, 0.3]))  # both phases add up to 1
        layer = cc(conv)
        layer.output_size = asked
        out = layer(torch.ones(1, 1, 120, dtype=F64))[0, 0] - conv.bias
    assert float((out[asked // 3 : asked - asked // 3] - 1).abs().max()) <= 1e-6


def alias_gain(response: Any, size: int, asked: int) -> float:
    """Mean gain of sinusoids that ``asked`` samples can't carry, over the gain of a constant."""
    n = torch.arange(size, dtype=F64)
    frequencies = torch.linspace(asked / size / 2 + 0.01, 0.49, 60, dtype=F64)
    middle = slice(asked // 4, 3 * asked // 4)
    gains = []
    for f in (0.0, *frequencies.tolist()):
        parts = [response(wave(2 * math.pi * f * n))[..., middle] for wave in (torch.cos, torch.sin)]
        gains.append(float((parts[0] ** 2 + parts[1] ** 2).mean().sqrt()))
    return sum(gains[1:]) / len(frequencies) / gains[0]


@pytest.mark.parametrize(("transposed", "fewer"), [(False, 2), (True, 4)])
def test_little_of_what_half_the_size_cannot_carry_gets_through(transposed: bool, fewer: int) -> None:
    """At most 0.2 of what the unstretched kernel lets through: every second output of the native layer. A transposed layer's
    half size still carries all of its input (its stride is 2), so there it is half of that."""
    if transposed:
        conv: Any = nn.ConvTranspose1d(1, 1, 4, 2, 1, bias=False, dtype=F64)
        weight, size = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=F64) / 4, 128
    else:
        conv = nn.Conv1d(1, 1, 3, 2, 1, bias=False, dtype=F64)
        weight, size = torch.tensor([1.0, 2.0, 1.0], dtype=F64) / 4, 256
    with torch.no_grad():
        conv.weight.copy_(weight)
        layer = cc(conv)
        asked = conv(torch.zeros(1, 1, size, dtype=F64)).shape[-1] // fewer
        layer.output_size = asked
        stretched = alias_gain(lambda x: layer(x[None, None])[0, 0], size, asked)
        unstretched = alias_gain(lambda x: conv(x[None, None])[0, 0, ::fewer], size, asked)
    assert stretched <= 0.2 * unstretched, (stretched, unstretched)


def test_long_axes_are_as_exact_as_short_ones() -> None:
    """6000 -> 8001 in float32 coordinates: the same numbers as in float64, whose input is a ramp of small steps."""
    conv = nn.Conv1d(1, 1, 3, 1, 1, bias=False)
    outs = []
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[0.25, 0.5, 0.25]]]))
        for dtype in (torch.float32, F64):
            layer = cc(copy.deepcopy(conv).to(dtype))
            layer.output_size = 8001
            x = torch.sin(torch.arange(6000, dtype=F64) * 1.7)[None, None]
            outs.append(layer(x.to(dtype)).double())
        assert float((outs[0] - outs[1]).abs().max()) <= 1e-6
        long = cc(copy.deepcopy(conv).double(), basis="linear")
        long.output_size = 8001
        x = torch.randn(1, 1, 6000, dtype=F64)
        g = ConvGeometry.from_module(conv)
        found = long(x)[0, 0]
        for y in (0, 1, 3999, 4000, 7999, 8000):  # exact rationals, one output at a time
            expected = 0.0
            for t in range(3):
                place = g.axis_map(0).resized(6000, 8001).project(y) + t - 1
                for i in range(math.floor(place), math.floor(place) + 2):
                    expected += (
                        (float(x[0, 0, i]) if 0 <= i < 6000 else 0) * float(conv.weight[0, 0, t]) * hat(float(i - place))
                    )
            assert abs(float(found[y]) - expected) <= 1e-12


@pytest.mark.parametrize("transposed", [False, True])
def test_blocks_are_the_whole(transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    conv = (nn.ConvTranspose1d(2, 3, 5, 3, 1) if transposed else nn.Conv1d(2, 3, 5, 3, 1)).double()
    x = torch.randn(2, 2, 700, dtype=F64)
    for size in (50, 300, 1000):
        layer = moved(cc(conv))
        layer.output_size = size
        blocks = layer(x)
        monkeypatch.setattr("ccrewrite.families.cc.bands.LONG", 10**9)
        torch.testing.assert_close(blocks, layer(x), rtol=0, atol=1e-12)
        monkeypatch.undo()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("asked", "reach"), [((4, 7), 2), ((9, 5), 2), ((4, 9), 0)])
def test_derivatives_of_the_resized_path(transposed: bool, asked: tuple[int, int], reach: int) -> None:
    conv = (nn.ConvTranspose2d(2, 2, 3, 2, 1) if transposed else nn.Conv2d(2, 2, 3, 2, 1)).double()
    x = torch.randn(1, 2, *((4, 5) if transposed else (9, 10)), dtype=F64, requires_grad=True)
    layer = moved(cc(conv, hidden=2, reach=reach), 0.1)
    layer.output_size = asked
    names = [n for n, _ in layer.named_parameters()]

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *layer.parameters()), atol=1e-7)
    gradients = torch.autograd.grad(call(x, *layer.parameters()).square().sum(), list(layer.parameters()))
    assert all(g.abs().max() > 0 for g in gradients)


def test_sizes_asked_for_travel_with_the_layer() -> None:
    layer = ccnn.CCConv2d(3, 4, 3, 2, 1)
    x = torch.randn(1, 3, 12, 15)
    layer.scale, layer.alignment = (0.5, 1.4), "centred"
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.scale == (0.5, 1.4)
        assert twin.alignment == "centred"
        assert torch.equal(twin(x), layer(x))
        twin.scale = None
        assert layer.scale == (0.5, 1.4)
    layer.scale, layer.output_size = None, 5
    assert layer.sampling.output_size == (5, 5)
    assert pickle.loads(pickle.dumps(layer)).output_size == (5, 5)
    assert layer(x, output_size=(3, 4)).shape[2:] == (3, 4)  # for this call
    assert layer(x).shape[2:] == (5, 5)
    assert layer.state_dict().keys() == ccnn.CCConv2d(3, 4, 3, 2, 1).state_dict().keys()


def test_sizes_round_as_python_does() -> None:
    for native, hundredths in itertools.product(range(1, 60), range(5, 300, 5)):
        scale = Fraction(hundredths, 100)
        assert scaled_size(native, hundredths / 100) == max(1, round(native * scale))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("scale", [0.5, 0.7, 1.3])
def test_a_scale_is_the_size_it_gives(transposed: bool, scale: float) -> None:
    layer = (ccnn.CCConvTranspose1d if transposed else ccnn.CCConv1d)(2, 3, 3, 2, dtype=F64)
    x = torch.randn(1, 2, 21, dtype=F64)
    for each in (layer, moved(copy.deepcopy(layer))):
        native = each(x).shape[-1]
        each.scale = scale
        scaled = each(x)
        each.scale, each.output_size = None, round(native * scale)
        torch.testing.assert_close(scaled, each(x), rtol=0, atol=1e-13)


def test_native_sizes_are_the_plain_layer_bit_by_bit() -> None:
    conv = nn.Conv2d(3, 4, 3, 2, 1)
    layer, x = cc(conv), torch.randn(1, 3, 12, 15)
    with torch.no_grad():
        for name, value in {"scale": 1, "output_size": (6, 8)}.items():
            setattr(layer, name, value)
            assert torch.equal(layer(x), conv(x))
            setattr(layer, name, None)
        layer.output_size = (6, 5)  # the rows keep their stride, the columns change
        assert layer(x).shape[2:] == (6, 5)


def test_what_cannot_be_asked_for_is_named() -> None:
    layer = ccnn.CCConv2d(3, 4, 3, 2, 1)
    for name, value, words in [
        ("output_size", 0, "at least 1"),
        ("output_size", 3.5, "set scale"),
        ("output_size", (3, 4, 5), "per spatial axis"),
        ("scale", -1.0, "scale must be"),
        ("scale", float("nan"), "scale must be"),
        ("scale", (0.5,), "per axis"),
        ("alignment", "left", "alignment must be"),
    ]:
        with pytest.raises(InputError, match=words):
            setattr(layer, name, value)
    layer.scale = 0.5
    with pytest.raises(InputError, match="can't both be set"):
        layer.output_size = 4
    layer.scale = None
    layer.output_size = 4
    with pytest.raises(InputError, match="can't both be set"):
        layer.scale = 0.5
    with pytest.raises(InputError, match="too small"):
        ccnn.CCConv2d(1, 1, 7)(torch.zeros(1, 1, 3, 3), output_size=2)


def test_centred_outputs_sit_in_the_middle() -> None:
    """A picture that equals its mirror image has a mirrored output; natively, a stride of 2 sits half a sample to the left."""
    conv = nn.Conv1d(1, 1, 3, 2, 1, bias=False, dtype=F64)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[1.0, 2.0, 1.0]]]))
        x = torch.rand(1, 1, 16, dtype=F64)
        x = x + x.flip(-1)
        layer = cc(conv, alignment="centred")
        for size in (8, 5, 11, 16):
            layer.output_size = size
            out = layer(x)
            torch.testing.assert_close(out, out.flip(-1), rtol=0, atol=1e-12)
        native = conv(x)
        assert float((native - native.flip(-1)).abs().max()) > 1e-3
        odd = torch.rand(1, 1, 17, dtype=F64)  # centred by itself
        layer.output_size = None
        assert torch.equal(layer(odd), conv(odd))


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_exported_programs_take_other_sizes(strict: bool) -> None:
    model: Any = nn.Sequential(ccnn.CCConv2d(2, 4, 3, 2, 1), nn.ReLU(), ccnn.CCConvTranspose2d(4, 2, 4, 2, 1)).eval()
    model[0].scale, model[2].scale = 0.7, (1.3, 0.6)
    h, w = torch.export.Dim("h", min=16, max=600), torch.export.Dim("w", min=16, max=600)
    program = torch.export.export(model, (torch.randn(1, 2, 32, 40),), dynamic_shapes=({2: h, 3: w},), strict=strict)
    for size in ((32, 40), (51, 23), (16, 200)):
        x = torch.randn(1, 2, *size)
        torch.testing.assert_close(program.module()(x), model(x), atol=1e-5, rtol=1e-5)


def _compiled(model: nn.Module) -> nn.Module:
    return compiled(model, fullgraph=True, dynamic=True, backend="aot_eager")


@pytest.mark.parametrize(
    ("way", "close"), [(torch.fx.symbolic_trace, 0.0), pytest.param(_compiled, 1e-5, marks=pytest.mark.slow)]
)
def test_compiled_and_traced_layers_take_other_sizes(way: Callable[[nn.Module], nn.Module], close: float) -> None:
    model: Any = nn.Sequential(ccnn.CCConv2d(2, 4, 3, 2, 1, padding_mode="reflect"))
    model[0].scale = 0.7
    other = way(model)
    with torch.no_grad():
        model[0].sampling.shift += 0.2  # seen by both: nothing is baked in
    for size in ((32, 40), (51, 23)):
        x = torch.randn(1, 2, *size)
        torch.testing.assert_close(other(x), model(x), atol=close, rtol=close)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_and_meta(dtype: torch.dtype) -> None:
    layer = ccnn.CCConv2d(2, 4, 3, 2, 1)
    layer.scale = 0.6
    x = torch.randn(1, 2, 24, 24)
    expected = layer(x)
    low = copy.deepcopy(layer).to(dtype)(x.to(dtype))
    assert low.dtype == dtype
    torch.testing.assert_close(low.float(), expected, atol=0.05, rtol=0.05)
    with torch.autocast("cpu", dtype=dtype):
        torch.testing.assert_close(layer(x).float(), expected, atol=0.05, rtol=0.05)
    assert copy.deepcopy(layer).to("meta")(x.to("meta")).shape == expected.shape
