"""Batch norms folded into the convolutions before them, where that is right."""

from __future__ import annotations

from typing import Any

import torch
from moved import move_, worst
from torch import Tensor, nn
from zoo import build

import ccrewrite
from ccrewrite.passes.fold import fold


class Normed2(nn.Module):
    """Batch norms after convolutions of several kinds, and where they can't be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
        self.down_norm = nn.BatchNorm2d(4)
        self.across = nn.Conv2d(4, 4, 3, dilation=2, padding=2)
        self.across_norm = nn.BatchNorm2d(4, affine=False)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.shown = nn.Conv2d(4, 4, 1)
        self.shown_norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1, groups=2)
        self.up_norm = nn.BatchNorm2d(6)
        self.last = nn.BatchNorm2d(6)
        self.unused = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.across_norm(self.across(self.down_norm(self.down(x)).relu())).relu()
        x = self.second(self.twice(self.first(self.twice(x))))
        shown = self.shown(x)
        return self.last(self.up_norm(self.up(self.shown_norm(shown) + shown)).relu())


def test_batch_norms_are_folded_where_that_is_right() -> None:
    model, x = Normed2().double(), torch.randn(2, 3, 17, 17, dtype=torch.float64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    rewritten = move_(ccrewrite.rewrite(model, x).model)
    result = fold(rewritten, x, batch_norm=True)
    assert {n.name: n.code for n in result.norms} == {
        "down_norm": "folded",
        "across_norm": "folded",
        "first": "several-calls",
        "second": "several-calls",
        "shown_norm": "several-users",
        "up_norm": "folded",
        "last": "no-convolution",
        "unused": "never-called",
    }
    assert result.check.ok
    assert worst(rewritten.eval(), result.model, x) <= 1e-12
    assert type(result.model.down_norm) is nn.Identity
    assert fold(rewritten, x).norms == ()
    assert "down_norm" in str(result)


def test_batch_norms_that_others_look_at_stay() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 3, dilation=2), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    model.add_module("batch", nn.BatchNorm2d(4, track_running_stats=False))
    model.add_module("conv", nn.Conv2d(4, 4, 3))
    model.add_module("instance", nn.BatchNorm2d(4, track_running_stats=False))
    model[1].register_forward_hook(lambda module, args, out: None)
    model.tied = None
    model[2].also = nn.ParameterList([model[2].weight])
    x = torch.randn(2, 3, 15, 15)
    result = fold(move_(ccrewrite.rewrite(model, x).model), x, batch_norm=True)
    codes = {n.name: n.code for n in result.norms}
    assert codes == {"1": "hooked", "3": "shared-weight", "batch": "no-convolution", "instance": "no-statistics"}
    model, inputs = build("reads_values")
    model.norm = nn.BatchNorm2d(4)
    result = fold(move_(ccrewrite.rewrite(model, inputs).model), inputs, batch_norm=True)
    assert [n.code for n in result.norms] == ["not-exported"]
