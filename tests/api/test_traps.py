"""What real models do to whoever rewrites them: one small model for each trap, rewritten, trained a step and reverted.

The numbers are those of the list of traps that third-party models taught.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from zoo import Causal, Masked, OldNormed, ReadsGeometry, Reused, Standardised

import ccrewrite
from ccrewrite.nn import RewrittenConv, Sampling

F64 = torch.float64


def pictures() -> Tensor:
    return torch.randn(2, 4, 17, 17, dtype=F64)


def signals() -> Tensor:
    return torch.randn(2, 4, 21, dtype=F64)


class PerSample(nn.Module):
    """4: weights per sample (CondConv), as one grouped convolution over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(3, 4, 4, 3, 3) / 6)
        self.routing = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        mix = self.routing(x.mean((2, 3))).softmax(1)
        weight = torch.einsum("ne,eoikl->noikl", mix, self.experts).flatten(0, 1)
        return F.conv2d(x.reshape(1, n * c, h, w), weight, padding=2, dilation=2, groups=n).view(n, 4, h, w)


class Modulated(nn.Module):
    """4: a modulated, demodulated up-sampling convolution (StyleGAN2)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))
        self.style = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        w = self.weight * (self.style(x.mean((2, 3))) + 1).view(n, 1, 4, 1, 1)
        w = w * (w.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        w = w.transpose(1, 2).reshape(n * 4, 4, 3, 3)
        out = F.conv_transpose2d(x.reshape(1, -1, *x.shape[2:]), w, stride=2, groups=n)
        return out.view(n, 4, *out.shape[2:])


class Binarised(nn.Conv2d):
    """4: binary weights with a straight-through estimator."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        return F.conv2d(x, w + (w.sign() - w).detach(), self.bias, self.stride, self.padding, self.dilation, self.groups)


class Sliced(nn.Module):
    """4: one big weight, of which two calls use different parts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4, 3, 3) / 6)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, self.weight[:4], stride=2), self.weight[2:], dilation=2)


class MasksItsData(nn.Conv1d):
    mask: Tensor

    """5: changes the weight in forward (PixelCNN-style masks)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        mask = torch.ones_like(self.weight)
        mask[..., -1] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


class ReadsWeight(nn.Module):
    """5: uses a layer's weight without calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Conv1d(4, 4, 4, stride=2)
        self.decode = nn.Conv1d(4, 4, 3, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv_transpose1d(x, self.encode.weight, stride=2)
        return F.conv1d(x, self.decode.weight, self.decode.bias, dilation=self.decode.dilation)


class Cached(nn.Conv1d):
    """6: a streaming convolution: an extra argument that carries the past."""

    def forward(self, x: Tensor, cache: dict[str, Tensor] | None = None) -> Tensor:
        past = x.new_zeros(*x.shape[:2], self.dilation[0] * (self.kernel_size[0] - 1))
        if cache is not None:
            past = cache.get("past", past)
        x = torch.cat([past, x], -1)
        if cache is not None:
            cache["past"] = x[..., -past.shape[-1] :]
        return self._conv_forward(x, self.weight, self.bias)


class Streams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = Cached(4, 4, 3, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        cache: dict[str, Tensor] = {}
        return torch.cat([self.conv(part, cache=cache) for part in x.split(7, -1)], -1)


class AsksForSizes(nn.Module):
    """6: ``output_size``, positional and by name, and ``_conv_forward`` from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        low = self.down._conv_forward(x, self.down.weight, None)
        return self.up(low, x.shape[2:]) + self.up(low, output_size=x.size())


