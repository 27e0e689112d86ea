"""Clamping and snapping of positions."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.nn import CCConv2d, DclsConv1d, DclsConv2d
from ccrewrite.training import clamp_positions, snap, snapped


def layer2d(kind: str = "linear", **options: Any) -> DclsConv2d:
    torch.manual_seed(0)
    return DclsConv2d(3, 3, elements=4, window=7, padding="same", groups=3, interpolation=kind, **options)


@pytest.mark.parametrize("kind", ["linear", "gaussian", "triangle"])
def test_training_stays_in_the_window_without_a_call(kind: str) -> None:
    """A target beyond the border: positions end on it, come back when the target does, and no call was made."""
    torch.manual_seed(0)
    layer = DclsConv1d(1, 1, elements=1, window=5, padding=2, interpolation=kind, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1)
    x = torch.nn.functional.avg_pool1d(torch.randn(8, 1, 64), 5, 1, 2)
    optimizer = torch.optim.Adam([layer.sampling.offset], lr=0.1)

    def train(shift: int) -> None:
        for _ in range(100):
            optimizer.zero_grad()
            error = (layer(x) - x.roll(-shift, -1))[..., 8:-8].square().mean()
            error.backward()
            optimizer.step()
            assert layer.sampling.positions().abs().max() <= 2

    train(4)
    assert layer.sampling.positions().item() > 1.8
    assert layer.sampling.offset.abs().max() < 4  # momentum carries past the border, nothing pushes
    train(-1)
    assert layer.sampling.positions().item() == pytest.approx(-1, abs=0.1)


def test_clamp_positions_writes_back() -> None:
    layer = layer2d(position_init="uniform")
    with torch.no_grad():
        layer.sampling.offset.mul_(2)
    kernel = layer.sampling.kernel(layer.weight)
    clamp_positions(layer)
    assert layer.sampling.offset.abs().max() == 3
    assert torch.allclose(layer.sampling.kernel(layer.weight), kernel, atol=1e-6)


def test_clamping_leaves_what_is_inside_and_knows_every_bound() -> None:
    """To the last bit: a step smaller than a sample's resolution must not be lost."""
    net: Any = nn.Sequential(
        DclsConv2d(2, 2, (3, 5), dilation=(2, 3), interpolation="triangle", reach=1),
        DclsConv2d(2, 2, (1, 4), dilation=3, sharing="out"),
        CCConv2d.from_conv(nn.Conv2d(2, 2, 3, stride=2)),
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 1e-3)
            parameter.view(-1)[::3] *= 1e4
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    places = [torch.stack(net[i].sampling.cells()) for i in (0, 1)]
    kernels = [net[i].sampling.kernel(net[i].weight) for i in (0, 1, 2)]
    clamp_positions(net)
    for index, (cells, kernel) in enumerate(zip([*places, None], kernels, strict=True)):
        sampling: Any = net[index].sampling
        assert torch.allclose(sampling.kernel(net[index].weight), kernel, rtol=1e-5)
        if cells is not None:
            assert torch.allclose(torch.stack(sampling.cells()), cells, atol=1e-6)
            sizes = torch.tensor([sampling.window[a] - 1 for a in sampling.axes]).view(-1, 1, 1, *(1,) * len(sampling.taps))
            centred = sampling.positions() + sizes / 2
            changed = sampling.offset != before[f"{index}.sampling.offset"]
            assert changed.any()
            assert ((centred == 0) | (centred == sizes))[changed].all()
    assert net[0].sampling.widths().min() == 1
    assert net[2].sampling.shift.tolist() == [max(-0.5, min(v, 0.5)) for v in before["2.sampling.shift"].tolist()]


@pytest.mark.parametrize("kind", ["linear", "gaussian", "triangle"])
def test_snap_reports_what_it_changes(kind: str) -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(layer2d(kind), nn.ReLU(), DclsConv2d(3, 2, 3, dilation=2, interpolation=kind, sharing="out"))
    with torch.no_grad():
        net[2].sampling.offset.normal_(0, 0.4)
    kernels = [net[i].sampling.kernel(net[i].weight).detach() for i in (0, 2)]
    report = snap(net)
    assert set(report) == {"0", "2"}
    for index, kernel in zip((0, 2), kernels, strict=True):
        layer: Any = net[index]
        cells = torch.stack(layer.sampling.cells())
        assert torch.allclose(cells, cells.round(), atol=1e-6)
        error = (layer.sampling.kernel(layer.weight) - kernel).norm() / kernel.norm()
        assert report[str(index)].kernel_error == pytest.approx(error.item(), rel=1e-4)
        assert 0 < report[str(index)].moved <= 0.5
    assert all(r.moved < 1e-6 for r in snap(net).values())


def test_snap_can_sharpen() -> None:
    layer = layer2d("gaussian", position_init="uniform")
    snap(layer, width=0.1)
    kernel = layer.sampling.kernel(layer.weight)
    assert (kernel.detach().abs() > 1e-6).sum() <= 12


def test_snapped_is_undone() -> None:
    layer = layer2d("gaussian")
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    with snapped(layer, width=0.1) as report:
        assert report["(root)"].moved > 0
        assert cast(Tensor, layer.sampling.widths()).max() < 0.11
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_snap_needs_a_layer() -> None:
    with pytest.raises(InputError):
        snap(nn.Conv2d(1, 1, 3))
