"""Training knows samplings by their protocol: one of somebody else's, with no more than it must have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from stranger import VolumeSampling
from torch import Tensor, nn

from ccrewrite import FinetuneConfig, finetune
from ccrewrite.errors import InputError
from ccrewrite.families.adopt import adopt_
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.training import Recorder, clamp_positions, param_groups, snap
from ccrewrite.training.pictures import animate, draw


class Bounded(VolumeSampling):
    """One that says more: a group, a rate and bounds of its own, and whole numbers to snap to."""

    parameter_group = "positions"
    lr_scale = 2.0

    def clamp_(self) -> None:
        self.volume.clamp_(-1, 1)

    @torch.no_grad()
    def snap_(self, tol: float, *, width: float | None = None) -> float:
        moved = float((self.volume.round() - self.volume).abs().max())
        self.volume.round_()
        return moved


def network(kind: type[VolumeSampling] = VolumeSampling) -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    conv: Any = net[0]
    adopt_(conv, kind.of(ConvGeometry.from_module(conv)))
    return net


def batches() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3)]


def test_its_parameters_are_geometry_unless_it_says_otherwise() -> None:
    groups = {g["name"]: (g["lr"], g["weight_decay"]) for g in param_groups(network(), 0.1, 0.05)}
    assert groups == {"weights": (0.1, 0.05), "vectors": (0.1, 0.0), "geometry": (0.1, 0.0)}
    for scale, rate in ((5.0, 1.0), (3.0, pytest.approx(0.6))):
        groups = {g["name"]: g["lr"] for g in param_groups(network(Bounded), 0.1, position_lr_scale=scale)}
        assert groups == {"weights": 0.1, "vectors": 0.1, "positions": rate}


def test_it_is_trained_recorded_and_drawn(tmp_path: Path) -> None:
    model = network()
    recorder = Recorder(model)
    finetune(model, batches(), F.cross_entropy, config=FinetuneConfig(epochs=3, lr=0.1), schedules=[recorder])
    volume = model[0].sampling.volume.detach()
    (movement,) = recorder.movements()
    assert (movement.site, movement.kind, movement.graded) == ("0", "Volume", True)
    assert movement.largest == pytest.approx(float(volume.abs().max()))
    assert torch.equal(recorder.recordings["0"][-1].tensors[0], volume)
    (axes,) = draw(recorder, tmp_path / "volume.png").axes
    assert [len(line.get_xdata()) for line in axes.lines] == [4] * 9 + [9], "each value over the steps, and the starts"  # pyright: ignore[reportArgumentType]
    animate(recorder, tmp_path / "volume.gif")
    again = Recorder(model)
    again.load_state_dict(recorder.state_dict())
    assert again.movements() == recorder.movements()


def test_bounds_and_snapping_are_its_own() -> None:
    model = network(Bounded)
    with torch.no_grad():
        model[0].sampling.volume.copy_(torch.tensor([3.0, 0.25, -0.5]).expand(3, 3))
    clamp_positions(model)
    assert model[0].sampling.volume[0].tolist() == [1, 0.25, -0.5]
    report = snap(model)
    assert report["0"].moved == 0.5
    error = report["0"].kernel_error
    assert error is not None
    assert error > 0
    assert model[0].sampling.volume[0].tolist() == [1, 0, 0]
    plain = network()
    clamp_positions(plain)
    with pytest.raises(InputError, match="nothing to snap"):
        snap(plain)
