"""The table of what internal sizes cost and give."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from scale_models import MODELS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import ccrewrite
from ccrewrite.errors import InputError, SelectionError
from ccrewrite.passes.scales.resize import Resizing, resized
from ccrewrite.passes.scales.sizes import samplings_of
from ccrewrite.report.budget import Trade, trade


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model, x = MODELS["resnet"]()
    return ccrewrite.rewrite(model, x, verify=False).model, x


@pytest.fixture(scope="module")
def table(case: Any) -> Trade:
    model, x = case

    def score(model: Any) -> float:
        """How large layer 3 works: what the settings say."""
        sizes: list[int] = []
        handle = model.layer3.register_forward_hook(lambda m, a, out: sizes.append(out.shape[-1]))
        assert model.training
        model(x)
        handle.remove()
        return sizes[0]

    return trade(model, x, [{"layer3": 0.5}, {"layer2": 0.75, "layer3": (0.75, 1.5)}], score, repeats=3)


def test_one_point_for_each_setting_and_the_native_one(table: Trade) -> None:
    assert [p.name for p in table] == ["native", "layer3 0.5", "layer2 0.75, layer3 0.75x1.5"]
    assert [p.score for p in table] == [6, 3, 9]
    assert table["layer3 0.5"].settings == {"layer3": 0.5}
    assert all(p.latency_ms > 0 and p.latency_iqr_ms >= 0 for p in table)


def test_flops_are_those_of_the_resized_model(case: Any, table: Trade) -> None:
    model, x = case
    for point in table:
        with resized(model, point.settings, x), FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x)
        assert point.gflops == counter.get_total_flops() / 1e9
    assert table[1].gflops != table[0].gflops


def test_the_model_is_as_before(case: Any, table: Trade) -> None:
    model, _ = case
    assert all(m.training for m in model.modules())
    assert not any(isinstance(hook, Resizing) for hook in model._forward_pre_hooks.values())
    assert all(s.output_size is None for s in samplings_of(model).values())


def test_table_and_json(table: Trade) -> None:
    assert "score" in str(table)
    assert "CPU, 1 threads" in str(table)
    data = json.loads(table.to_json())
    assert [p["name"] for p in data["points"]] == [p.name for p in table]
    assert data["points"][2]["settings"] == {"layer2": 0.75, "layer3": [0.75, 1.5]}
    without = Trade([p.__class__(**{**vars(p), "score": None}) for p in table], table.device)
    assert "score" not in str(without)


def test_plot(table: Trade, tmp_path: Path) -> None:
    table.plot(tmp_path / "trade.png")
    assert (tmp_path / "trade.png").stat().st_size > 5000


def test_a_plot_without_matplotlib_says_what_is_missing(table: Trade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="pip install matplotlib"):
        table.plot(tmp_path / "trade.png")


def test_what_can_not_be_is_refused(case: Any) -> None:
    model, x = case
    with pytest.raises(InputError, match="repeats"):
        trade(model, x, [{"layer3": 0.5}], repeats=1)
    with pytest.raises(InputError, match="names of their own"):
        trade(model, x, [{"layer3": 0.5}, {"layer3": 0.5}])
    with pytest.raises(InputError, match="names of their own"):
        trade(model, x, {"native": {"layer3": 0.5}})
    with pytest.raises(SelectionError, match="layer9"):
        trade(model, x, [{"layer9": 0.5}])
    with pytest.raises(InputError, match="rewrite it first"):
        trade(nn.Conv2d(3, 4, 3, 2), x, [])
