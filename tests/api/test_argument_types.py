"""Arguments of wrong types: one clear error each, not one of Python's from deep inside."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import InputError

X = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def original() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 3, dilation=2), nn.AdaptiveAvgPool2d(1)).eval()


@pytest.fixture
def rewritten() -> nn.Module:
    return ccrewrite.rewrite(original(), X).model


def loss(found: Any, target: Tensor) -> Tensor:
    return (found - target).square().mean()


@pytest.mark.parametrize("value", [0, 3.5, [None], {"0": 1}.items(), {"0": 1}, nn.Linear])
@pytest.mark.parametrize("name", ["include", "exclude"])
def test_patterns(name: str, value: Any) -> None:
    for function in (ccrewrite.plan, ccrewrite.rewrite, ccrewrite.rewrite_):
        with pytest.raises(InputError, match=f"{name} takes names, globs or"):
            function(original(), X, **{name: value})


@pytest.mark.parametrize("value", [{"epochs": 1}, 3, "config.toml"])
def test_config(rewritten: nn.Module, value: Any) -> None:
    with pytest.raises(InputError, match="config must be a FinetuneConfig, found "):
        ccrewrite.finetune(rewritten, [(X, X)], loss, config=value)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([0], r"dynamic must map axes to names, or arguments to such mappings; found \[0\]"),
        ("batch", "dynamic must map axes to names"),
        ({"input": [0]}, r"dynamic\['input'\] must map axes 0 to 3 to names, found \[0\]"),
        ({"input": "batch"}, r"dynamic\['input'\] must map axes"),
    ],
)
def test_dynamic(rewritten: nn.Module, tmp_path: Path, value: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        ccrewrite.export_onnx(rewritten, tmp_path / "model.onnx", X, dynamic=value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [None, "0.5", (0.5, None), [], 1j])
def test_sizes(rewritten: nn.Module, value: Any) -> None:
    with pytest.raises(InputError, match="'0': expected one positive ratio, or 2"):
        ccrewrite.resize_(rewritten, {"0": value}, X)
    with pytest.raises(InputError, match="'0': expected one positive ratio, or 2"), ccrewrite.resized(rewritten, {"0": value}):
        rewritten(X)
    for wrong in (0.5, 0, (), torch.zeros(1)):
        with pytest.raises(InputError, match="sizes are a mapping of sites to ratios"):
            ccrewrite.resize_(rewritten, wrong)  # type: ignore[arg-type]


def test_a_result_is_taken_where_its_model_is_meant(tmp_path: Path) -> None:
    """The other functions, each on a result of its own."""
    calls: dict[str, Any] = {
        "fold": lambda result: ccrewrite.fold(result, X),
        "param_groups": lambda result: ccrewrite.training.param_groups(result, lr=1e-3),
        "finetune": lambda result: ccrewrite.finetune(
            result, [(X, torch.zeros(1, 8, 1, 1))], loss, config=ccrewrite.FinetuneConfig(epochs=1), progress=False
        ),
        "export_onnx": lambda result: ccrewrite.export_onnx(result, tmp_path / "model.onnx", X),
        "save": lambda result: ccrewrite.save(result, tmp_path / "saved"),
        "scale_groups": lambda result: ccrewrite.scale_groups(result, X),
        "resize_": lambda result: ccrewrite.resize_(result, {"0": 0.5}, X),
    }
    for call in calls.values():
        call(ccrewrite.rewrite(original(), X))


@pytest.mark.parametrize("wrong", [None, "model", 3, nn.Conv2d])
def test_what_is_no_model(wrong: Any, tmp_path: Path) -> None:
    calls: list[Any] = [
        lambda: ccrewrite.fold(wrong, X),
        lambda: ccrewrite.lower(wrong, X),
        lambda: ccrewrite.aot(wrong, tmp_path / "model.pt2", X),
        lambda: ccrewrite.export_onnx(wrong, tmp_path / "model.onnx", X),
        lambda: ccrewrite.finetune(wrong, [(X, X)], loss),
        lambda: ccrewrite.save(wrong, tmp_path / "saved"),
        lambda: ccrewrite.scale_groups(wrong, X),
        lambda: ccrewrite.resize_(wrong, {"0": 0.5}),
        lambda: ccrewrite.compare(original(), wrong, X),
        lambda: ccrewrite.verify(original(), wrong, X),
    ]
    for call in calls:
        with pytest.raises(InputError, match=r"must be an nn\.Module.* found (the class Conv2d|NoneType|str|int)"):
            call()


def test_every_argument_of_every_function(rewritten: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each argument that has a plain type, given something of another one: refused before anything is done, by its name."""
    monkeypatch.chdir(tmp_path)
    data = [(X, torch.zeros(1, 8, 1, 1))] * 8
    good: dict[Any, dict[str, Any]] = {
        ccrewrite.plan: {"model": original(), "example_inputs": X},
        ccrewrite.rewrite: {"model": original(), "example_inputs": X},
        ccrewrite.rewrite_: {"model": original(), "example_inputs": X},
        ccrewrite.fold: {"model": rewritten, "example_inputs": X},
        ccrewrite.save: {"rewritten": rewritten, "directory": "saved"},
        ccrewrite.load: {"model": original(), "directory": "saved"},
        ccrewrite.finetune: {"model": rewritten, "train_data": data, "loss": loss},
        ccrewrite.forecast: {"model": original(), "example_inputs": X, "train_data": data, "loss": loss},
        ccrewrite.export_onnx: {"model": rewritten, "path": "m.onnx", "example_inputs": X},
        ccrewrite.rewrite_onnx: {"model": "theirs.onnx", "path_out": "m.onnx"},
        ccrewrite.lower: {"model": rewritten, "example_inputs": X},
        ccrewrite.aot: {"model": rewritten, "path": "m.pt2", "example_inputs": X},
        ccrewrite.compare: {"original": original(), "rewritten": rewritten, "example_inputs": X},
    }
    not_plain = {"model", "original", "rewritten", "example_inputs", "train_data", "validation", "trade", "forecast"}
    patterns = {"include", "exclude", "kinds", "rules", "variants"}
    others = {"dynamic", "dynamic_shapes"}  # what may be of several kinds says more
    for function, arguments in good.items():
        for name in sorted(inspect.signature(function).parameters.keys() - not_plain - patterns - others):
            for wrong in (object(), 1j):
                with pytest.raises(InputError, match=rf"\b{name}\b.* found "):
                    function(**arguments | {name: wrong})
    assert not list(tmp_path.iterdir())


def test_what_is_no_data_no_schedule_and_no_accelerator(rewritten: nn.Module) -> None:
    data = [(X, torch.zeros(1, 8, 1, 1))]
    config = ccrewrite.FinetuneConfig(epochs=1)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"schedules": [None]}, "schedules are objects with a method step, found None"),
        ({"accelerator": "cpu"}, "accelerator must be an accelerate.Accelerator, found 'cpu'"),
        ({"validation": ["nonsense"]}, "a batch of the validation data holds no tensor"),
    ]
    for arguments, says in wrong:
        with pytest.raises(InputError, match=says):
            ccrewrite.finetune(rewritten, data, loss, config=config, progress=False, **arguments)
