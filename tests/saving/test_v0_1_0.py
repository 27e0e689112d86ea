"""What version 0.1.0 wrote to disk (``v0_1_0``, by its ``make.py``) loads with this version, bit for bit.

Only public names are used here. A failure is a broken promise to whoever has such files: mend the package, not the fixtures.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import pkgutil
import shutil
import sys
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import InputError
from ccrewrite.report import Comparison, regression

FIXTURES = Path(__file__).parent / "v0_1_0"
SAVED, RUNS = FIXTURES / "saved", FIXTURES / "runs"
CASES: dict[str, dict[str, Any]] = json.loads((SAVED / "cases.json").read_text())


def _models() -> ModuleType:
    spec = importlib.util.spec_from_file_location("models_of_v0_1_0", FIXTURES / "models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


MODELS = _models()


def original(case: str) -> nn.Module:
    return MODELS.build(CASES[case]["factory"])[0]


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Names, dtypes, shapes and values, to the last bit."""
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name], tensor), name


def close(found: Tensor, expected: Tensor) -> None:
    """Up to rounding, relative to the largest value."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    tolerance = 1e-12 if expected.dtype == torch.float64 else 2e-2
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def computes(model: nn.Module, x: Tensor, expected: Tensor) -> None:
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            close(model(x).detach(), expected)


def covers(now: Any, then: Any, path: str = "") -> None:
    """A document of this version has all that the old one had; measured numbers and sentences may be others."""
    if isinstance(then, dict):
        assert isinstance(now, dict), path
        for key, value in then.items():
            assert key in now, f"{path}.{key}"
            covers(now[key], value, f"{path}.{key}")
    elif isinstance(then, list):
        assert isinstance(now, list), path
        assert len(now) == len(then), path
        for index, (a, b) in enumerate(zip(now, then, strict=True)):
            covers(a, b, f"{path}[{index}]")
    elif isinstance(then, float):
        assert isinstance(now, (int, float)), path
    elif path.endswith((".message", ".note")):
        assert isinstance(now, str), path
    else:
        assert now == then, path


# ccrewrite.save


@pytest.mark.parametrize("case", CASES)
def test_saved_models_load(case: str, tmp_path: Path) -> None:
    stored = load_file(SAVED / case / "expected.safetensors")
    expected = {n.removeprefix("state."): t for n, t in stored.items() if n.startswith("state.")}
    fresh = original(case)
    plain = {n: t.clone() for n, t in fresh.state_dict().items()}
    model = ccrewrite.load(fresh, SAVED / case / "full")
    assert model is fresh
    same(model.state_dict(), expected)
    rewritten = (ccrewrite.nn.RewrittenConv, ccrewrite.nn.Sampling)
    classes = {n: type(m).__name__ for n, m in model.named_modules() if isinstance(m, rewritten)}
    assert classes == CASES[case]["classes"]
    computes(model, stored["input"], stored["output"])
    # Saved again by this version.
    ccrewrite.save(model, tmp_path)
    again = ccrewrite.load(original(case), tmp_path)
    same(again.state_dict(), expected)
    computes(again, stored["input"], stored["output"])
    # The original's layers again.
    state = ccrewrite.revert(model).state_dict()
    if case != "large":
        assert sorted(state) == sorted(plain)


@pytest.mark.parametrize("case", CASES)
def test_saved_geometry_loads_onto_the_same_original(case: str) -> None:
    stored = load_file(SAVED / case / "expected.safetensors")
    expected = {n.removeprefix("state."): t for n, t in stored.items() if n.startswith("state.")}
    plain = {n: t.clone() for n, t in original(case).state_dict().items()}
    # Sparse weights have another shape, and are saved.
    expected |= {n: t for n, t in plain.items() if t.shape == expected[n].shape}
    model = ccrewrite.load(original(case), SAVED / case / "geometry")
    same(model.state_dict(), expected)
    computes(model, stored["input"], stored["geometry.output"])


def test_a_model_saved_without_its_plan() -> None:
    found = ccrewrite.load(original("shared"), SAVED / "shared" / "model")
    same(found.state_dict(), ccrewrite.load(original("shared"), SAVED / "shared" / "full").state_dict())


def test_shared_positions_stay_shared() -> None:
    model: Any = ccrewrite.load(original("layers"), SAVED / "layers" / "full")
    assert model.first.sampling.offset is model.second.sampling.offset
    assert model.tap.sampling.offset is not model.first.sampling.offset


def test_sizes_stay_set() -> None:
    x = MODELS.build("sized")[1]
    resized: Any = ccrewrite.load(original("resized"), SAVED / "resized" / "full")
    resized(x)
    assert resized.down(x).shape[2:] == (6, 12)  # 0.75 of 8, 1.25 of 10
    scaled: Any = ccrewrite.load(original("scaled"), SAVED / "scaled" / "full")
    assert (scaled.down.sampling.output_size, scaled.down.sampling.alignment) == ((7, 9), "centred")
    assert (scaled.up.sampling.scale, scaled.up.sampling.rescaled) == ((0.5, 1.5), True)


def test_the_original_must_still_be_the_one() -> None:
    with pytest.raises(InputError, match="not the model that was rewritten"):
        ccrewrite.load(original("resized"), SAVED / "layers" / "full")


# ccrewrite.finetune


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory where ``models`` is the fixtures'."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "models", MODELS)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def command(*arguments: str | Path) -> str:
    """What the ``ccrewrite`` command prints, run in this process."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    main = pkgutil.resolve_name(project["scripts"]["ccrewrite"])
    said = io.StringIO()
    argv = patch.object(sys, "argv", ["ccrewrite", *map(str, arguments)])
    with argv, redirect_stdout(said), pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code, said.getvalue()
    return said.getvalue()


