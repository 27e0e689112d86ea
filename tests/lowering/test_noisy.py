"""Compiled models that amplify rounding: right sites are accepted and the noise is said; a wrong site is caught, by name."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import ExportError
from ccrewrite.families import alone
from ccrewrite.folded.padded import PaddedConv
from ccrewrite.ir.capture import Inputs
from ccrewrite.lowering import aot as packages
from ccrewrite.lowering.lower import lower
from ccrewrite.lowering.observed import judge

X = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))


class Amplifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=4, dilation=4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu())
        for _ in range(9):
            x = torch.sin(5 * x)
        return x


def moved() -> Any:
    model: Any = ccrewrite.rewrite(Amplifier().eval(), X).model
    with torch.no_grad():
        model.first.sampling.shift.add_(0.2)
        model.second.sampling.offset[0].add_(0.3)
    return model


class Compiled(nn.Module):
    """What a compiler might return: rounded otherwise, and with ``error`` in the layer ``first`` of what it was given."""

    def __init__(self, model: nn.Module, error: float) -> None:
        super().__init__()
        self._orig_mod, self.error = model, error

    def forward(self, x: Tensor) -> Any:
        (first,) = (m for n, m in self._orig_mod.named_modules() if n.endswith("first"))
        handle = first.register_forward_hook(lambda module, args, out: out * (1 + self.error), prepend=True)
        try:
            return self._orig_mod(x)
        finally:
            handle.remove()


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_lower(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda m, **options: Compiled(m, 1e-7))
    lowered = lower(moved(), X, mode=mode, measured=False)
    assert lowered.check.ok
    assert "this model amplifies rounding by" in lowered.check.note


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("error", [1e-3, 1e-1])
def test_a_wrong_site_of_a_compiled_model_is_caught(mode: Any, error: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda m, **options: Compiled(m, error))
    with pytest.warns(UserWarning, match="computes something else"):
        lowered = lower(moved(), X, mode=mode, measured=False)
    assert not lowered.check.ok
    assert "first is off by" in lowered.check.note
    assert "on the input that it gets" in str(lowered)


class Computed(nn.Module):
    """A convolution whose weight is computed of its input, behind what amplifies rounding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.host = Hosting()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(9):
            x = torch.sin(5 * x)
        return self.host(x)


class Hosting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bank = nn.Parameter(torch.randn(8, 3, 3, 3) / 5)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.bank * (1 + x[..., :1, :1].mean())
        return nn.functional.conv2d(x, weight, padding=2, dilation=2)


@pytest.mark.parametrize("error", [0, 1e-3])
def test_a_site_of_a_computed_weight_is_judged_with_its_weight(error: float) -> None:
    model: Any = ccrewrite.rewrite(Computed().eval(), X).model
    sampling = model.host.ccrewrite["conv2d"]
    with torch.no_grad():
        sampling.offset[0].add_(0.3)

    def run(module: nn.Module) -> Any:
        handle = sampling.register_forward_hook(lambda module, args, out: out * (1 + error), prepend=True)
        try:
            return module(X * (1 + 1e-7))
        finally:
            handle.remove()

    verdict = judge(model, Inputs.of(X), model, run)
    assert verdict.unknown == ()
    assert [fault.partition(" is off by")[0] for fault in verdict.faults] == ["host:conv2d"] * (error > 0)


@pytest.mark.parametrize("error", [1e-7, 1e-3])
def test_layers_that_are_compiled_by_themselves_are_judged(error: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(sampling: Any, *arguments: Any) -> Tensor:
        return type(sampling).moved(sampling, *arguments) * (1 + error)

    monkeypatch.setattr(alone, "moved", compiled)
    model = moved()
    forms = {name: model.get_submodule(name).sampling.default_form for name in ("first", "second")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where it differs
        lowered = lower(model, X, scope="sites", forms=forms, measured=False)
    assert lowered.check.ok == (error < 1e-5)
    assert ("is off by" in lowered.check.note) == (error > 1e-5)
    assert ("amplifies rounding" in lowered.check.note) == (error < 1e-5)


def packaging(monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    """A package is the program itself, of which ``error`` is in one layer."""
    programs: list[Any] = []

    def package(program: Any, package_path: Any, **options: Any) -> None:
        programs.append(program)
        package_path.write(b"program")

    def load(path: str) -> Any:
        module = programs[-1].module()
        name = next(n for n, _ in module.named_parameters() if n.endswith("first.conv.weight"))
        with torch.no_grad():
            module.get_parameter(name).mul_(1 + error)
        return module

    monkeypatch.setattr(packages, "aoti_compile_and_package", package)
    monkeypatch.setattr(packages, "aoti_load_package", load)


def test_aot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaging(monkeypatch, 1e-7)
    package = ccrewrite.aot(moved(), tmp_path / "m.pt2", X, measured=False)
    assert isinstance(ccrewrite.fold(moved(), X).model.first, PaddedConv)
    assert "this model amplifies rounding by" in package.check.note


@pytest.mark.parametrize("error", [1e-3, 1e-1])
def test_a_wrong_site_of_a_package_is_caught(error: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaging(monkeypatch, error)
    with pytest.raises(ExportError, match=r"first is off by .* on the input that it gets; nothing written"):
        ccrewrite.aot(moved(), tmp_path / "m.pt2", X, measured=False)
    assert not list(tmp_path.iterdir())
