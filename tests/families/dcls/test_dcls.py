"""DCLS layers: exact at the start, alive there, and usable in every way that torch layers are."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.families.dcls.sampling import SHARINGS
from ccrewrite.families.dcls.sharing import share_positions
from ccrewrite.families.interpolation import INTERPOLATIONS
from ccrewrite.nn import DclsConv1d, DclsConv2d, DclsConv3d

LAYERS = (DclsConv1d, DclsConv2d, DclsConv3d)
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    ndim = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 2, 4]))
    out = groups * draw(st.integers(1, 2))
    numbers = {
        "kernel_size": (*(draw(st.integers(1, 3)) for _ in range(ndim - 1)), draw(st.integers(2, 4))),
        "stride": tuple(draw(st.integers(1, 2)) for _ in range(ndim)),
        "dilation": tuple(draw(st.integers(1, 3)) for _ in range(ndim)),
    }
    padding: Any = tuple(draw(st.integers(0, 3)) for _ in range(ndim))
    if draw(st.booleans()):
        padding, numbers["stride"] = "same", (1,) * ndim
    mode = draw(st.sampled_from(["zeros", "circular", "replicate"]))
    torch.manual_seed(draw(st.integers(0, 2**20)))
    conv = CONVS[ndim - 1](4, out, padding=padding, groups=groups, padding_mode=mode, dtype=torch.float64, **numbers)  # pyright: ignore[reportArgumentType]
    return conv, torch.randn(2, 4, *(11,) * ndim, dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@settings(deadline=None, derandomize=True, max_examples=80)
@given(convolutions(), st.sampled_from(SHARINGS), st.sampled_from(INTERPOLATIONS), st.integers(0, 2))
def test_exact_at_the_start_and_alive(case: tuple[nn.Module, Tensor], sharing: str, kind: str, reach: int) -> None:
    conv, x = case
    layer = LAYERS[x.ndim - 3].from_conv(conv, sharing=sharing, interpolation=kind, reach=reach)
    expected = conv(x)
    found = layer(x)  # with gradients: the effective kernel
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()
    with torch.no_grad():  # without: the plain convolution
        assert torch.equal(layer(x), expected)
    assert layer.weight is conv.weight
    gradients = torch.autograd.grad(found.square().sum(), [*layer.sampling.parameters()])
    assert all(g.any() for g in gradients)


@pytest.mark.parametrize("kind", INTERPOLATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_exact_in_lower_precision(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8, dtype=dtype)
    layer, x = DclsConv2d.from_conv(conv, interpolation=kind), torch.randn(2, 8, 9, 9, dtype=dtype)
    found, expected = layer(x), conv(x)
    assert found.dtype == dtype
    exact = dtype != torch.float32 and kind != "gaussian"
    tolerance = 0 if exact else max(1e-5, torch.finfo(dtype).eps)  # half types: of the output's own last digit
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    assert layer.sampling.kernel(layer.weight).dtype == dtype


def test_autocast_builds_the_kernel_in_float32() -> None:
    torch.manual_seed(0)
    layer, x = DclsConv2d(4, 4, elements=5, window=7, padding="same", groups=4), torch.randn(2, 4, 9, 9)
    kernel = layer.sampling.kernel(layer.weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.sampling.kernel(layer.weight), kernel)
        found = layer(x)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), layer(x), atol=2e-2)


def moved(layer: Any) -> Any:
    with torch.no_grad():
        for parameter in layer.sampling.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def make(name: str) -> tuple[Any, Tensor]:
    torch.manual_seed(1)
    if name == "elements":
        return DclsConv2d(4, 4, elements=5, window=7, padding=3, groups=4, interpolation="gaussian"), torch.randn(2, 4, 9, 9)
    if name == "grid":
        return DclsConv2d(4, 6, 3, padding=2, dilation=2), torch.randn(2, 4, 9, 9)
    if name == "shared":  # a window that is almost empty: the layer moves products instead of convolving with it
        layer = DclsConv2d(4, 4, elements=3, window=17, padding="same", interpolation="gaussian")
        assert layer.sampling.default_form == "bands"
        return layer, torch.randn(2, 4, 12, 12)
    if name == "time":
        return DclsConv3d(2, 2, elements=2, window=(5, 3, 3), padding="same", axes=(0,)), torch.randn(1, 2, 7, 5, 5)
    return DclsConv1d(4, 4, 3, padding=4, dilation=4, groups=2, sharing="group", interpolation="triangle"), torch.randn(
        2, 4, 20
    )


# torch.compile instantiates an autograd.Function and ignores the warning that this gives, which "error" turns into an
# exception.
traced_functions = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
KINDS = ("elements", "grid", "shared", "time", "triangle")


@pytest.mark.parametrize("kind", KINDS)
def test_layer_is_the_convolution_with_its_kernel(kind: str) -> None:
    layer, x = make(kind)
    moved(layer)
    conv = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
    kernel = layer.sampling.kernel(layer.weight)
    pads = [n for size in reversed(kernel.shape[2:]) for n in (size // 2,) * 2]
    expected = conv(F.pad(x, pads), kernel, layer.bias, groups=layer.groups)
    assert torch.allclose(layer(x), expected, atol=1e-6)


@traced_functions
@pytest.mark.parametrize("kind", KINDS)
def test_ways_of_running(kind: str) -> None:
    layer, x = make(kind)
    moved(layer)
    expected = layer(x)
    stored = io.BytesIO()
    torch.save(layer, stored)
    stored.seek(0)
    again = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(stored, weights_only=False)]
    for other in [*again, torch.fx.symbolic_trace(nn.Sequential(layer))]:
        assert torch.equal(other(x), expected)
    assert torch.allclose(torch.export.export(layer, (x,), strict=False).module()(x), expected, atol=1e-6)
    meta = copy.deepcopy(layer).to("meta")
    assert meta(x.to("meta")).shape == expected.shape


@traced_functions
@pytest.mark.parametrize("kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])])
def test_compiled_and_strictly_exported(kind: str) -> None:
    layer, x = make(kind)
    moved(layer)
    expected = layer(x)
    gradients = torch.autograd.grad(expected.square().sum(), [*layer.parameters()])
    assert torch.allclose(torch.export.export(layer, (x,), strict=True).module()(x), expected, atol=1e-6)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.allclose(compiled(x), expected, atol=1e-6)
    found = compiled(x)
    assert torch.allclose(found, expected, atol=1e-6)
    for a, b in zip(torch.autograd.grad(found.square().sum(), [*layer.parameters()]), gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@traced_functions
@pytest.mark.filterwarnings("ignore:.*torch.jit")  # Inductor's own use of it
def test_compiled_by_inductor() -> None:
    layer, x = make("elements")
    assert torch.allclose(torch.compile(layer, fullgraph=True)(x), layer(x), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_made_on_meta_then_reset(kind: str) -> None:
    torch.manual_seed(0)
    with torch.device("meta"):
        layer, _ = make(kind)
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert all(p.isfinite().all() for p in layer.parameters())


def test_from_scratch_is_a_torch_layer_with_the_papers_start() -> None:
    torch.manual_seed(0)
    layer = DclsConv2d(64, 64, elements=34, window=17, padding="same", groups=64, bias=False, dtype=torch.float64)
    assert isinstance(layer, nn.Conv2d)
    assert layer.weight.dtype == layer.sampling.offset.dtype == torch.float64
    assert layer.bias is None
    assert layer.sampling.sharing == "full"
    offset = layer.sampling.offset.detach()
    assert abs(offset.std().item() - 0.5) < 0.02
    assert abs(offset.mean().item()) < 0.03
    uniform = DclsConv2d(64, 64, elements=34, window=(17, 9), padding="same", groups=64, position_init="uniform").sampling
    assert uniform.positions()[0].abs().max() > 7.8
    assert uniform.positions()[1].abs().max() < 4
    convnext = DclsConv2d(64, 64, elements=34, window=17, groups=64, weight_init="trunc_normal")
    assert abs(convnext.weight.std().item() - 0.02) < 0.001
    assert not cast(Tensor, convnext.bias).any()


@pytest.mark.parametrize("window", [8, (5, 9), (4, 6)])
def test_centre_of_even_and_rectangular_windows(window: Any) -> None:
    """A tap at offset 0 sits on the window's centre, rows first: the reference puts it elsewhere in both cases."""
    layer = DclsConv2d(1, 1, elements=1, window=window, bias=False)
    with torch.no_grad():
        layer.sampling.offset.zero_()
        layer.weight.fill_(1)
    kernel = layer.sampling.kernel(layer.weight)[0, 0]
    for axis, size in enumerate(kernel.shape):
        mass = kernel.sum(1 - axis)
        assert torch.allclose((mass * torch.arange(size)).sum(), torch.tensor((size - 1) / 2))


