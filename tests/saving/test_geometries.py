"""Geometry by itself: told where it meets other weights than it was learned on, and several of them for one model."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import InputError, WeightsWarning
from ccrewrite.saving import Geometries

X = torch.randn(1, 3, 33, 33)


def plain(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, dilation=2), nn.ConvTranspose2d(8, 4, 4, stride=2)
    ).eval()


def moved(model: nn.Module, by: float) -> nn.Module:
    result = ccrewrite.rewrite(model, X, verify=False)
    with torch.no_grad():
        for name, parameter in result.model.named_parameters():
            if ".sampling." in name:
                parameter.add_(by)
    return result.model


def retrained(model: Any) -> None:
    model[0].weight.data.add_(1e-3)


def other_statistics(model: Any) -> None:
    model[1].running_mean.add_(1e-3)


def other_count(model: Any) -> None:
    model[1].num_batches_tracked.add_(1)


@pytest.mark.parametrize(
    ("change", "name"),
    [(retrained, r"0\.weight"), (other_statistics, r"1\.running_mean"), (other_count, r"1\.num_batches_tracked")],
)
def test_geometry_on_other_weights_warns(change: Callable[[nn.Sequential], None], name: str, tmp_path: Path) -> None:
    ccrewrite.save(moved(plain(), 0.2), tmp_path, geometry_only=True)
    other = plain()
    change(other)
    with pytest.warns(WeightsWarning, match=rf"learned on other weights than the model has \({name}\)"):
        ccrewrite.load(other, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_same_weights_do_not_warn(dtype: torch.dtype, tmp_path: Path) -> None:
    model = plain().to(dtype)
    rewritten = ccrewrite.rewrite(model, X.to(dtype), verify=False).model
    ccrewrite.save(rewritten, tmp_path, geometry_only=True)
    assert torch.equal(ccrewrite.load(copy.deepcopy(model), tmp_path)(X.to(dtype)), rewritten(X.to(dtype)))


def test_a_whole_save_brings_its_weights_and_does_not_warn(tmp_path: Path) -> None:
    ccrewrite.save(moved(plain(), 0.2), tmp_path)
    ccrewrite.load(plain(seed=1), tmp_path)


def test_one_of_several_geometries_is_in_place(tmp_path: Path) -> None:
    base = plain()
    one, other = moved(base, 0.2), moved(base, -0.3)
    model: Any
    for name, model in (("one", one), ("other", other)):
        ccrewrite.save(model, tmp_path / name, geometry_only=True)
    model = ccrewrite.rewrite(base, X).model
    parameters = dict(model.named_parameters())
    geometries = Geometries(model)
    geometries.keep("start")
    for name in ("one", "other"):
        geometries.load(name, tmp_path / name)
    assert geometries.names == ("start", "one", "other")
    with torch.no_grad():
        for name, expected in (("one", one), ("other", other), ("start", base), ("one", one)):
            geometries.use(name)
            assert torch.equal(model(X), expected(X)), name
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    with torch.no_grad():
        for parameter in model[2].sampling.parameters():
            parameter.zero_()
    geometries.use("one")  # what is kept is a copy
    assert torch.equal(model(X), one(X))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    base = plain()
    model = moved(base, 0.2)
    geometries = Geometries(model)
    with pytest.raises(InputError, match="no geometry is called 'night'; there are: none"):
        geometries.use("night")
    with pytest.raises(InputError, match="nothing in this Sequential is rewritten"):
        Geometries(base)
    ccrewrite.save(model, tmp_path / "whole")
    with pytest.raises(InputError, match="it has weights too"):
        geometries.load("whole", tmp_path / "whole")
    ccrewrite.save(ccrewrite.rewrite(base, X, kinds=["dilated"]), tmp_path / "fewer", geometry_only=True)
    with pytest.raises(InputError, match="not rewritten as that one was"):
        geometries.load("fewer", tmp_path / "fewer")
    ccrewrite.save(
        ccrewrite.rewrite(base, X, rules=["strided-to-cc", "transposed-to-cc", wider()]), tmp_path / "wider", geometry_only=True
    )
    with pytest.raises(InputError, match="not rewritten as that one was"):
        geometries.load("wider", tmp_path / "wider")
    ccrewrite.save(moved(plain(seed=1), 0.2), tmp_path / "elsewhere", geometry_only=True)
    with pytest.warns(WeightsWarning):
        geometries.load("elsewhere", tmp_path / "elsewhere")
    assert geometries.names == ("elsewhere",)


def wider() -> ccrewrite.DilatedToDcls:
    return ccrewrite.DilatedToDcls(reach=1)


def test_switching_takes_milliseconds() -> None:
    model = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=2, dilation=2) for _ in range(50)))
    x = torch.randn(1, 16, 9, 9)
    geometries = Geometries(ccrewrite.rewrite(model, x, verify=False))
    geometries.keep("start")

    def seconds() -> float:
        start = time.process_time()
        geometries.use("start")
        return time.process_time() - start

    assert min(seconds() for _ in range(5)) < 0.05


def test_whoever_saves_without_weights_makes_no_warning_elsewhere(tmp_path: Path) -> None:
    """Loading onto a model that is rewritten already, as from a checkpoint."""
    model = moved(plain(), 0.2)
    ccrewrite.save(model, tmp_path, geometry_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again: Tensor = ccrewrite.load(moved(plain(), -0.1), tmp_path)(X)
    assert torch.equal(again, model(X))
