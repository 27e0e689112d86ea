"""AOTInductor packages: run without ccrewrite, and nothing wrong is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import ccrewrite
from ccrewrite.errors import ExportError, InputError
from ccrewrite.ir.choice import Choice
from ccrewrite.lowering import aot as module

RUN = """
import sys, torch
sys.modules["ccrewrite"] = None
from torch._inductor import aoti_load_package
package, x = aoti_load_package(sys.argv[1]), torch.load(sys.argv[2])
torch.save([package(x), package(torch.cat([x, x]))], sys.argv[3])
"""


def moved() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    dilated, depthwise = nn.Conv2d(64, 8, 3, dilation=6, padding=6), nn.Conv2d(8, 8, 3, dilation=6, padding=6, groups=8)
    model = nn.Sequential(dilated, depthwise, nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2, padding=1)).eval()
    x = torch.randn(2, 64, 12, 12)
    model = ccrewrite.rewrite(model, x, rules=[ccrewrite.DilatedToDcls(sharing="out"), ccrewrite.StridedToCC()]).model
    for name, parameter in model.named_parameters():
        if name.endswith(("offset", "shift")):
            nn.init.uniform_(parameter, -0.4, 0.4)
    return model, x


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # torch's own
def test_packages_run_without_ccrewrite(tmp_path: Path):
    model, x = moved()
    assert [site.code for site in ccrewrite.fold(model, x, forms="estimated")] == ["gathered", "sparse", "padded"]
    package = ccrewrite.aot(model, tmp_path / "model.pt2", x, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), measured=False)
    assert list(tmp_path.iterdir()) == [package.path]
    assert package.check.ok
    assert [site.code for site in package] == ["gathered", "sparse", "padded"]
    assert json.loads(package.to_json())["sites"][0]["name"] == "0"
    torch.save(x, tmp_path / "x")
    command = [sys.executable, "-W", "ignore", "-c", RUN, str(package.path), str(tmp_path / "x"), str(tmp_path / "out")]
    subprocess.run(command, check=True, cwd=tmp_path)
    once, twice = torch.load(tmp_path / "out")
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(once, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(twice, torch.cat([expected, expected]), rtol=1e-4, atol=1e-5)


COMMAND = """
import torch
from torch import nn
import ccrewrite
def small():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv1d(4, 4, 3, padding=4, dilation=4)).eval(), torch.randn(2, 4, 32)
    model = ccrewrite.rewrite(model, x).model
    nn.init.uniform_(model[0].sampling.offset, -0.4, 0.4)
    return model, x
"""


@pytest.mark.slow
def test_the_command_writes_a_package_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "models.py").write_text(COMMAND, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])]))
    command = [sys.executable, "-W", "ignore", "-m", "ccrewrite", "aot", "models:small", "--out", "model.pt2"]
    told = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True).stdout
    assert "outputs are equal" in told
    assert told.endswith("saved model.pt2\n")
    run = """
import models, sys, torch
from torch._inductor import aoti_load_package
model, x = models.small()
expected = model(x)
torch.testing.assert_close(aoti_load_package("model.pt2")(x), expected, rtol=1e-4, atol=1e-5)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", run], check=True, cwd=tmp_path)


def test_a_package_that_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, x = moved()
    target = tmp_path / "model.pt2"
    target.write_bytes(b"before")
    monkeypatch.setattr(module, "aoti_compile_and_package", lambda program, package_path, inductor_configs: None)
    monkeypatch.setattr(module, "aoti_load_package", lambda path: lambda x: torch.zeros(2, 4, 6, 6))
    with pytest.raises(ExportError, match=r"something else than the model; nothing written\.[\s\S]*output 0"):
        ccrewrite.aot(model, target, x, measured=False)
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]


def test_layers_take_the_form_that_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, x = moved()
    dense = Choice("dense", "measured", {})
    monkeypatch.setattr(module, "choose_folded", lambda model, inputs, forced: {"0": dense, "1": dense})
    monkeypatch.setattr(module, "aoti_compile_and_package", lambda program, package_path, inductor_configs: None)
    monkeypatch.setattr(module, "aoti_load_package", lambda path: model)
    package = ccrewrite.aot(model, tmp_path / "model.pt2", x)
    assert [site.code for site in package] == ["convolution", "convolution", "padded"]


def test_models_that_do_not_export(tmp_path: Path):
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 1, 3, dilation=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x) if x.sum() > 0 else x

    x = torch.ones(1, 1, 9)
    model = ccrewrite.rewrite(Branches(), x).model
    with pytest.raises(ExportError, match=r"torch\.export refuses this Branches"):
        ccrewrite.aot(model, tmp_path / "model.pt2", x)
    assert not list(tmp_path.iterdir())


def test_names(tmp_path: Path):
    with pytest.raises(InputError, match=r"called something\.pt2"):
        ccrewrite.aot(*moved()[:1], tmp_path / "model.so", moved()[1])
