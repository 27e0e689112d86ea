"""``fold(cut=)``: what is left out at a kernel's border, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import InputError
from ccrewrite.nn import DclsConv1d, DclsConv2d
from ccrewrite.passes.fold import fold

X = torch.randn(2, 4, 15, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def strided(conv: nn.Module, shift: float, x: Tensor = X) -> Any:
    model = ccrewrite.rewrite(conv.double(), x).model
    nn.init.constant_(model.sampling.shift, shift)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    return model


@pytest.mark.parametrize(("cut", "size"), [(0.0, 6), (0.02, 6), (0.06, 5)])
def test_a_shift_alone(cut: float, size: int) -> None:
    """Three samples more than the original; the outermost row holds 3 % of the kernel."""
    model = strided(nn.Conv2d(4, 8, 3, stride=2, padding=1), 0.3)
    folded = fold(model, X, forms={"(root)": "dense"}, cut=cut)
    assert folded.check.ok
    assert folded[0].message.startswith(f"k{size}")
    exact = fold(model, X, forms={"(root)": "dense"})
    assert bool(folded[0].cut_error) is (size == 5)
    if size < 6:
        assert 0.01 < folded[0].cut_error <= cut
        difference = (folded.model(X) - model(X)).norm() / model(X).norm()
        assert folded[0].cut_error / 4 < difference < 4 * folded[0].cut_error
        assert folded.lost[0].max_rel_error > 1e-3
        assert "snapping and cutting changed the outputs" in str(folded)
    else:
        torch.testing.assert_close(folded.model(X), exact.model(X))


CASES: dict[str, Any] = {
    "transposed": lambda: strided(nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1), 0.2),
    "circular": lambda: strided(nn.Conv2d(4, 6, 4, stride=2, padding=2, padding_mode="circular"), -0.1),
    "groups": lambda: strided(nn.Conv2d(4, 8, 3, stride=(2, 3), groups=2), 0.15),
    "depthwise": lambda: strided(nn.Conv2d(4, 4, 3, stride=2, groups=4), 0.15),
    "positions": lambda: positions("tap"),
    "positions of each output": lambda: positions("out"),
}


def positions(sharing: Any) -> Any:
    model = DclsConv2d(4, 4, 3, dilation=2, padding=2, sharing=sharing, reach=1, dtype=torch.float64)
    nn.init.constant_(model.sampling.offset, 0.04)
    return model


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_the_kernel_without_its_border(case: str) -> None:
    torch.manual_seed(0)
    model = CASES[case]()
    folded, exact = (fold(model, X, forms="estimated", cut=cut) for cut in (0.2, 0.0))
    assert folded.check.ok
    assert 0 < folded[0].cut_error <= 0.2
    weights = [next(p.detach() for n, p in f.model.named_parameters() if n.endswith("weight")) for f in (folded, exact)]
    assert weights[0].shape != weights[1].shape
    lost = (weights[1].norm() ** 2 - weights[0].norm() ** 2).clamp_min(0).sqrt() / weights[1].norm()
    assert float(lost) == pytest.approx(folded[0].cut_error, rel=1e-6)
    larger = torch.cat([X, X], 2)
    with torch.no_grad():
        apart = (folded.model(larger) - model(larger)).norm() / model(larger).norm()
    assert 0 < apart < 4 * folded[0].cut_error


def test_a_norm_goes_into_what_is_left() -> None:
    model = ccrewrite.rewrite(nn.Sequential(nn.Conv2d(4, 8, 3, stride=2), nn.BatchNorm2d(8)).double().eval(), X).model
    nn.init.constant_(model[0].sampling.shift, 0.3)  # pyright: ignore[reportIndexIssue]
    folded = fold(model, X, forms={"0": "dense"}, cut=0.1, batch_norm=True)
    assert folded.check.ok
    assert [n.code for n in folded.norms] == ["folded"]
    assert folded["0"].cut_error > 0


def test_what_is_not_cut() -> None:
    """Forms that aren't dense, and kernels whose weight comes with the call."""

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4, 3, 3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.weight, dilation=2)

    model = ccrewrite.rewrite(Functional(), X).model
    for sampling in (m for m in model.modules() if isinstance(m, ccrewrite.nn.Sampling)):
        nn.init.constant_(sampling.offset, 0.04)  # pyright: ignore[reportArgumentType]
    other = strided(nn.Conv2d(4, 8, 3, stride=2, padding=1), 0.3)
    for folded, given in (fold(model, X, cut=0.2), model), (fold(other, X, cut=0.2, forms={"(root)": "filtered"}), other):
        assert folded[0].cut_error == 0
        torch.testing.assert_close(folded.model(X), given(X))
    layer = DclsConv1d(4, 4, 3, dilation=2, dtype=torch.float64)
    assert fold(layer, X[0, :, 0], cut=0.2)[0].code == "original"


@pytest.mark.parametrize("cut", [-0.1, 1.0, float("nan")])
def test_out_of_range(cut: float) -> None:
    with pytest.raises(InputError, match="cut must be a part of a kernel's norm, from 0 to below 1, found"):
        fold(CASES["groups"](), X, cut=cut)
