"""`ccrewrite finetune config.toml`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from training_models import network, pictures
from typer.testing import CliRunner

import ccrewrite
from ccrewrite.cli.app import app

CONFIG = """
model = "training_models:network"
input = ["1x1x12x12"]
data = "finetune_data:batches"
validation = "finetune_data:batches"
loss = "torch.nn.functional:cross_entropy"
out = "run"
record_every = 2

[rewrite]
kinds = ["dilated"]

[finetune]
epochs = 2
distillation = 0.5
features = ["3"]
weights_from = inf
"""
DATA = """
import torch
from training_models import pictures
batches = [(images, torch.arange(4) % 3) for images in pictures(12).split(4)]
"""
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    (tmp_path / "finetune_data.py").write_text(DATA)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def invoke(text: str, *options: str) -> Result:
        Path("config.toml").write_text(text)
        return CliRunner().invoke(app, ["finetune", "config.toml", *options])  # pyright: ignore[reportReturnType]

    return invoke


def test_rewrites_trains_and_saves(run: Run) -> None:
    done = run(CONFIG)
    assert done.exit_code == 0, done.output
    assert "6 steps, loss " in done.stdout
    assert "best validation loss" in done.stdout
    assert "DCLS" in done.stdout
    found = {p.name for p in Path("run").iterdir()}
    assert found >= {"log.csv", "run.json", "model.safetensors", "rewritten", "geometry.png", "geometry.gif"}
    loaded: Any = ccrewrite.load(network(), "run/rewritten")
    assert type(loaded[3]).__name__ == "DclsConv2d"
    assert type(loaded[0]).__name__ == "Conv2d"
    assert loaded[3].sampling.offset.abs().max() > 0
    assert torch.equal(loaded[3].weight, network()[3].weight)  # frozen  # pyright: ignore[reportArgumentType]
    assert loaded.eval()(pictures()).isfinite().all()
    again = run(CONFIG)
    assert again.exit_code == 2
    assert "holds a run already" in again.stderr
    resumed = run(CONFIG, "--resume", "--json")
    assert resumed.exit_code == 0
    assert len(json.loads(resumed.stdout)["rows"]) == 6


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[finetune]", "[finetune]\nepoch = 3", "FinetuneConfig has no option 'epoch'"),
        ("record_every", "record_evry", "unknown key record_evry"),
        ("kinds", "kind", "unknown key kind; expected include"),
        ("record_every = ", "epochs = ", "epochs belongs into the table [finetune]"),
        ("record_every = 2", 'rules = "strided-to-cc"', "rules belongs into the table [rewrite]"),
        ('out = "run"\n', "", "out is missing"),
        ("finetune_data:batches", "finetune_data:nothing", "finetune_data has no 'nothing'"),
        (
            "torch.nn.functional:cross_entropy",
            "cross_entropy",
            "the loss is named package.module:function, found 'cross_entropy'",
        ),
        ("[rewrite]", "[rewrite", "config.toml: "),
    ],
)
def test_mistakes_get_one_clear_message(run: Run, old: str, new: str, says: str) -> None:
    done = run(CONFIG.replace(old, new))
    assert done.exit_code == 2
    assert says in done.stderr
    assert not Path("run").exists()
