"""Habits of other people's models that a rewrite must live with."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ccrewrite
from ccrewrite.ir.capture import capture
from ccrewrite.ir.preserve import preserved


class Frozen(OrderedDict[str, Any]):
    """A dictionary that refuses changes, as diffusers keeps its configurations."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError("frozen")

    def clear(self) -> None:
        raise TypeError("frozen")


def test_a_frozen_container_on_a_module_is_left_in_peace() -> None:
    model: Any = nn.Linear(1, 1)
    model.config = Frozen(width=1)
    model.plain = {"width": 1}
    with preserved(model):
        model.plain["width"] = 2
    assert model.config == {"width": 1}
    assert model.plain == {"width": 1}


class Unexportable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > x.numel() else self.conv(-x)


def test_what_export_prints_about_a_refusal_stays_unprinted(capsys: pytest.CaptureFixture[str]) -> None:
    program = capture(Unexportable(), torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(0)))
    assert (program.how, len(program.calls)) == ("observed", 1)
    assert capsys.readouterr() == ("", "")


class Downsample(nn.Module):
    """A functional convolution with a fixed filter that is written out in forward, as in diffusers' 1-d U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8)

    def forward(self, x: Tensor) -> Tensor:
        weight = x.new_zeros(x.shape[1], x.shape[1], 4)
        channels = torch.arange(x.shape[1])
        weight[channels, channels] = self.kernel  # pyright: ignore[reportArgumentType]
        return F.conv1d(F.pad(x, (1, 1), mode="reflect"), weight, stride=2)


@pytest.mark.parametrize("training", [False, True])
def test_what_a_functional_site_adds_has_its_hosts_training_flag(training: bool) -> None:
    result = ccrewrite.rewrite(nn.Sequential(Downsample()).train(training), torch.randn(1, 2, 8))
    assert len(result.plan.rewritten) == 1
    assert {m.training for m in result.model.modules()} == {training}


def test_a_transposed_convolution_that_crops_most_of_its_output() -> None:
    """diffusers' 1-d up-sampling: 8 taps, stride 2, padding 7. Four inputs would leave nothing."""
    result = ccrewrite.rewrite(nn.ConvTranspose1d(2, 2, 8, stride=2, padding=7), torch.randn(1, 2, 20))
    assert result.check.ok
    assert len(result.plan.rewritten) == 1
