"""Every reason code is given by some model, is true of it, and has its section in docs/reasons.md."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.ao.nn.quantized as quantized
import torch.nn.functional as F
from torch import Tensor, nn

import ccrewrite
from ccrewrite.ir.sites import REASONS, Site

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.",
    "ignore:.*quantiz:DeprecationWarning",
    "ignore:.*quantiz:UserWarning",
    "ignore:.*reduce_range:UserWarning",
)
Case = tuple[nn.Module, Any, str, dict[str, Any]]


def pictures() -> Tensor:
    return torch.randn(1, 4, 17, 17)


def plain() -> Case:
    return nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, stride=2)), pictures(), "0", {}


def one_tap() -> Case:
    return nn.Sequential(nn.Conv2d(4, 4, 1, dilation=3), nn.Conv2d(4, 4, 3, stride=2)), pictures(), "0", {}


def large() -> Case:
    return nn.Sequential(nn.Conv2d(4, 4, 7), nn.Conv2d(4, 4, 3, stride=2)), pictures(), "0", {}


def not_selected() -> Case:
    return nn.Sequential(nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 3, stride=2)), pictures(), "0", {"include": "1"}


def no_rule() -> Case:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 3, stride=2))
    return model, pictures(), "0", {"rules": ["strided-to-cc"]}


@dataclass(frozen=True)
class DepthwiseToDcls(ccrewrite.DilatedToDcls):
    name: ClassVar[str] = "depthwise-to-dcls"

    def refuses(self, site: Site) -> str | None:
        return None if site.geometry.depthwise else f"{site.geometry.groups} groups, not depthwise"


def refused() -> Case:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 3, dilation=2, groups=4))
    return model, pictures(), "0", {"rules": [DepthwiseToDcls()]}


def left_alone() -> Case:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 3, stride=2))
    return model, pictures(), "0", {"rules": {"0": None, "*": ["dilated-to-dcls", "strided-to-cc"]}}


def never_called() -> Case:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2))
    model[0].spare = nn.Conv2d(4, 4, 3, dilation=2)
    return model, pictures(), "0.spare", {}


def already_rewritten() -> Case:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 3, stride=2))
    return ccrewrite.rewrite(model, pictures(), include="0").model, pictures(), "0", {}


def complex_dtype() -> Case:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Conv1d(1, 2, 3, stride=2)
            self.conv = nn.Conv1d(2, 2, 3, dilation=2, dtype=torch.complex64)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.down(x).to(torch.complex64)).abs()

    return Complex(), torch.randn(1, 1, 21), "conv", {}


def scripted() -> Case:
    model = nn.Sequential(torch.jit.script(nn.Conv2d(4, 4, 3, dilation=2)), nn.Conv2d(4, 4, 3, stride=2))
    return model, pictures(), "0", {}


def traced() -> Case:
    layer: Any = torch.jit.trace(nn.Conv2d(4, 4, 3, dilation=2), torch.randn(1, 4, 9, 9))
    return nn.Sequential(layer, nn.Conv2d(4, 4, 3, stride=2)), pictures(), "0", {}


def quantized_layer() -> Case:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Conv2d(4, 4, 3, stride=2)
            self.int8 = quantized.Conv2d(4, 4, 3, dilation=2)
            self.int8.scale = 0.1

        def forward(self, x: Tensor) -> Tensor:
            q = torch.quantize_per_tensor(self.down(x), 0.1, 64, torch.quint8)
            return self.int8(q).dequantize()

    return Mixed(), pictures(), "int8", {}


def opaque() -> Case:
    def dilated(x: Tensor, kernel: Tensor) -> Tensor:
        return torch.conv2d(x, kernel, dilation=2)

    compiled = torch.jit.script(dilated)

    class Native(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, stride=2)
            self.kernel = nn.Parameter(torch.randn(4, 4, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return compiled(self.conv(x), self.kernel)

    return Native(), pictures(), "(root)", {"how": "observe"}


def operator_in_another_method() -> Case:
    class Quick(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, stride=2)
            self.kernel = nn.Parameter(torch.randn(4, 4, 3, 3))

        def quick(self, x: Tensor) -> Tensor:
            return torch.ops.aten.conv2d.default(x, self.kernel, None, [2, 2])

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(self.conv(x), self.kernel, stride=2)

    return Quick(), pictures(), "kernel", {}


def control_flow() -> Case:
    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, stride=2)
            self.other = nn.Conv2d(4, 4, 3, padding=2, dilation=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.other(torch.cond(x.sum() > 0, lambda x: self.conv(x), lambda x: self.conv(x) * 2, (x,)))

    return Chooses(), pictures(), "conv", {}


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        return 2 * F.conv2d(x, w, stride=2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        return None, None


def autograd_function() -> Case:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, stride=2)
            self.kernel = nn.Parameter(torch.randn(4, 4, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return Doubled.apply(self.conv(x), self.kernel)

    return Calls(), pictures(), "kernel", {}


class Head:
    """No module."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner

    def __call__(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.owner.kernel * 2, stride=2)


