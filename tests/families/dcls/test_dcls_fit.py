"""Taps fitted to kernels: planted ones are found, refinement only improves, sharing and condensing are what they say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ccrewrite.families.dcls import fit
from ccrewrite.families.interpolation import INTERPOLATIONS, Interpolation
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.nn import DclsSampling


def smooth(count: int, *window: int) -> Tensor:
    torch.manual_seed(0)
    kernels = torch.randn(count, 1, *window)
    pool = (torch.nn.functional.avg_pool1d, torch.nn.functional.avg_pool2d, torch.nn.functional.avg_pool3d)[len(window) - 1]
    return pool(kernels, 3, 1, 1)[:, 0]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", INTERPOLATIONS)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_planted_taps_are_found(ndim: int, kind: Interpolation, shared: bool) -> None:
    """Two taps per kernel, a few samples apart: the fit's kernel is theirs."""
    torch.manual_seed(0)
    window = (9, 8, 7)[:ndim]
    geometry = ConvGeometry(3, 3, window, (1,) * ndim, (0,) * ndim, (1,) * ndim, 3, (0,) * ndim)
    sampling = DclsSampling(geometry, interpolation=kind, elements=2, sharing="tap" if shared else "full")
    with torch.no_grad():
        sampling.offset[..., 0] = -2 + 0.5 * torch.rand(sampling.offset.shape[:-1])
        sampling.offset[..., 1] = 1.5 + 0.5 * torch.rand(sampling.offset.shape[:-1])
        kernels = sampling.kernel(torch.tensor([[1.0, -0.6], [0.5, 0.9], [-1.0, -1.0]])[:, None])[:, 0]
    found = fit.fit(kernels, 2, shared=shared, interpolation=kind)
    assert found.weight.shape == (3, 2)
    assert found.positions[0].shape == (1 if shared else 3, 2)
    assert (found.errors.sum() / kernels.square().sum()).sqrt() < 0.02


@pytest.mark.parametrize("kind", INTERPOLATIONS)
@pytest.mark.parametrize("shared", [False, True])
def test_errors_are_those_of_the_layer_and_refinement_helps(kind: Interpolation, shared: bool) -> None:
    kernels = smooth(12, 7, 7)
    path = fit.select(kernels, 6, shared=shared, interpolation=kind)
    assert path.errors == sorted(path.errors, reverse=True)
    assert len(path.errors) == 7
    start = fit.refine(kernels, path.positions, interpolation=kind, steps=0)
    assert start.errors.sum().item() == pytest.approx(path.errors[-1], rel=1e-6)
    found = fit.refine(kernels, path.positions, interpolation=kind)
    if shared:
        assert found.errors.sum() < start.errors.sum()
    else:
        assert (found.errors <= start.errors * (1 + 1e-9)).all()
    geometry = ConvGeometry(12, 12, (7, 7), (1, 1), (0, 0), (1, 1), 12, (0, 0))
    sampling = DclsSampling(geometry, interpolation=kind, elements=6, sharing="tap" if shared else "full", dtype=torch.float64)
    with torch.no_grad():
        for axis in range(2):
            sampling.offset[axis] = (found.positions[axis] - 3).view(sampling.offset.shape[1:])
            if found.widths is not None:
                assert sampling.widening is not None
                sampling.widening[axis] = (found.widths[axis] / sampling.width).log().view(sampling.offset.shape[1:])
        kernel = sampling.kernel(found.weight[:, None])[:, 0]
    assert torch.allclose((kernel - kernels).square().flatten(1).sum(1), found.errors, rtol=1e-9)


def test_many_kernels_that_share_positions_are_condensed() -> None:
    kernels = smooth(200, 5, 5)
    assert len(fit._condensed(kernels)) == 25
    found = fit.fit(kernels, 6, shared=True)
    alone = fit._refine(kernels.double(), fit.select(kernels, 6, shared=True).positions, "linear", 150, 0.1)
    assert found.weight.shape == (200, 6)
    assert found.errors.sum().item() == pytest.approx(alone.errors.sum().item(), rel=1e-4)


def test_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = smooth(10, 5, 5)
    whole = fit.fit(kernels, 3, shared=False, interpolation="gaussian", steps=20)
    monkeypatch.setattr(fit, "CHUNK", 4)
    parts = fit.fit(kernels, 3, shared=False, interpolation="gaussian", steps=20)
    assert torch.allclose(whole.weight, parts.weight, atol=1e-10)
    assert torch.allclose(whole.errors, parts.errors, atol=1e-12)


def test_several_taps_a_round_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "ROUNDS", 2)
    path = fit.select(smooth(3, 9, 9), 7, shared=False)
    assert path.positions[0].shape == (3, 7)
    places = torch.stack(path.positions, -1)
    first = places[:, :4]
    apart = (first[:, :, None] - first[:, None]).abs().amax(-1) + 9 * torch.eye(4)
    assert apart.min() >= 1


def test_zero_kernels_stay_zero() -> None:
    found = fit.fit(torch.zeros(2, 5, 5), 2, shared=False)
    assert not found.weight.any()
    assert found.weight.isfinite().all()
