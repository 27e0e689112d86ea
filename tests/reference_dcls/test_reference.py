"""Against the reference package (PyPI ``dcls``): forward and gradients of all its versions through converted checkpoints, and
what it does wrong, seen by running it beside this package's layers."""

from __future__ import annotations

from typing import Any

import DCLS.construct.modules as reference
import pytest
import torch
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.families.dcls.checkpoints import INTERPOLATION_OF, convert_dcls_checkpoint
from ccrewrite.nn import DclsConv1d, DclsConv2d, DclsConv3d

OURS = (DclsConv1d, DclsConv2d, DclsConv3d)
VERSIONS = ("v0", "v1", "max", "gauss")


def theirs(ndim: int, version: str, window: Any, *, groups: int = 1, count: int = 6, spread: float = 1.5) -> Any:
    torch.manual_seed(ndim)
    kind = getattr(reference, f"Dcls{ndim}d")
    layer = kind(4, 8, count, padding=1, dilated_kernel_size=window, groups=groups, version=version)
    with torch.no_grad():
        layer.P.normal_(0, spread)
        layer.clamp_parameters()
        if layer.SIG is not None:
            layer.SIG.normal_(0.23, 0.1)
    return layer


def ours(layer: Any, version: str, window: Any) -> Any:
    ndim = layer.P.shape[0]
    new = OURS[ndim - 1](
        *(4, 8),
        padding=1,
        groups=layer.groups,
        elements=layer.kernel_count,
        window=window,
        sharing="full",
        interpolation=INTERPOLATION_OF[version],
    )
    new.load_state_dict(convert_dcls_checkpoint(layer.state_dict(), version=version, window=window))
    return new


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("ndim", "window"), [(1, 9), (1, 33), (2, 7), (2, 17), (3, 5)])
def test_outputs_and_gradients(ndim: int, window: int, version: str, groups: int) -> None:
    """Square odd windows: outputs to 1e-6 relative, gradients to 1e-5, in float32."""
    old = theirs(ndim, version, window, groups=groups)
    new = ours(old, version, window)
    x = torch.randn(2, 4, *(window + 3,) * ndim)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected, found = old(a), new(b)
    assert relative(found, expected) <= 1e-6
    g = torch.randn_like(expected)
    expected.backward(g)
    found.backward(g)
    pairs = {"input": (b.grad, a.grad), "weight": (new.weight.grad, old.weight.grad), "bias": (new.bias.grad, old.bias.grad)}
    pairs["positions"] = new.sampling.offset.grad, in_row_order(old.P.grad, version)
    if old.SIG is not None:
        # d/d widening = width * d/d width, and the width grows with |SIG|
        width = old.SIG.detach().abs() + (0.27 if version == "gauss" else 1.0)
        pairs["widths"] = new.sampling.widening.grad, in_row_order(old.SIG.grad * old.SIG.detach().sign() * width, version)
    for name, (mine, their) in pairs.items():
        inside = torch.ones_like(mine, dtype=torch.bool)
        if name == "positions":  # on a border the two differ on purpose (defect 5)
            inside = new.sampling.positions().abs() < (window - 1) / 2
        assert relative(mine * inside, their * inside) <= 1e-5, name


def in_row_order(gradient: Tensor, version: str) -> Tensor:
    if version == "v0":
        return gradient[[0, 2, 1]] if len(gradient) == 3 else gradient
    return gradient.flip(0)


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_taps_that_left_the_window(version: str) -> None:
    """Trained without the clamping that the reference never calls: what is left of them is folded into the weight."""
    torch.manual_seed(0)
    old = reference.Dcls1d(4, 8, 20, padding=1, dilated_kernel_size=5, version=version)
    with torch.no_grad():
        old.P.uniform_(-4, 4)
    x = torch.randn(1, 4, 12)
    assert relative(ours(old, version, 5)(x), old(x)) <= 1e-6


@pytest.mark.parametrize("version", ["max", "gauss"])
def test_centres_outside_the_window_are_refused(version: str) -> None:
    old = theirs(1, version, 5)
    with torch.no_grad():
        old.P[0, 0, 0, 0] = 2.5
    with pytest.raises(InputError, match="outside the window"):
        ours(old, version, 5)


@pytest.mark.parametrize("version", VERSIONS)
def test_even_windows(version: str) -> None:
    """Their centre is half a sample off ours; where their taps are inside the window, outputs agree all the same."""
    old = theirs(2, version, 8, spread=0.5)
    x = torch.randn(1, 4, 12, 12)
    assert relative(ours(old, version, 8)(x), old(x)) <= 1e-6


@pytest.mark.parametrize("version", ["v1", "max", "gauss"])
def test_time_axis_alone(version: str) -> None:
    torch.manual_seed(0)
    old = reference.Dcls3_1d(2, 4, 3, padding=(1, 1, 4), dense_kernel_size=(3, 3), dilated_kernel_size=9, version=version)
    kind = INTERPOLATION_OF[version]
    new = DclsConv3d(2, 4, padding=(1, 1, 4), elements=3, window=(3, 3, 9), axes=(2,), sharing="full", interpolation=kind)
    new.load_state_dict(convert_dcls_checkpoint(old.state_dict(), version=version, window=(3, 3, 9)))
    x = torch.randn(1, 2, 5, 6, 20)
    # Its clamp of the positions allows the borders, on which v1's own result still is the same.
    assert relative(new(x), old(x)) <= 1e-6


