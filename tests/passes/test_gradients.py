"""Verification compares gradients as well as outputs, and leaves the model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import ccrewrite
from ccrewrite.families.dcls.sampling import DclsSampling
from ccrewrite.passes import carry_out, gradients

X = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 2, 2)
        self.w = nn.Parameter(torch.randn(4, 4, 3, 3) / 6)

    def forward(self, x: Tensor) -> Any:
        return F.conv2d(self.b(self.a(x)).tanh(), self.w, padding=2, dilation=2)


def test_gradients_of_inputs_and_weights_are_compared() -> None:
    check = ccrewrite.rewrite(Net(), X).check
    names = {"input 0", "a.weight", "a.bias", "b.weight", "b.bias", "w"}
    assert {g.path for g in check.gradients} == {f"gradient of {n}" for n in names}
    assert check.ok
    assert "6 gradients are equal" in str(check)
    assert "6 gradients are equal" in check._repr_html_()
    assert "<table>" in check._repr_html_()
    assert ccrewrite.rewrite(Net(), X, verify="outputs").check.gradients == ()


class Recomputed(Net):
    """The call is made again in the backward pass, when no method of the model runs."""

    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return checkpoint(lambda y: F.conv2d(y, self.w, stride=2), x, use_reentrant=self.reentrant)


class Detached(Net):
    """The rewritten layer is called without gradients: by its class, which gives right outputs."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x) if type(self.b) is nn.Conv2d else self.b(x.detach())


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_closure_in_a_reentrant_checkpoint_is_left_alone() -> None:
    model = Recomputed()
    model.reentrant = True
    plan = ccrewrite.plan(model, X, how="observe")
    assert plan["w"].code == "autograd-function"
    assert plan["a"].decision.rewritten


@pytest.mark.parametrize(("kind", "bad"), [(Recomputed, "w"), (Detached, "b")])
def test_right_outputs_with_wrong_gradients_are_put_back(kind: Any, bad: str) -> None:
    result = ccrewrite.rewrite(kind(), X, verify="outputs")
    assert result.plan[bad].decision.rewritten
    result = ccrewrite.rewrite(kind(), X)
    assert result.plan[bad].code == "verification-failed"
    assert "gradient" in result.plan[bad].message
    assert result.plan["a"].decision.rewritten
    assert result.check.ok


class Codes(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) > 0


class NoGrad(Net):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize("kind", [Codes, NoGrad])
def test_where_nothing_is_differentiated_the_check_says_so(kind: Any) -> None:
    check = ccrewrite.rewrite(kind(), X).check
    assert check.ok
    assert check.gradients == ()
    assert check.note == "gradients not compared: no output can be differentiated"
    assert ccrewrite.rewrite(kind(), X, verify="outputs").check.note == ""


@pytest.mark.parametrize("in_place", [False, True])
def test_the_model_and_its_inputs_are_as_before(in_place: bool) -> None:
    model: Any = nn.Sequential(Net(), nn.BatchNorm2d(4), nn.Dropout())
    x = X.clone().requires_grad_()
    model[0].b.weight.requires_grad_(False)
    model[0].a.weight.grad = torch.ones(4, 4, 3, 3)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    torch.manual_seed(7)
    drawn = torch.rand(1)
    torch.manual_seed(7)
    result = (ccrewrite.rewrite_ if in_place else ccrewrite.rewrite)(model, x)
    assert torch.equal(torch.rand(1), drawn)
    assert result.check.gradients
    assert x.grad is None
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {"0.a.weight"}
    assert torch.equal(model[0].a.weight.grad, torch.ones(4, 4, 3, 3))
    assert all(torch.equal(v, model.state_dict()[n]) for n, v in before.items())
    assert all(m.training for m in model.modules())


class Counting(nn.Module):
    """Counts its forwards and its gradients, in buffers: in the forward, where a checkpoint runs it again, and in a hook."""

    def __init__(self, forward: bool) -> None:
        super().__init__()
        self.counts = forward
        self.conv = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.register_buffer("forwards", torch.zeros(()))
        self.register_buffer("backwards", torch.zeros(()))
        self.conv.weight.register_hook(lambda gradient: self.get_buffer("backwards").add_(1) * 0 + gradient)

    def counted(self, x: Tensor) -> Tensor:
        if self.counts:
            self.get_buffer("forwards").add_(1)
        return self.conv(x)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.counted, x, use_reentrant=False)


@pytest.mark.parametrize("forward", [False, True])
def test_what_is_written_in_a_backward_pass_comes_back(forward: bool) -> None:
    model = Counting(forward)
    result = ccrewrite.rewrite_(model, X)
    assert len(result.check.gradients) == 3
    assert float(model.get_buffer("forwards")) == float(model.get_buffer("backwards")) == 0
    model(X.clone().requires_grad_()).sum().backward()
    assert float(model.get_buffer("forwards")) == 2 * forward
    assert float(model.get_buffer("backwards")) == 1


class Kinked(nn.Module):
    """Signs before the ReLU are those of rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        with torch.no_grad():
            self.register_buffer("mean", self.conv(X))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + F.relu(y - self.mean)


@pytest.mark.parametrize("rewrite", [ccrewrite.rewrite, ccrewrite.rewrite_])
@pytest.mark.parametrize("wrong", [1.0, 1.001])
def test_signs_that_rounding_turns_are_looked_at_in_float64(monkeypatch: Any, rewrite: Any, wrong: float) -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return grad * wrong

    torch.manual_seed(0)
    model = Kinked()
    forward = DclsSampling.forward
    turned = 1 + 1e-6 * torch.randn(X.shape, generator=torch.Generator().manual_seed(1))

    def rounds(self: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = forward(self, Wrong.apply(input), *args, **kwargs)
        return out * turned.to(out) if out.dtype == torch.float32 and torch.is_grad_enabled() else out

    monkeypatch.setattr(DclsSampling, "forward", rounds)
    monkeypatch.setattr(gradients, "with_noise", lambda outputs, run, inputs: (outputs, ""))
    if wrong != 1.0:
        monkeypatch.setattr(carry_out, "built_error", lambda site, rule: 0.0)
        assert rewrite(model, X).plan.sites[0].decision.code == "verification-failed"
        return
    result = rewrite(model, X)
    assert result.sites[0].decision.rewritten, result.sites[0].decision
    assert {g.dtype for g in result.check.gradients} == {"float64"}
