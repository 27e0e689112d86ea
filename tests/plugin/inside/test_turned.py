"""A family that is known by its entry point alone goes all the way. Runs where ``turned`` is installed (``test_plugin.py``)."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.testing import CliRunner

import ccrewrite
from ccrewrite.cli.app import app
from ccrewrite.errors import InputError
from ccrewrite.families import families

PAGE = Path(__file__).parents[3] / "docs" / "writing-a-family.md"
RULES = [{"rule": "large-to-turned", "angles": "filter"}, "plain-to-dcls"]
TURNED = ("first", "deep", "down", "kernel", ":conv2d")


class Net(nn.Module):
    """Layers of several geometries, and functional calls with a weight and with a computed one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 7, padding=3)
        self.deep = nn.Conv2d(4, 4, 7, padding=3, groups=4, padding_mode="reflect")
        self.down = nn.Conv2d(4, 4, 8, stride=2, padding=3, bias=False)
        self.plain = nn.Conv2d(4, 4, 3, padding=1)
        self.kernel = nn.Parameter(torch.randn(2, 4, 7, 7) / 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(self.down(self.deep(self.first(x).relu())))
        return F.conv2d(x, self.kernel, padding="same") + F.conv2d(x, self.kernel.tanh(), padding="same")


def network() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 20, 18)


@pytest.fixture
def moved(x: Tensor) -> Any:
    """What ``rewrite`` returns, its geometry away from the start."""
    result = ccrewrite.rewrite(network(), x, rules=RULES)
    with torch.no_grad():
        for sampling in result.model.modules():
            if isinstance(sampling, ccrewrite.Sampling):
                for parameter in sampling.parameters():
                    parameter.uniform_(-0.6, 0.6)
    return result


def test_it_is_known_by_its_entry_point() -> None:
    assert [point.value for point in entry_points(group="ccrewrite.families")] == ["turned:FAMILY"]
    assert [family.name for family in families()] == ["dcls", "cc", "turned"]


def test_plan_and_rewrite(x: Tensor) -> None:
    model = network()
    plan = ccrewrite.plan(model, x, rules=RULES)
    assert {site.name: site.code for site in plan} == dict.fromkeys(TURNED, "large-to-turned") | {"plain": "plain-to-dcls"}
    assert plan["first"].message == "turned by an angle for each filter"
    result = ccrewrite.rewrite(model, x, rules=RULES)
    assert [site.code for site in result.plan] == [site.code for site in plan]
    assert result.check.ok
    with torch.no_grad():
        assert torch.equal(result.model(x), model(x))
    assert type(result.model.first).__name__ == "TurnedConv2d"
    assert ccrewrite.plan(model, x)["first"].code == "large", "installed, it changes nothing unasked"


def test_gradients_are_the_originals_and_reach_every_angle(x: Tensor) -> None:
    model = network()
    rewritten = ccrewrite.rewrite(model, x, rules=RULES).model
    for one in (model, rewritten):
        one(x).square().mean().backward()
    ours = dict(rewritten.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours.pop(name).grad, parameter.grad, rtol=1e-4, atol=1e-6)
    assert len(ours) == 6
    assert all((p.grad != 0).all() for n, p in ours.items() if n.endswith("angle"))


def test_a_quarter_turn_of_the_kernel_is_one_of_the_picture() -> None:
    model, picture = nn.Conv2d(1, 1, 7, padding=3, bias=False), torch.randn(1, 1, 15, 15)
    turned: Any = ccrewrite.rewrite(model, picture, rules="large-to-turned").model
    with torch.no_grad():
        turned.sampling.angle.fill_(torch.pi / 2)
    torch.testing.assert_close(turned(picture), model(picture.rot90(1, (2, 3))).rot90(-1, (2, 3)), rtol=0, atol=1e-5)


def test_options_are_checked_and_refusals_have_reasons() -> None:
    model, x = nn.Conv2d(2, 2, (7, 5)), torch.randn(1, 2, 9, 9)
    site = ccrewrite.plan(model, x, rules="large-to-turned")["(root)"]
    assert (site.code, site.message) == ("refused", "large-to-turned: only square kernels are turned, this one is 7x5")
    with pytest.raises(InputError, match="rule large-to-turned: angles must be one of 'one', 'filter', found 'two'"):
        ccrewrite.plan(model, x, rules={"rule": "large-to-turned", "angles": "two"})


def test_finetuned(x: Tensor, tmp_path: Path) -> None:
    result: Any = ccrewrite.rewrite(network(), x, rules=RULES)
    batches = [(x, torch.randn(2, 2, 10, 9))]
    recorder = ccrewrite.training.Recorder(result)
    config = ccrewrite.FinetuneConfig(epochs=3, lr=0.01)
    history = ccrewrite.finetune(result, batches, F.mse_loss, config=config, schedules=[recorder], out=tmp_path)
    assert history.losses[-1] < history.losses[0]
    assert not any(m.at_start() for m in result.model.modules() if isinstance(m, ccrewrite.Sampling))
    movement = {m.site: m for m in recorder.movements()}["first"]
    assert (movement.kind, movement.graded) == ("Turned", True)
    with torch.no_grad():
        result.model.first.sampling.angle.fill_(4.0)
    ccrewrite.training.clamp_positions(result)
    assert result.model.first.sampling.angle.tolist() == [pytest.approx(torch.pi)] * 4


def test_folded(moved: Any, x: Tensor) -> None:
    result = ccrewrite.fold(moved, x)
    layers, calls = dict.fromkeys(("first", "deep", "down"), "convolution"), dict.fromkeys(("kernel", ":conv2d"), "geometry")
    assert {site.name: site.code for site in result} == layers | calls | {"plain": "padded"}
    assert result.check.ok
    torch.testing.assert_close(result.model(x), moved.model(x), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, ccrewrite.Sampling) for m in result.model.modules())


