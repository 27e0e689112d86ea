"""Converted checkpoints against the reference's formulas, written out; ``tests/reference_dcls`` runs the package itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ccrewrite.errors import InputError
from ccrewrite.families.dcls.checkpoints import INTERPOLATION_OF, convert_dcls_checkpoint
from ccrewrite.nn import DclsConv2d


def state(version: str, count: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(0)
    tensors = {"bias": torch.randn(4), "weight": torch.randn(4, 1, count), "P": torch.randn(2, 4, 1, count).clamp(-3, 3)}
    return tensors | ({"SIG": 0.3 * torch.rand(2, 4, 1, count)} if version in ("max", "gauss") else {})


def kernel_by_formula(tensors: dict[str, Tensor], version: str, size: int) -> Tensor:
    """P[0] is the row in v0 and the column elsewhere; positions are counted from ``size // 2``."""
    x = torch.arange(size) - (tensors["P"] + size // 2)[..., None]
    if version in ("v0", "v1"):
        phi = (1 - x.abs()).clamp_min(0)
    elif version == "max":
        phi = (1 + tensors["SIG"].abs()[..., None] - x.abs()).clamp_min(0)
    else:
        phi = torch.exp(-0.5 * (x / (tensors["SIG"].abs()[..., None] + 0.27)) ** 2)
    rows, columns = phi if version == "v0" else phi.flip(0)
    taps = rows[..., :, None] * columns[..., None, :]
    if version != "v0":
        taps = taps / (taps.sum((-1, -2), keepdim=True) + 1e-7)
    return (tensors["weight"][..., None, None] * taps).sum(2)


@pytest.mark.parametrize("version", ["v0", "v1", "max", "gauss"])
def test_kernels_are_the_reference_formulas(version: str) -> None:
    tensors = state(version)
    layer = DclsConv2d(4, 4, groups=4, elements=3, window=7, interpolation=INTERPOLATION_OF[version])
    layer.load_state_dict(convert_dcls_checkpoint(tensors, version=version, window=7))
    kernel, expected = layer.sampling.kernel(layer.weight), kernel_by_formula(tensors, version, 7)
    assert (kernel - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_other_tensors_pass_through_and_the_input_stays() -> None:
    old = {f"a.conv.{k}": v for k, v in state("v1").items()} | {"head.weight": torch.ones(2, 2)}
    before = {k: v.clone() for k, v in old.items()}
    new = convert_dcls_checkpoint(old, version="v1", window={"a.conv": 7})
    assert list(new) == ["a.conv.bias", "a.conv.weight", "a.conv.sampling.offset", "head.weight"]
    assert new["head.weight"] is old["head.weight"]
    assert all(torch.equal(v, before[k]) for k, v in old.items())


@pytest.mark.parametrize(
    ("tensors", "options"),
    [
        (state("v1"), {"version": "v2", "window": 7}),
        ({"weight": torch.ones(1, 1, 3, 3)}, {"version": "v1", "window": 7}),
        (state("v1"), {"version": "gauss", "window": 7}),
        (state("gauss"), {"version": "v1", "window": 7}),
        (state("v1"), {"version": "v1", "window": (7, 7, 7)}),
        (state("v1"), {"version": "v1", "window": {"other": 7}}),
        (state("v1") | {"P": torch.zeros(2, 4, 1, 5)}, {"version": "v1", "window": 7}),
        (state("gauss") | {"P": torch.full((2, 4, 1, 3), 9.0)}, {"version": "gauss", "window": 7}),
    ],
)
def test_what_does_not_fit_is_named(tensors: dict[str, Tensor], options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        convert_dcls_checkpoint(tensors, **options)
