"""Networks of timm's, whose convolutions standardise their weights or pad by the size of the input in their own forwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from moved import move_
from torch import nn

import ccrewrite

from .models import redraw_
from .torchvision_shim import import_torchvision

pytestmark = [pytest.mark.slow]


@pytest.mark.parametrize("name", ["nf_regnet_b0", "test_nfnet", "tf_mobilenetv3_small_minimal_100"])
def test_a_network_is_rewritten_whole(name: str, tmp_path: Any) -> None:
    import_torchvision()
    import timm

    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, pretrained=False)
    redraw_(model)
    model.eval()
    x = torch.randn(1, 3, 97, 64)  # an odd size: SAME pads it otherwise than an even one
    result = ccrewrite.rewrite(model, x)
    strided = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and max(m.stride) > 1 < max(m.kernel_size)]
    assert [site.name for site in result.plan.rewritten] == strided
    assert len(strided) == 5
    assert {site.code for site in result.plan} == {"plain", "strided-to-cc"}
    assert result.check.ok
    assert result.check.gradients
    want = move_(result.model)(x).detach()
    assert not torch.allclose(want, model(x), rtol=1e-3)
    ccrewrite.save(result, tmp_path)
    torch.testing.assert_close(ccrewrite.load(model, tmp_path)(x), want, rtol=0, atol=0)
    folded = ccrewrite.fold(result, x)
    assert folded.check.ok
    torch.testing.assert_close(folded.model(x), want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))
