"""The placement of taps on the window: values, derivatives at and away from kinks, memory, numbers that stay normal."""

from __future__ import annotations

import itertools
import math
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ccrewrite.families.dcls.sampling import SHARINGS
from ccrewrite.families.interpolation import INTERPOLATIONS, Interpolation, KeepInside, interpolate
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.nn import DclsSampling

F64 = torch.float64


def phi(kind: Interpolation, x: float, width: float) -> float:
    if kind == "gaussian":
        return math.exp(-x * x / (2 * width * width))
    return max(0.0, (1.0 if kind == "linear" else width) - abs(x))


def by_definition(
    weight: Tensor, positions: list[Tensor], widths: list[Tensor], kinds: list[str], window: tuple[int, ...]
) -> Tensor:
    """The formula, one tap and one cell at a time. Positions ``(A, B, T)`` per axis."""
    out, inner = weight.shape[:2]
    flat = weight.flatten(2)
    kernel = torch.zeros(out, inner, *window, dtype=F64)
    rows, columns, taps = positions[0].shape
    for o, i, t in itertools.product(range(out), range(inner), range(taps)):
        a, b = o * rows // out, i * columns // inner
        factors = []
        for kind, p, w, size in zip(kinds, positions, widths, window, strict=True):
            values = [phi(kind, s - float(p[a, b, t]), float(w[a, b, t])) for s in range(size)]  # pyright: ignore[reportArgumentType]
            factors.append([v / sum(values) for v in values])
        for cell in itertools.product(*map(range, window)):
            kernel[(o, i, *cell)] += float(flat[o, i, t]) * math.prod(f[s] for f, s in zip(factors, cell, strict=True))
    return kernel