def table(file: Path) -> list[dict[str, float | None]]:
    with file.open(newline="") as stream:
        return [{n: float(v) if v else None for n, v in row.items()} for row in csv.DictReader(stream)]


def test_a_stopped_run_goes_on(folder: Path) -> None:
    """It stopped in step 6, with a checkpoint after step 4. Its losses so far were another function's: a start over shows."""
    pytest.importorskip("accelerate")
    pytest.importorskip("matplotlib")
    shutil.copy(FIXTURES / "config.toml", folder)
    shutil.copytree(RUNS / "stopped", folder / "run")
    found = json.loads(command("finetune", "config.toml", "--resume", "--json"))
    expected, begun = table(RUNS / "stopped_end.csv"), table(RUNS / "stopped" / "log.csv")
    assert found["rows"] == table(folder / "run" / "log.csv")
    assert found["rows"][:4] == begun[:4]
    assert len(found["rows"]) == len(expected) == 9
    for now, then in zip(found["rows"], expected, strict=True):
        assert all((now[n] is None) == (v is None) for n, v in then.items())
        assert all(now[n] == pytest.approx(v, rel=1e-5, abs=1e-9) for n, v in then.items() if v is not None)
    weights, end = load_file(folder / "run" / "model.safetensors"), load_file(RUNS / "stopped_end.safetensors")
    assert sorted(weights) == sorted(end)
    assert all(torch.allclose(weights[n], t, rtol=1e-9, atol=1e-9) for n, t in end.items())
    model = ccrewrite.load(MODELS.classifier()[0], folder / "run" / "rewritten")
    same(model.state_dict(), weights)


def test_a_run_that_stopped_early_is_over(folder: Path) -> None:
    pytest.importorskip("accelerate")
    shutil.copytree(RUNS / "finished", folder / "finished")
    model = ccrewrite.load(MODELS.large(), SAVED / "large" / "full")
    config = ccrewrite.FinetuneConfig(epochs=4, lr=0.5, patience=1, schedule="constant", warmup=0.0)
    width = ccrewrite.training.WidthSchedule(model, start=2.0, end=1.0, steps=4)
    recorder = ccrewrite.training.Recorder(model, every=4)
    common: dict[str, Any] = {"validation": MODELS.pairs(), "config": config, "schedules": [width, recorder], "resume": True}
    history = ccrewrite.finetune(model, MODELS.pairs(), F.mse_loss, out="finished", **common)
    then = json.loads((RUNS / "finished.json").read_text())
    assert history.rows == then["rows"]
    assert (history.best_epoch, history.stopped_early) == (then["best_epoch"], then["stopped_early"])
    same(dict(model.state_dict()), load_file(RUNS / "finished" / "best.safetensors"))
    same(load_file(folder / "finished" / "model.safetensors"), load_file(RUNS / "finished" / "model.safetensors"))
    assert (width.done, recorder.done, recorder.steps) == (6, 6, [0, 4])