def other_object() -> Case:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, stride=2)
            self.kernel = nn.Parameter(torch.randn(4, 4, 3, 3))
            self.head = Head(self)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x))

    return Calls(), pictures(), ":conv2d", {}


@torch.fx.wrap
def strided(x: Tensor, w: Tensor) -> Tensor:
    return F.conv2d(x, w, stride=2)


def wrapped_function() -> Case:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, stride=2)
            self.kernel = nn.Parameter(torch.randn(4, 4, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return strided(self.conv(x), self.kernel)

    return torch.fx.symbolic_trace(Calls()), pictures(), "kernel", {}


def shared_weight() -> Case:
    class Shares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(self.conv(x), self.conv.weight, dilation=2, padding=2)

    return Shares(), pictures(), "conv#2", {}


def several_calls() -> Case:
    class Twice(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + F.conv2d(x, self.weight, None, 1, 3, 3)

    return nn.Sequential(Twice(4, 4, 3, padding=2, dilation=2), nn.Conv2d(4, 4, 3, stride=2)), pictures(), "0", {}


def ambiguous_call() -> Case:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(4, 4, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.kernel.tanh(), dilation=2)

    class Gates(Gate):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Gate()
            self.down = nn.Conv2d(4, 4, 3, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[..., 1:] + self.inner(x)[..., 1:] + self.down(x).mean()

    return Gates(), pictures(), ":conv2d", {}


def ambiguous_layer() -> Case:
    class Gated(nn.Conv2d):
        def __init__(self, *sizes: Any) -> None:
            super().__init__(*sizes)
            self.gate = nn.utils.parametrizations.weight_norm(nn.Conv2d(*sizes))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight - self.weight.mean(), self.bias, self.stride) * self.gate(x)

    return nn.Sequential(Gated(4, 4, 3, 2), nn.Conv2d(4, 4, 3, 2)), pictures(), "0", {"exclude": "0.gate"}


def name_taken() -> Case:
    class Sampler(nn.Conv2d):
        sampling = "nearest"

    return nn.Sequential(Sampler(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 3, stride=2)), pictures(), "0", {}


def host_name_taken() -> Case:
    class Host(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))
            self.ccrewrite = nn.ModuleDict({"a": nn.Conv2d(4, 4, 3, padding=2, dilation=2)})

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(self.ccrewrite["a"](x), self.weight, stride=2)

    return nn.Sequential(Host()), pictures(), "0", {}


class BaseTunerLayer:
    """PEFT's class has this name."""


def adapter() -> Case:
    class Conv2d(nn.Module, BaseTunerLayer):
        def __init__(self, base_layer: nn.Conv2d) -> None:
            super().__init__()
            self.base_layer = base_layer
            self.lora_A = nn.ModuleDict({"default": nn.Conv2d(4, 2, 3, dilation=2, bias=False)})
            self.lora_B = nn.ModuleDict({"default": nn.Conv2d(2, 4, 1, bias=False)})

        def forward(self, x: Tensor) -> Tensor:
            return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))

    model = nn.Sequential(Conv2d(nn.Conv2d(4, 4, 3, dilation=2)), nn.Conv2d(4, 4, 3, stride=2))
    return model, pictures(), "0.base_layer", {}


