"""How the files beside this one were written, by ccrewrite 0.1.0. A record: later versions read them, none writes them again.

It was run in a checkout of 0.1.0, that first on PYTHONPATH, with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import ccrewrite
from ccrewrite import DilatedToDcls, LargeToDcls, StridedToCC, TransposedToCC

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import models  # noqa: E402

CC = (StridedToCC(hidden=4), TransposedToCC(hidden=4))
CASES: dict[str, tuple[str, list[Any] | None]] = {
    "layers": (
        "layers",
        [
            DilatedToDcls(sharing="out", reach=1, include=("out",)),
            DilatedToDcls(sharing="group", include=("first", "second")),
            DilatedToDcls(),
            StridedToCC(basis="linear", hidden=4, reach=1, include=("linear",)),
            StridedToCC(kernel="mlp", hidden=4, include=("mlp",)),
            StridedToCC(),
            TransposedToCC(hidden=4),
        ],
    ),
    "resized": ("sized", [DilatedToDcls(), *CC]),
    "scaled": ("sized", [DilatedToDcls(sharing="in"), StridedToCC(hidden=4, alignment="centred"), TransposedToCC(hidden=4)]),
    "functional": ("functional", [DilatedToDcls(), *CC]),
    "pooled": ("pooled", [DilatedToDcls(), *CC]),
    "graph": ("graph", [DilatedToDcls(), *CC]),
    "normed": ("normed", [DilatedToDcls(sharing="full"), *CC]),
    "shared": ("shared", None),
    "large": (
        "large",
        [
            LargeToDcls(elements=3, steps=2, include=("gaussian",)),
            LargeToDcls(elements=4, steps=2, include=("triangle",), interpolation="triangle", sharing="tap", window=9),
            LargeToDcls(budget=0.3, steps=2, include=("linear",), interpolation="linear"),
            DilatedToDcls(),
        ],
    ),
    "volume": ("volume", [DilatedToDcls(), *CC]),
    "root": ("root", None),
    "bfloat16": ("bfloat16", [DilatedToDcls(), *CC]),
    "spectra": ("spectra", [*CC]),
}
"""Name -> factory in models.py, rules."""


@torch.no_grad()
def move_(model: nn.Module) -> None:
    """Geometry by something small, weights by a little."""
    generator = torch.Generator().manual_seed(0)
    steps = {"offset": 0.4, "shift": 0.3, "widening": 0.1, "residual": 0.1, "network": 0.01}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            size = next((s for part, s in steps.items() if part in name.split(".")), 0.01)
            tensor += (size * (2 * torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 1)).to(tensor)


@torch.no_grad()
def output(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).clone()


def saved() -> None:
    about: dict[str, Any] = {}
    for case, (factory, rules) in CASES.items():
        model, x = models.build(factory)
        torch.manual_seed(0)
        result: Any = ccrewrite.rewrite(model, x, rules=rules)
        if case == "layers":
            ccrewrite.nn.share_positions(result.model.first, result.model.second)
        if case == "bfloat16":  # the last layer's geometry alone stays in float32
            result.model[1].sampling.float()
        move_(result.model)
        if case == "resized":
            ccrewrite.resize_(result.model, {"down": (0.75, 1.25)})
        if case == "pooled":  # what sites of functional calls were called then
            ccrewrite.resize_(result.model, {"0.ccrewrite.conv_transpose1d": 0.75, "0.ccrewrite.conv1d_2": 0.5})
        if case == "scaled":
            result.model.down.output_size = (7, 9)
            result.model.up.scale = (0.5, 1.5)
            result.model.up.sampling.rescaled = True
        folder = HERE / "saved" / case
        ccrewrite.save(result, folder / "full")
        ccrewrite.save(result.model, folder / "geometry", geometry_only=True)
        loaded = ccrewrite.load(models.build(factory)[0], folder / "full")
        state = {n: t.clone() for n, t in loaded.state_dict().items()}
        assert all(torch.equal(t, state[n]) for n, t in result.model.state_dict().items())
        geometry = ccrewrite.load(models.build(factory)[0], folder / "geometry")
        outputs = {"input": x, "output": output(loaded, x), "geometry.output": output(geometry, x)}
        assert torch.equal(outputs["output"], output(result.model, x))
        assert not torch.equal(outputs["output"], outputs["geometry.output"])
        save_file({f"state.{n}": t for n, t in state.items()} | outputs, folder / "expected.safetensors")
        about[case] = {
            "factory": factory,
            "classes": {
                n: type(m).__name__
                for n, m in loaded.named_modules()
                if isinstance(m, (ccrewrite.nn.RewrittenConv, ccrewrite.nn.Sampling))
            },
        }
    (HERE / "saved" / "cases.json").write_text(json.dumps(about, indent=1) + "\n")
    ccrewrite.save(ccrewrite.load(models.shared(), HERE / "saved/shared/full"), HERE / "saved/shared/model")


def runs() -> None:
    from typer.testing import CliRunner

    from ccrewrite.cli import app

    def command(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["finetune", "config.toml", *arguments])  # pyright: ignore[reportArgumentType]

    torch.manual_seed(0)
    whole, calls = models.loss, 0

    def stopping(scores: Tensor, classes: Tensor) -> Tensor:
        """Another loss until it stops, so that a start over gives another log."""
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt
        return 1.5 * whole(scores, classes)

    shutil.copy(HERE / "config.toml", "config.toml")
    models.loss = stopping
    stopped = command()
    models.loss = whole
    assert stopped.exit_code != 0, stopped.output
    (HERE / "runs").mkdir()
    shutil.copytree("run", HERE / "runs/stopped")
    done = command("--resume")
    assert done.exit_code == 0, done.output
    shutil.copy("run/log.csv", HERE / "runs/stopped_end.csv")
    shutil.copy("run/model.safetensors", HERE / "runs/stopped_end.safetensors")

    model = ccrewrite.load(models.large(), HERE / "saved/large/full")
    config = ccrewrite.FinetuneConfig(epochs=4, lr=0.5, patience=1, schedule="constant", warmup=0.0)
    schedules = [
        ccrewrite.training.WidthSchedule(model, start=2.0, end=1.0, steps=4),
        ccrewrite.training.Recorder(model, every=4),
    ]
    data = models.pairs()
    history = ccrewrite.finetune(model, data, F.mse_loss, validation=data, config=config, schedules=schedules, out="finished")
    assert history.stopped_early
    shutil.copytree("finished", HERE / "runs/finished")
    (HERE / "runs/finished.json").write_text(json.dumps(asdict(history), indent=1) + "\n")


def documents() -> None:
    from typer.testing import CliRunner

    from ccrewrite.cli import app

    torch.manual_seed(0)
    planned = CliRunner().invoke(app, ["plan", "models:options", "--config", str(HERE / "options.toml"), "--json"])  # pyright: ignore[reportArgumentType]
    assert planned.exit_code == 0, planned.output
    (HERE / "plan.json").write_text(planned.stdout)
    _, x = models.build("layers")
    loaded = ccrewrite.load(models.build("layers")[0], HERE / "saved/layers/full")
    (HERE / "fold.json").write_text(ccrewrite.fold(loaded, x, tol=0.05, batch_norm=True).to_json() + "\n")
    model, x = models.build("sized")
    rewritten = ccrewrite.load(models.sized(), HERE / "saved/resized/full")
    ccrewrite.resize_(rewritten, None)
    report = ccrewrite.compare(model, rewritten, x, variants=["folded"], quick=True, scale_groups=True, batches=(2,))
    report.save(HERE / "report", html=False)
    forms, x = models.forms()
    rewritten = ccrewrite.rewrite(forms, x).model
    move_(rewritten)
    os.environ["CCREWRITE_CACHE"] = str(HERE)
    lowered = ccrewrite.lower(rewritten, x, mode="training", measured=True)
    assert [c.how for c in lowered.choices] == ["measured"]  # pyright: ignore[reportAttributeAccessIssue]
    (HERE / "lowered.json").write_text(lowered.to_json() + "\n")


def main() -> None:
    assert ccrewrite.__version__ == version("ccrewrite") == "0.1.0"
    torch.set_num_threads(1)
    for name in ("saved", "runs", "report"):
        shutil.rmtree(HERE / name, ignore_errors=True)
    (HERE / "forms.json").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        saved()
        runs()
        documents()


if __name__ == "__main__":
    main()