def test_every_option_of_a_finetune_table() -> None:
    told = tomllib.loads((FIXTURES / "finetune_options.toml").read_text())["finetune"]
    config = ccrewrite.FinetuneConfig.from_mapping(told)
    for name, value in told.items():
        assert getattr(config, name) == (tuple(value) if isinstance(value, list) else value), name
    assert told.keys() <= {f.name for f in fields(config)}


# The command line's --config


def test_a_config_gives_the_same_plan(folder: Path) -> None:
    done = command("plan", "models:options", "--config", FIXTURES / "options.toml", "--json")
    covers(json.loads(done), json.loads((FIXTURES / "plan.json").read_text()))


def test_a_config_rewrites(folder: Path) -> None:
    command("rewrite", "models:options", "--config", FIXTURES / "options.toml", "--out", folder / "out")
    model: Any = ccrewrite.load(MODELS.options()[0], folder / "out")
    found = {n: m for n, m in model.named_children() if isinstance(m, ccrewrite.nn.RewrittenConv)}
    assert list(found) == ["large", "near", "far", "down", "paper", "up"]
    large, far = model.large.sampling, model.far.sampling
    assert (large.elements, large.interpolation, large.sharing, large.window) == (3, "triangle", "tap", (9, 9))
    assert (far.sharing, far.window) == ("out", (9, 9))
    assert (model.near.sampling.sharing, model.near.sampling.window) == ("tap", (5, 5))
    assert (model.down.sampling.basis, model.down.sampling.alignment) == ("linear", "centred")
    assert model.paper.sampling.shift is None
    assert model.up.sampling.shift is not None


def test_the_command_line_reads_saved_models(folder: Path) -> None:
    done = command(
        "fold", "models:layers", "--input", "1x2x17x16:float64", "--from", SAVED / "layers" / "full", "--out", "a.pt2"
    )
    assert "outputs agree" in done


# Documents


def test_reports_are_read(tmp_path: Path) -> None:
    report = Comparison.load(FIXTURES / "report")
    assert report.data == json.loads((FIXTURES / "report" / "report.json").read_text())
    assert report.data["environment"]["versions"]["ccrewrite"] == "0.1.0"
    assert report.rewritten_sites == ["down", "across", "up"]
    assert "3 of 3 convolution sites rewritten" in str(report)
    assert report["rewritten"]["parameters"]["added"] == 124
    assert "down" in report.to_markdown()
    assert "<html" in report.to_html()
    report.save(tmp_path)
    assert Comparison.load(tmp_path) == report
    assert not regression(report, Comparison.load(tmp_path)).worse
    shown = command("report", FIXTURES / "report", FIXTURES / "report" / "report.json")
    assert "0 of 30 quantities are worse" in shown


@pytest.fixture
def forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the times that were kept on disk."""
    monkeypatch.setenv("CCREWRITE_CACHE", str(tmp_path))
    shutil.copy(FIXTURES / "forms.json", tmp_path)
    torch._dynamo.reset()
    yield tmp_path / "forms.json"
    torch._dynamo.reset()


@pytest.mark.filterwarnings("error::UserWarning")
def test_kept_times_are_read(forms: Path) -> None:
    """Without a warning. Nothing is measured, since the form is given."""
    model, x = MODELS.forms()
    rewritten = ccrewrite.rewrite(model, x).model
    lowered = ccrewrite.lower(rewritten, x, mode="training", forms={"far": "window"}, verify=False)
    assert [(site.name, site.code) for site in lowered] == [("far", "window")]
    assert forms.read_bytes() == (FIXTURES / "forms.json").read_bytes()