@st.composite
def samplings(draw: st.DrawFn) -> tuple[DclsSampling, Tensor]:
    ndim = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 2]))
    scratch = draw(st.booleans())
    sizes = tuple(draw(st.integers(2, 4)) for _ in range(ndim))
    dilation = (1,) * ndim if scratch else tuple(draw(st.integers(1, 2)) for _ in range(ndim))
    geometry = ConvGeometry(2 * groups, 4, sizes, (1,) * ndim, (0,) * ndim, dilation, groups, (0,) * ndim)
    axes = tuple(sorted(draw(st.sets(st.integers(0, ndim - 1), min_size=1))))
    sampling = DclsSampling(
        geometry,
        interpolation=draw(st.sampled_from(INTERPOLATIONS)),
        sharing=draw(st.sampled_from(SHARINGS)),
        reach=draw(st.integers(0, 1)),
        axes=axes,
        elements=draw(st.integers(1, 5)) if scratch else None,
        dtype=F64,
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    with torch.no_grad():
        sampling.offset.add_(0.7 * torch.randn(sampling.offset.shape, generator=generator, dtype=F64))
        if sampling.widening is not None:
            sampling.widening.add_(torch.rand(sampling.widening.shape, generator=generator, dtype=F64))
            sampling.widening.add_(math.log(0.5 / sampling.width) if sampling.interpolation == "gaussian" else 0)
    return sampling, torch.randn(4, 2, *sampling.taps, generator=generator, dtype=F64)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(samplings())
def test_kernel_is_the_formula(case: tuple[DclsSampling, Tensor]) -> None:
    sampling, weight = case
    full, taps = (len(sampling.window), *sampling.offset.shape[1:]), sampling.taps
    start = torch.zeros(full, dtype=F64)
    widths = torch.ones(full, dtype=F64)
    kinds = ["linear"] * sampling.ndim
    fixed = [a for a in range(sampling.ndim) if a not in sampling.axes]
    found = sampling.positions().detach()
    for axis, size in enumerate(sampling.window):
        if axis in sampling.axes:
            start[axis] = found[sampling.axes.index(axis)] + (size - 1) / 2
            kinds[axis] = sampling.interpolation
            if sampling.widening is not None:
                widths[axis] = cast(Tensor, sampling.widths()).detach()[sampling.axes.index(axis)]
        else:
            dim = axis if sampling.elements is None else 1 + fixed.index(axis)
            grid = torch.arange(taps[dim], dtype=F64) * sampling.dilation[axis]
            start[axis] = grid.view([-1 if d == dim else 1 for d in range(len(taps))])
    expected = by_definition(weight, [*start.flatten(3)], [*widths.flatten(3)], kinds, sampling.window)
    kernel = sampling.kernel(weight)
    assert kernel.shape == (4, 2, *sampling.window)
    assert torch.allclose(kernel, expected, rtol=1e-12, atol=1e-13)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(samplings())
def test_first_and_second_derivatives(case: tuple[DclsSampling, Tensor]) -> None:
    sampling, weight = case
    with torch.no_grad():  # inside the window and away from the kinks, of positions and of triangles' feet
        moved = sampling.positions()
        sampling.offset.zero_()
        start = sampling.positions()
        for offset, before, p, axis in zip(sampling.offset, start, moved, sampling.axes, strict=True):
            centre = (sampling.window[axis] - 1) / 2
            cell = (p + centre).floor().clamp_max(sampling.window[axis] - 2)
            offset.copy_(cell + 0.23 - centre - before)
        if sampling.interpolation == "triangle":
            cast(Tensor, sampling.widening).fill_(math.log(1.55))
    names = [n for n, _ in sampling.named_parameters()]
    parameters = [p.detach().clone().requires_grad_() for p in sampling.parameters()]
    weight.requires_grad_()

    def kernel(w: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(
            _Kernel(sampling), {f"sampling.{n}": v for n, v in zip(names, values, strict=True)}, w
        )

    assert torch.autograd.gradcheck(kernel, (weight, *parameters), eps=1e-6, atol=1e-5, fast_mode=True)
    assert torch.autograd.gradgradcheck(kernel, (weight, *parameters), eps=1e-6, atol=1e-5, fast_mode=True)


class _Kernel(torch.nn.Module):
    def __init__(self, sampling: DclsSampling) -> None:
        super().__init__()
        self.sampling = sampling

    def forward(self, weight: Tensor) -> Tensor:
        return self.sampling.kernel(weight)


def one_tap(kind: Interpolation, size: int, dtype: torch.dtype = F64) -> DclsSampling:
    geometry = ConvGeometry(1, 1, (size,), (1,), (0,), (1,), 1, (0,))
    return DclsSampling(geometry, interpolation=kind, elements=1, dtype=dtype)


def kernel_at(sampling: DclsSampling, position: float) -> Tensor:
    with torch.no_grad():
        sampling.offset.fill_(position - (sampling.window[0] - 1) / 2)
    return sampling.kernel(torch.ones(1, 1, 1, dtype=sampling.offset.dtype)).flatten()


@pytest.mark.parametrize("kind", ["linear", "triangle"])
@pytest.mark.parametrize("position", [0.0, 1.0, 3.0, 4.0])
def test_on_a_sample_the_derivative_is_the_mean_of_both_sides(kind: Interpolation, position: float) -> None:
    """By finite differences from both sides; at the borders the outer side is constant."""
    sampling, step = one_tap(kind, 5), 1e-6
    cells = torch.eye(5, dtype=F64)
    found = torch.stack([torch.autograd.grad(kernel_at(sampling, position) @ c, sampling.offset)[0].flatten() for c in cells])
    here = kernel_at(sampling, position)
    right, left = (kernel_at(sampling, position + step) - here) / step, (here - kernel_at(sampling, position - step)) / step
    assert torch.allclose(found.flatten(), (left + right) / 2, atol=1e-5)
    assert found.abs().sum() > 0.9  # the tap feels its neighbours


def test_triangle_width_learns_from_its_start() -> None:
    """The reference's ``max`` never does: there the derivative is that of |SIG| at 0."""
    sampling = one_tap("triangle", 5)
    assert sampling.widening is not None
    gradient = torch.autograd.grad(kernel_at(sampling, 2.0)[2], sampling.widening)[0]
    assert torch.allclose(gradient.flatten(), torch.tensor([-1.0], dtype=F64))


@pytest.mark.parametrize("kind", INTERPOLATIONS)
def test_a_tap_beyond_the_border_stays_on_it_and_can_come_back(kind: Interpolation) -> None:
    sampling = one_tap(kind, 5)
    assert torch.equal(kernel_at(sampling, 7.0), kernel_at(sampling, 4.0))
    outward, inward = (torch.autograd.grad(kernel_at(sampling, 7.0)[c], sampling.offset)[0].item() for c in (3, 4))
    # Descent on cell 4 would push the tap further out, on cell 3 back in (they fall and rise as it leaves).
    pulls = torch.autograd.grad(-kernel_at(sampling, 7.0)[3], sampling.offset)[0].item()
    pushes = torch.autograd.grad(-kernel_at(sampling, 7.0)[4], sampling.offset)[0].item()
    assert pulls > 0
    assert pushes == 0
    assert outward == 0
    assert inward > 0


def test_keep_inside_stops_only_what_pushes_out() -> None:
    value = torch.tensor([-1.0, -1.0, 0.0, 0.5, 1.0, 2.0, 2.0], requires_grad=True)
    gradient = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0])
    (found,) = torch.autograd.grad(KeepInside.apply(value, 0, 1), value, gradient)
    assert found.tolist() == [0.0, -1.0, 1.0, 1.0, -1.0, 1.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_gaussian_tails_hold_no_subnormal(ndim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    size = (33, 17, 9)[ndim - 1]
    geometry = ConvGeometry(4, 4, (size,) * ndim, (1,) * ndim, (0,) * ndim, (1,) * ndim, 4, (0,) * ndim)
    sampling = DclsSampling(geometry, interpolation="gaussian", elements=6, position_init="uniform", dtype=dtype)
    with torch.no_grad():
        cast(Tensor, sampling.widening).normal_(-0.3, 0.3)
    weight = 1e-3 * torch.randn(4, 1, 6, dtype=dtype)
    kernel = sampling.kernel(weight)
    kernel.float().square().sum().backward()
    for tensor in (kernel, *(p.grad for p in sampling.parameters())):
        assert tensor is not None
        assert not ((tensor != 0) & (tensor.abs() < torch.finfo(dtype).tiny)).any()
    assert (kernel == 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_however_sharp_a_gaussian_is_never_nan(dtype: torch.dtype) -> None:
    phi = interpolate("gaussian", torch.tensor([0.5, 1.3, 3.0], dtype=dtype), torch.full((3,), 0.01, dtype=dtype), 4)
    assert torch.allclose(phi, torch.tensor([[0.5, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=dtype))


@pytest.mark.parametrize("kind", INTERPOLATIONS)
def test_the_backward_keeps_its_inputs_alone(kind: Interpolation) -> None:
    """``DclsConv2d(256, 256, 9 elements, window 7)``: the reference's Gaussian keeps 785 MB, for a 12 MB kernel."""
    geometry = ConvGeometry(256, 256, (7, 7), (1, 1), (3, 3), (1, 1), 1, (0, 0))
    sampling = DclsSampling(geometry, interpolation=kind, sharing="full", elements=9)
    weight = torch.randn(256, 256, 9, requires_grad=True)
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        kernel = sampling.kernel(weight)
    assert kernel.requires_grad
    assert sum(kept.values()) < 60e6


def test_derivatives_by_torch_func_agree() -> None:
    torch.manual_seed(0)
    geometry = ConvGeometry(2, 2, (5, 5), (1, 1), (0, 0), (1, 1), 2, (0, 0))
    sampling = DclsSampling(geometry, elements=3, interpolation="gaussian", dtype=F64)
    weight, cotangents = torch.randn(2, 1, 3, dtype=F64), torch.randn(4, 2, 1, 5, 5, dtype=F64)
    module = _Kernel(sampling)

    def kernel(offset: Tensor) -> Tensor:
        return torch.func.functional_call(module, {"sampling.offset": offset}, weight)

    value, pullback, *_ = torch.func.vjp(kernel, sampling.offset.detach())
    (batched,) = torch.func.vmap(pullback)(cotangents)
    for cotangent, found in zip(cotangents, batched, strict=True):
        (expected,) = torch.autograd.grad(sampling.kernel(weight), sampling.offset, cotangent)
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(value, sampling.kernel(weight).detach())