def test_reverted(moved: Any, x: Tensor) -> None:
    assert torch.equal(ccrewrite.revert(moved)(x), network()(x))


def test_compared(moved: Any, x: Tensor) -> None:
    comparison = ccrewrite.compare(network(), moved, x, quick=True, progress=False)
    sites = {site["name"]: site["variants"]["rewritten"] for site in comparison.data["sites"]}
    assert sites["first"]["learnt"]["moved"]
    assert "Turned" in comparison.to_html()


def test_exported(moved: Any, x: Tensor, tmp_path: Path) -> None:
    flat = ccrewrite.export_onnx(moved, tmp_path / "flat.onnx", x, dynamic={0: "batch"})
    assert flat["first"].code == "convolution"
    file = ccrewrite.export_onnx(moved, tmp_path / "open.onnx", x, functions=True, dynamic={0: "batch"})
    assert (file["first"].code, file["first"].message, file["first"].initializers) == ("function", "Turned", ("first.angle",))
    assert file[":conv2d"].initializers == (":conv2d.angle",)
    proto = onnx.load(file.path)
    for entry in proto.graph.initializer:
        if entry.name == "first.angle":
            entry.CopyFrom(onnx.numpy_helper.from_array(np.full(4, 0.25, np.float32), entry.name))
    onnx.save(proto, tmp_path / "edited.onnx")
    with torch.no_grad():
        moved.model.first.sampling.angle.fill_(0.25)
    session = onnxruntime.InferenceSession(str(tmp_path / "edited.onnx"), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
    torch.testing.assert_close(found, moved.model(x).detach(), rtol=1e-4, atol=1e-4)


def test_angles_that_are_equal_stay_apart_in_a_file(x: Tensor, tmp_path: Path) -> None:
    result = ccrewrite.rewrite(network(), x, rules={"rule": "large-to-turned"})
    file = ccrewrite.export_onnx(result, tmp_path / "start.onnx", x, functions=True)
    assert {site.name: site.initializers for site in file} == {name: (f"{name}.angle",) for name in TURNED}


def test_files_of_others(x: Tensor, tmp_path: Path) -> None:
    ccrewrite.export_onnx(nn.Sequential(nn.Conv2d(3, 4, 7)).eval(), tmp_path / "theirs.onnx", x)
    result = ccrewrite.rewrite_onnx(tmp_path / "theirs.onnx", tmp_path / "ours.onnx", rules="large-to-turned")
    assert [(site.code, site.initializers) for site in result] == [("large-to-turned", ("0.angle",))]


@pytest.mark.parametrize("geometry_only", [False, True])
def test_saved_and_loaded(moved: Any, x: Tensor, tmp_path: Path, geometry_only: bool) -> None:
    ccrewrite.save(moved, tmp_path, geometry_only=geometry_only)
    again: Any = ccrewrite.load(network(), tmp_path)
    assert torch.equal(again(x), moved.model(x))
    assert again.first.sampling.angles == "filter"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command line in a folder with ``models.py``, ``rules.toml`` and ``tuning.toml``."""
    source = "import torch\nfrom torch import nn\nfrom torch.nn.functional import mse_loss\n\n\n"
    source += "def network():\n    torch.manual_seed(0)\n"
    source += "    return nn.Sequential(nn.Conv2d(3, 4, 7), nn.Conv2d(4, 4, 3)), torch.ones(2, 3, 12, 12)\n\n\n"
    source += "def data():\n    return [(torch.ones(2, 3, 12, 12), torch.zeros(2, 4, 4, 4))]\n"
    (tmp_path / "models.py").write_text(source)
    rules = '[[rules]]\nrule = "large-to-turned"\nangles = "filter"\n[[rules]]\nrule = "plain-to-dcls"\nreach = 2\n'
    (tmp_path / "rules.toml").write_text(rules)
    tuning = 'model = "models:network"\ndata = "models:data"\nloss = "models:mse_loss"\nout = "run"\n'
    tuning += '[rewrite]\nrules = ["large-to-turned"]\n[finetune]\nepochs = 1\n'
    (tmp_path / "tuning.toml").write_text(tuning)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "models", raising=False)

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, list(arguments))
        assert done.exit_code == 0, done.output
        return done.output

    return run


def test_on_the_command_line(command: Any, tmp_path: Path) -> None:
    planned = json.loads(command("plan", "models:network", "--config", "rules.toml", "--json"))
    assert [site["decision"]["code"] for site in planned["sites"]] == ["large-to-turned", "plain-to-dcls"]
    assert [rule.get("angles", rule.get("reach")) for rule in planned["rules"]] == ["filter", 2]
    assert "large-to-turned" in command("plan", "models:network", "--rule", "large-to-turned:angles=filter")
    command("rewrite", "models:network", "--config", "rules.toml", "--out", "saved")
    command("fold", "models:network", "--from", "saved", "--out", "folded.pt2")
    command("export", "models:network", "--from", "saved", "--functions", "--out", "open.onnx")
    command("finetune", "tuning.toml")
    assert (tmp_path / "run" / "rewritten" / "recipe.json").exists()


def test_the_pages_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(?!# \S+\.py\n)(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 5
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)
    assert "turned by an angle for each filter" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_lowered(moved: Any, x: Tensor, mode: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCREWRITE_CACHE", str(tmp_path))
    expected = moved.model(x).detach()
    lowered = ccrewrite.lower(moved, x, mode=mode)
    assert lowered.check.ok
    torch.testing.assert_close(lowered.model(x).detach(), expected, rtol=1e-4, atol=1e-4)