@pytest.mark.parametrize(("flat", "window"), [(0, (9, 1)), (1, (1, 9))])
def test_one_axis_of_two(flat: int, window: tuple[int, int]) -> None:
    torch.manual_seed(0)
    old = reference.Dcls2dK1d(2, 4, 3, padding=0, dilated_kernel_size=9, version="v1", flat_dim=flat)
    new = DclsConv2d(2, 4, elements=3, window=window, sharing="full")
    new.load_state_dict(convert_dcls_checkpoint(old.state_dict(), version="v1", window=window))
    x = torch.randn(1, 2, 12, 12)
    assert relative(new(x), old(x)) <= 1e-6


def test_a_model_with_other_layers_and_two_windows() -> None:
    torch.manual_seed(0)
    old = nn.Sequential(theirs(2, "v1", 5), nn.ReLU(), nn.Conv2d(8, 4, 1), theirs(2, "v1", 7))
    state = convert_dcls_checkpoint(old.state_dict(), version="v1", window={"0": 5, "3": 7})
    new = nn.Sequential(ours(old[0], "v1", 5), nn.ReLU(), nn.Conv2d(8, 4, 1), ours(old[3], "v1", 7))
    new.load_state_dict(state)
    x = torch.randn(1, 4, 16, 16)
    assert relative(new(x), old(x)) <= 1e-6


# ---- The reference's defects (docs/dcls.md, the table), each beside what happens here.


def single(version: str, window: Any) -> Any:
    ndim = len(window) if isinstance(window, tuple) else 1
    layer = getattr(reference, f"Dcls{ndim}d")(1, 1, 1, dilated_kernel_size=window, version=version)
    with torch.no_grad():
        layer.weight.fill_(1)
        layer.P.zero_()
    return layer


def kernel(layer: Any) -> Tensor:
    return layer.DCK(layer.weight, layer.P, layer.SIG)


def test_defect_1_axis_order_differs_by_version() -> None:
    peaks = {}
    for version in VERSIONS:
        layer = single(version, (5, 5))
        with torch.no_grad():
            layer.P[0] = 1
        peaks[version] = divmod(int(kernel(layer)[0, 0].argmax()), 5)
    assert peaks == {"v0": (3, 2), "v1": (2, 3), "max": (2, 3), "gauss": (2, 3)}
    for kind in INTERPOLATION_OF.values():
        here = DclsConv2d(1, 1, elements=1, window=5, interpolation=kind)
        with torch.no_grad():
            here.sampling.offset.copy_(torch.tensor([1.0, 0.0]).view(2, 1, 1, 1))
            here.weight.fill_(1)
        assert divmod(int(here.sampling.kernel(here.weight)[0, 0].argmax()), 5) == (3, 2)


def test_defect_2_rectangular_windows_are_off_centre() -> None:
    assert divmod(int(kernel(single("v1", (5, 9)))[0, 0].argmax()), 9) == (4, 2)
    here = DclsConv2d(1, 1, elements=1, window=(5, 9))
    with torch.no_grad():
        here.sampling.offset.zero_()
        here.weight.fill_(1)
    assert divmod(int(here.sampling.kernel(here.weight)[0, 0].argmax()), 9) == (2, 4)


def test_defect_3_max_never_learns_its_width() -> None:
    layer = single("max", 5)
    assert not torch.autograd.grad(kernel(layer)[0, 0, 2], layer.SIG)[0].any()
    here = DclsConv1d(1, 1, elements=1, window=5, interpolation="triangle")
    with torch.no_grad():
        here.sampling.offset.zero_()
    assert torch.autograd.grad(here.sampling.kernel(here.weight)[0, 0, 2], here.sampling.widening)[0].all()  # pyright: ignore[reportArgumentType, reportCallIssue]


@pytest.mark.parametrize("version", ["v1", "max"])
def test_defect_4_no_gradient_on_the_grid(version: str) -> None:
    layer = single(version, 5)
    assert not torch.autograd.grad(kernel(layer)[0, 0, 3], layer.P)[0].any()
    here = DclsConv1d(1, 1, elements=1, window=5, interpolation=INTERPOLATION_OF[version])
    with torch.no_grad():
        here.sampling.offset.zero_()
    assert torch.autograd.grad(here.sampling.kernel(here.weight)[0, 0, 3], here.sampling.offset)[0].all()


def test_defect_5_borders() -> None:
    layer = single("v0", 5)
    with torch.no_grad():
        layer.P.fill_(2)
    # On the last cell, it says that a step outwards takes the tap's mass away; and in an even window that is so.
    assert torch.autograd.grad(kernel(layer)[0, 0, 4], layer.P)[0].item() == -1
    even = single("v0", 4)
    with torch.no_grad():
        even.P.fill_(2)
    assert not kernel(even).any()
    here = DclsConv1d(1, 1, elements=1, window=4)
    with torch.no_grad():
        here.sampling.offset.fill_(2)
        here.weight.fill_(1)
    assert here.sampling.kernel(here.weight).flatten().tolist() == [0, 0, 0, 1]


def test_defect_6_a_gaussian_is_never_a_delta() -> None:
    layer = single("gauss", 5)
    with torch.no_grad():
        layer.SIG.zero_()
    assert kernel(layer).max() < 0.9981
    conv = nn.Conv1d(1, 1, 3, dilation=2)
    here = DclsConv1d.from_conv(conv, interpolation="gaussian")
    assert relative(here.sampling.kernel(here.weight)[..., ::2], conv.weight) <= 2e-6