@pytest.mark.parametrize("window", [4, 5])
def test_no_weight_is_lost_anywhere_in_the_window(window: int) -> None:
    for kind in INTERPOLATIONS:
        layer = DclsConv1d(1, 1, elements=101, window=window, interpolation=kind)
        with torch.no_grad():
            layer.sampling.offset.copy_(torch.linspace(-4, 4, 101))
            layer.weight.fill_(1)
        assert torch.allclose(layer.sampling.kernel(layer.weight).sum(), torch.tensor(101.0))


def test_grid_from_scratch_is_the_dilated_convolution() -> None:
    torch.manual_seed(0)
    layer, x = DclsConv2d(4, 8, 3, padding=2, dilation=2), torch.randn(1, 4, 9, 9)
    assert torch.allclose(layer(x), F.conv2d(x, layer.weight, layer.bias, 1, 2, 2), atol=1e-6)


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            DclsConv2d(4, 4, elements=3, window=5, padding="same", groups=4, interpolation="gaussian") for _ in range(3)
        )
        share_positions(*self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def test_layers_share_positions_through_copies_pickles_and_state_dicts() -> None:
    torch.manual_seed(0)
    stage: Any = Stage()
    x = torch.randn(1, 4, 8, 8)
    assert len([*stage.parameters()]) == 3 * 2 + 2
    for other in (copy.deepcopy(stage), pickle.loads(pickle.dumps(stage))):
        assert len({id(b.sampling.offset) for b in other.blocks}) == len({id(b.sampling.widening) for b in other.blocks}) == 1
    fresh = Stage()
    fresh.load_state_dict(stage.state_dict())
    assert torch.equal(fresh(x), stage(x))
    stage(x).square().sum().backward()
    alone = torch.autograd.grad(stage(x).square().sum(), stage.blocks[2].sampling.offset)[0]
    assert torch.allclose(stage.blocks[0].sampling.offset.grad, alone)


def test_shared_positions_must_fit() -> None:
    a = DclsConv2d(4, 4, elements=3, window=5, groups=4)
    for other in (
        DclsConv2d(4, 4, elements=3, window=7, groups=4),
        DclsConv2d(4, 4, elements=4, window=5, groups=4),
        DclsConv2d(8, 8, elements=3, window=5, groups=8),
        DclsConv2d(4, 4, elements=3, window=5, groups=4, interpolation="gaussian"),
        nn.Conv2d(1, 1, 1),
    ):
        with pytest.raises(InputError):
            share_positions(a, other)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kernel_size": 3, "elements": 3, "window": 5},
        {"elements": 3},
        {"window": 3},
        {"elements": 0, "window": 5},
        {"elements": 3, "window": 5, "dilation": 2},
        {"kernel_size": 1},
        {"kernel_size": 3, "axes": (2,)},
        {"kernel_size": 3, "sharing": "all"},
        {"kernel_size": 3, "interpolation": "cubic"},
        {"kernel_size": 3, "width": 0.5},
        {"kernel_size": 3, "width": 0.5, "interpolation": "triangle"},
        {"kernel_size": 3, "reach": -1},
        {"elements": 3, "window": 5, "position_init": "zeros"},
        {"kernel_size": 3, "weight_init": "zeros"},
    ],
)
def test_bad_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        DclsConv2d(2, 2, **options)


def test_a_wide_gaussian_never_runs_plain() -> None:
    conv = nn.Conv1d(2, 2, 3, padding=1)
    layer, x = DclsConv1d.from_conv(conv, interpolation="gaussian", width=0.5), torch.randn(1, 2, 9)
    with torch.no_grad():
        assert not torch.allclose(layer(x), conv(x), atol=1e-2)