class FixedFilter(nn.Module):
    kernel: Tensor

    """8: blur kernels in a buffer, and a layer that nothing calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.tensor([1.0, 2.0, 1.0]).expand(4, 1, 3).clone() / 4)
        self.conv = nn.Conv1d(4, 4, 3)
        self.spare = nn.Conv1d(4, 4, 3, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(self.conv(x), self.kernel, stride=2, groups=4)


class Codes(nn.Module):
    codebook: Tensor

    """9: a vector quantiser, whose integer codes are an output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 4, stride=2)
        self.register_buffer("codebook", torch.randn(8, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        latent = self.conv(x)
        codes = torch.cdist(latent.mT, self.codebook).argmin(-1)
        return {"latent": latent, "codes": codes, "quantized": self.codebook[codes]}


class CommonShapes(nn.Module):
    """10: 1x1 with stride, patches, even kernels, inputs that are not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(4, 4, 2, stride=2)
        self.even = nn.Conv2d(4, 4, 4, padding="same", dilation=2)
        self.skip = nn.Conv2d(4, 4, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x.permute(0, 1, 3, 2))
        return self.skip(self.even(x[..., ::2, :]))


def several(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(copy.deepcopy(layer) for layer in layers))


TRAPS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], dict[str, str]]] = {
    "1 standardised": (
        several(Standardised(4, 4, 3, stride=2), Masked(4, 4, 3, dilation=2)),
        pictures,
        {"0": "strided-to-cc", "1": "dilated-to-dcls"},
    ),
    "2 aliases": (Reused, pictures, {"conv": "dilated-to-dcls", "stages.0": "strided-to-cc"}),
    "3 old norms": (OldNormed, signals, {"weight_normed": "dilated-to-dcls", "spectral": "strided-to-cc"}),
    "4 per sample": (PerSample, pictures, {":conv2d": "dilated-to-dcls"}),
    "4 modulated": (Modulated, pictures, {":conv_transpose2d": "transposed-to-cc"}),
    "4 binarised": (several(Binarised(4, 4, 3, dilation=2)), pictures, {"0": "dilated-to-dcls"}),
    "4 sliced": (Sliced, pictures, {":conv2d": "strided-to-cc", ":conv2d#2": "dilated-to-dcls"}),
    "5 masks its data": (several(MasksItsData(4, 4, 3, dilation=2)), signals, {"0": "dilated-to-dcls"}),
    "5 reads weights": (ReadsWeight, signals, {"encode": "transposed-to-cc", "decode": "dilated-to-dcls"}),
    "6 extra arguments": (Streams, signals, {"conv": "dilated-to-dcls"}),
    "6 output sizes": (AsksForSizes, pictures, {"down": "strided-to-cc", "up": "transposed-to-cc"}),
    "6 causal": (several(Causal(4, 4, 3, dilation=4)), signals, {"0": "dilated-to-dcls"}),
    "7 reads geometry": (ReadsGeometry, pictures, {"conv": "strided-to-cc"}),
    "8 fixed filters": (FixedFilter, signals, {"conv": "plain", "kernel": "strided-to-cc", "spare": "never-called"}),
    "9 codes": (Codes, signals, {"conv": "strided-to-cc"}),
    "10 common shapes": (
        CommonShapes,
        pictures,
        {"patches": "strided-to-cc", "even": "dilated-to-dcls", "skip": "strided-to-cc"},
    ),
}


def flat(value: Any) -> list[Tensor]:
    return [t for t in tree_leaves(value) if isinstance(t, Tensor)]


@pytest.fixture(params=TRAPS)
def trap(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, dict[str, str]]:
    torch.manual_seed(0)
    factory, inputs, codes = TRAPS[request.param]
    return factory().to(F64), inputs(), codes


Trap = tuple[nn.Module, Tensor, dict[str, str]]


@pytest.mark.parametrize("how", ["auto", "observe"])
def test_every_call_has_its_answer(trap: Trap, how: Any) -> None:
    model, x, codes = trap
    assert {s.name: s.decision.code for s in ccrewrite.plan(model, x, how=how)} == codes


def test_rewritten_trained_and_reverted(trap: Trap) -> None:
    model, x, codes = trap
    model.eval()
    expected = flat(model(x))
    result = ccrewrite.rewrite(model, x)
    assert {s.name: s.decision.code for s in result.plan} == codes
    assert result.check.ok
    rewritten = result.model
    with torch.no_grad():
        for a, b in zip(flat(rewritten(x)), expected, strict=True):
            assert torch.equal(a, b)
    found = flat(rewritten(x))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)

    known = {n for n, _ in model.named_parameters(remove_duplicate=False)}
    added = {n: p for n, p in rewritten.named_parameters() if n not in known}
    learn = {n: p for n, p in added.items() if p.requires_grad}  # a fixed filter's is added frozen
    optimizer = torch.optim.SGD(rewritten.parameters(), lr=1e-3)
    for step in range(2):
        optimizer.zero_grad()
        torch.stack([(t * torch.randn_like(t)).sum() for t in flat(rewritten(x)) if t.is_floating_point()]).sum().backward()
        live = {n for n, p in learn.items() if p.grad is not None and p.grad.isfinite().all() and p.grad.any()}
        zeros = {n for n, p in learn.items() if not p.any()}
        assert zeros <= live
        if step == 1:
            assert live == set(learn)
        optimizer.step()
    with torch.no_grad():
        moved = [not torch.equal(a, b) for a, b in zip(flat(rewritten(x)), expected, strict=True) if a.is_floating_point()]
    assert any(moved) or not learn
    trained = {k: v.clone() for k, v in rewritten.state_dict().items()}
    ccrewrite.revert(rewritten)
    assert not any(isinstance(m, Sampling | RewrittenConv) for m in rewritten.modules())
    assert list(rewritten.state_dict()) == list(model.state_dict())
    assert all(torch.equal(v, trained[k]) for k, v in rewritten.state_dict().items())


def test_copies_and_checkpoints_survive(trap: Trap) -> None:
    model, x, _ = trap
    rewritten = ccrewrite.rewrite(model.eval(), x).model
    with torch.no_grad():
        for module in rewritten.modules():
            if isinstance(module, Sampling):
                for p in module.movers():
                    p += 0.1 * torch.randn_like(p)
        expected = flat(rewritten(x))
        for a, b in zip(flat(copy.deepcopy(rewritten)(x)), expected, strict=True):
            assert torch.equal(a, b)
        other = ccrewrite.rewrite(model, x).model
        other.load_state_dict(rewritten.state_dict())
        for a, b in zip(flat(other(x)), expected, strict=True):
            torch.testing.assert_close(a, b)


def test_1_other_batch_sizes_and_lengths_still_run() -> None:
    """Per-sample weights change their number of groups with the batch."""
    for kind in (PerSample, Modulated):
        model = kind().to(F64).eval()
        rewritten = ccrewrite.rewrite(model, pictures()).model
        for n in (1, 3):
            x = torch.randn(n, 4, 11, 13, dtype=F64)
            torch.testing.assert_close(rewritten(x), model(x), rtol=1e-11, atol=1e-11)


def test_3_old_norms_copy_after_a_forward_with_gradients() -> None:
    model = OldNormed().to(F64)
    x = signals()
    model(x).sum().backward()
    with pytest.raises(RuntimeError, match="deepcopy protocol"):
        copy.deepcopy(model)
    assert ccrewrite.rewrite(model, x).check.ok


def test_4_a_binarised_layer_keeps_its_straight_through_gradient() -> None:
    model = nn.Sequential(Binarised(4, 4, 3, dilation=2, dtype=F64))
    rewritten: Any = ccrewrite.rewrite(model, pictures()).model
    assert isinstance(rewritten[0], Binarised)
    x = pictures()
    model(x).square().sum().backward()
    rewritten(x).square().sum().backward()
    torch.testing.assert_close(rewritten[0].weight.grad, model[0].weight.grad, rtol=1e-11, atol=1e-11)


def test_5_a_weight_changed_in_forward_is_changed_and_its_original_is_not_by_the_rewrite() -> None:
    model: Any = nn.Sequential(MasksItsData(4, 4, 3, dilation=2))
    before = model[0].weight.detach().clone()
    assert before[..., -1].any()
    rewritten: Any = ccrewrite.rewrite(model, torch.randn(1, 4, 21)).model
    assert torch.equal(model[0].weight, before)
    assert torch.equal(rewritten[0].weight, before)
    rewritten(torch.randn(1, 4, 21))
    assert not rewritten[0].weight[..., -1].any()


def test_7_geometry_read_from_outside_is_what_it_was() -> None:
    model = ReadsGeometry()
    rewritten: Any = ccrewrite.rewrite(model, torch.randn(1, 4, 17, 17)).model
    for name in ("kernel_size", "stride", "padding", "dilation", "groups", "in_channels", "out_channels", "padding_mode"):
        assert getattr(rewritten.conv, name) == getattr(model.conv, name)
    assert rewritten.conv.weight.shape == model.conv.weight.shape


def test_8_a_fixed_filters_geometry_follows_its_dtype_and_device() -> None:
    rewritten: Any = ccrewrite.rewrite(FixedFilter(), torch.randn(1, 4, 21)).model
    rewritten.to(F64)
    assert rewritten(signals()).dtype == F64
    assert "kernel" in rewritten.state_dict()


def test_10_channels_last_inputs_and_models() -> None:
    model = CommonShapes().to(memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]
    x = torch.randn(2, 4, 17, 17).to(memory_format=torch.channels_last)
    result = ccrewrite.rewrite(model, x)
    assert result.check.max_abs_error == 0
    with torch.no_grad():
        assert result.model(x).stride() == model(x).stride()


def test_11_a_zero_initialised_head_hides_nothing_from_verification() -> None:
    """Behind it every wrong layer would look right: a layer's kernel is compared by itself, too."""

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(4, 4, 3, dilation=2)
            self.head = nn.Conv1d(4, 4, 1)
            nn.init.zeros_(self.head.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x))

    model = Hidden()
    result = ccrewrite.rewrite(model, torch.randn(1, 4, 21))
    assert result.plan["conv"].decision.rewritten
    assert not (model(torch.randn(1, 4, 21)) - cast(Tensor, model.head.bias)[:, None]).any()  # the output proves nothing
    x = torch.randn(1, 4, 21)
    rewritten: Any = result.model
    torch.testing.assert_close(rewritten.conv(x), model.conv(x), rtol=1e-5, atol=1e-5)


def test_11_a_wrong_layer_behind_a_zero_head_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ccrewrite.nn.DclsSampling, "kernel", wrong_kernel)

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(4, 4, 3, dilation=2)
            self.down = nn.Conv1d(4, 4, 3, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.conv(x) * 0)

    result = ccrewrite.rewrite(Hidden(), torch.randn(1, 4, 21))
    assert result.plan["conv"].decision.code == "verification-failed"
    assert result.plan["down"].decision.rewritten


kernel = ccrewrite.nn.DclsSampling.kernel


def wrong_kernel(self: Any, weight: Tensor) -> Tensor:
    return kernel(self, weight) * 1.01


def test_nothing_above_warns() -> None:
    """Neither does rewriting: a user's log stays theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for factory, inputs, _ in TRAPS.values():
            if factory is not OldNormed:  # torch deprecates it
                ccrewrite.rewrite(factory().to(F64), inputs())