def verification_failed() -> Case:
    class LooksAtTheType(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.good = nn.Conv2d(4, 4, 3, stride=2)
            self.bad = nn.Conv2d(4, 4, 3, dilation=2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.bad(self.good(x))
            return x if type(self.bad) is nn.Conv2d else x * 1.01

    return LooksAtTheType(), pictures(), "bad", {}


FUNCTIONAL = ("shared-weight", "ambiguous-call", "autograd-function", "other-object", "wrapped-function", "opaque")
"""Codes whose trigger is a functional call."""
TRIGGERS: dict[str, list[Callable[[], Case]]] = {
    "plain": [plain, one_tap],
    "large": [large],
    "not-selected": [not_selected, left_alone],
    "no-rule": [no_rule],
    "refused": [refused],
    "never-called": [never_called],
    "already-rewritten": [already_rewritten],
    "complex-dtype": [complex_dtype],
    "scripted": [scripted, traced],
    "quantized": [quantized_layer],
    "opaque": [opaque, operator_in_another_method],
    "control-flow": [control_flow],
    "autograd-function": [autograd_function],
    "other-object": [other_object],
    "wrapped-function": [wrapped_function],
    "shared-weight": [shared_weight],
    "several-calls": [several_calls],
    "ambiguous-call": [ambiguous_call, ambiguous_layer],
    "name-taken": [name_taken, host_name_taken],
    "adapter": [adapter],
    "verification-failed": [verification_failed],
}


def test_every_code_has_a_trigger() -> None:
    assert TRIGGERS.keys() == REASONS.keys()


@pytest.mark.parametrize(("code", "trigger"), [(code, t) for code, ts in TRIGGERS.items() for t in ts])
def test_the_code_is_given(code: str, trigger: Callable[[], Case]) -> None:
    model, inputs, name, options = trigger()
    expected = model.eval()(inputs)
    classes = {n: type(m) for n, m in model.named_modules()}
    if code != "verification-failed":  # known before anything is touched
        site = ccrewrite.plan(model, inputs, **options)[name]
        assert (site.decision.rewritten, site.decision.code) == (False, code)
        assert site.decision.message
    result = ccrewrite.rewrite_(model, inputs, **options)
    site = result.plan[name]
    assert (site.decision.rewritten, site.decision.code) == (False, code)
    assert result.check.ok
    # The refused site is as it was; the model has another that is rewritten, and computes what it did.
    module = name.partition("#")[0]
    module = "" if module.startswith((":", "(root)")) else module
    assert code in FUNCTIONAL or type(model.get_submodule(module)) is classes[module]
    assert result.plan.rewritten
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), expected, rtol=1e-6, atol=1e-6)


def test_every_code_has_its_section() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reasons.md").read_text()
    assert re.findall(r"^## (\S+)$", text, re.MULTILINE) == list(REASONS)


def test_codes_are_stable() -> None:
    """Tools read them: a code may be added, not renamed."""
    assert sorted(REASONS) == [
        "adapter",
        "already-rewritten",
        "ambiguous-call",
        "autograd-function",
        "complex-dtype",
        "control-flow",
        "large",
        "name-taken",
        "never-called",
        "no-rule",
        "not-selected",
        "opaque",
        "other-object",
        "plain",
        "quantized",
        "refused",
        "scripted",
        "several-calls",
        "shared-weight",
        "verification-failed",
        "wrapped-function",
    ]
