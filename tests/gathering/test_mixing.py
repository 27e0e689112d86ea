"""Products over channels: by oneDNN, by a convolution or by torch's matrix product, the same numbers."""

from __future__ import annotations

import platform

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ccrewrite.gathering import mixing
from ccrewrite.gathering.mixing import mix, mix_backward

ONEDNN = torch.backends.mkldnn.is_available() and platform.machine().lower() in ("x86_64", "amd64")


def operands(batch: int, out: int, inner: int, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Data and gradient that are slices of larger ones, and a mixing that is a slice of taps."""
    torch.manual_seed(0)
    data = torch.randn(batch, inner, samples + 7)[:, :, 3 : 3 + samples]
    gradient = torch.randn(batch, out, samples + 5)[:, :, 2 : 2 + samples]
    return data, torch.randn(out, inner, 3)[:, :, 1:2], gradient


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every product of oneDNN's."""
    asked, product = list[int](), mixing.onednn_product
    monkeypatch.setattr(mixing, "onednn_product", lambda *a: asked.append(1) or product(*a))
    return asked


@pytest.mark.skipif(not ONEDNN, reason="never called where torch has no oneDNN, or off x86")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("out", "inner", "samples"), [(64, 48, 400), (16, 300, 250), (130, 20, 500)])
def test_onednn_multiplies_the_same(batch: int, out: int, inner: int, samples: int, products: list[int]) -> None:
    data, mixed_by, gradient = operands(batch, out, inner, samples)
    found = [mix(data, mixed_by, 1), *mix_backward(gradient, data, mixed_by, 1, True)]
    assert len(products) == 3 * batch
    wide = data.double(), mixed_by.double(), gradient.double()
    expected = [mix(*wide[:2], 1), *mix_backward(wide[2], *wide[:2], 1, True)]
    assert len(products) == 3 * batch, "only float32"
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).abs().max()) <= 1e-5 * float(other.abs().max())


def test_what_is_differentiated_or_looked_at_is_left_to_torch(products: list[int]) -> None:
    data, mixed_by, gradient = operands(1, 64, 48, 400)
    wanted = mixed_by.clone().requires_grad_()
    found = torch.autograd.grad(mix(data, wanted, 1), wanted, gradient)[0]
    expected = mix_backward(gradient.double(), data.double(), mixed_by.double(), 1, False)[1]
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-3)
    with FlopCounterMode(display=False) as counter:
        mix(data, mixed_by, 1)
    assert counter.get_total_flops() == 2 * 64 * 48 * 400
    torch.testing.assert_close(
        torch.vmap(lambda x: mix(x, mixed_by, 1))(data[None])[0], mix(data.double(), mixed_by.double(), 1).float()
    )
    assert not products


@pytest.mark.parametrize("out", [16, 64])
def test_without_onednn(out: int, products: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing, "onednn_multiplies", lambda: False)
    data, mixed_by, gradient = operands(2, out, 300, 250)
    found = [mix(data, mixed_by, 1), *mix_backward(gradient, data, mixed_by, 1, True)]
    wide = data.double(), mixed_by.double(), gradient.double()
    for one, other in zip(found, [mix(*wide[:2], 1), *mix_backward(wide[2], *wide[:2], 1, True)], strict=True):
        assert float((one - other).abs().max()) <= 1e-5 * float(other.abs().max())
    assert not products
