"""The command line: tables, JSON, files, exit codes, and one clear line for each mistake."""

import json
import sys
import textwrap
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import ccrewrite
from ccrewrite.cli.app import app
from ccrewrite.families.cc.onnx import kernel
from ccrewrite.ir import check

MODEL = "cli_models:network"


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 1))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command in a folder that holds ``cli_models.py``."""
    source = """
        import torch
        from torch import nn

        class Keywords(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv1d(2, 2, 3, stride=2)

            def forward(self, signal, step):
                return self.conv(signal) + step[:, None, None]

        def network():
            return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 1))

        def with_inputs():
            return network(), torch.zeros(1, 3, 16, 16)

        number = 3
    """
    (tmp_path / "cli_models.py").write_text(textwrap.dedent(source))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def invoke(*arguments: str):
        return CliRunner().invoke(app, list(arguments))

    return invoke


def test_plan_is_a_plain_table_when_piped(run):
    result = run("plan", MODEL, "--input", "1x3x16x16")
    assert result.exit_code == 0
    assert "strided-to-cc" in result.stdout
    assert "3 sites: 2 rewritten; left alone: 1 plain" in result.stdout
    assert "\x1b" not in result.stdout


def test_plan_as_json_is_that_of_python(run):
    result = run("plan", MODEL, "--input", "1x3x16x16", "--kinds", "dilated,transposed", "--exclude", "2", "--json")
    data = json.loads(result.stdout)
    planned = ccrewrite.plan(network(), torch.zeros(1, 3, 16, 16), kinds=["dilated", "transposed"], exclude="2")
    assert data == json.loads(planned.to_json())
    assert [s["decision"]["code"] for s in data["sites"]] == ["not-selected", "dilated-to-dcls", "plain"]


def test_factory_may_bring_inputs_and_inputs_may_be_named(run):
    assert run("plan", "cli_models:with_inputs").exit_code == 0
    named = run("plan", "cli_models:Keywords", "--input", "signal=1x2x9", "--input", "step=1:int64")
    assert named.exit_code == 0
    assert "strided-to-cc" in named.stdout


def test_rewrite_saves_what_loads(run, tmp_path):
    result = run("rewrite", MODEL, "--input", "1x3x16x16", "--out", "saved")
    assert result.exit_code == 0
    assert "outputs are equal" in result.stdout
    saved = json.loads((tmp_path / "saved" / "recipe.json").read_text())["rewrite"]
    assert saved["check"]["ok"]
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == ["recipe.json", "weights.safetensors"]
    loaded: Any = ccrewrite.load(network(), tmp_path / "saved")
    assert [type(layer).__name__ for layer in loaded] == ["CCConv2d", "DclsConv2d", "Conv2d"]


def test_rules_on_the_command_line_and_in_a_file_agree(run, tmp_path):
    text = 'include = ["1"]\n[[rules]]\nrule = "dilated-to-dcls"\nsharing = "out"\nreach = 1\n'
    (tmp_path / "rules.toml").write_text(text)
    common = ("plan", MODEL, "--input", "1x3x16x16", "--json")
    from_file = run(*common, "--config", "rules.toml")
    from_line = run(*common, "--include", "1", "--rule", "dilated-to-dcls:sharing=out,reach=1")
    assert from_file.exit_code == from_line.exit_code == 0
    assert json.loads(from_file.stdout) == json.loads(from_line.stdout)
    assert json.loads(from_file.stdout)["rules"][0]["sharing"] == "out"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere:factory", "--input", "1x3x16x16"), "no module called 'nowhere'"),
        (("cli_models", "--input", "1x3x16x16"), "package.module:factory"),
        (("cli_models:missing", "--input", "1x3x16x16"), "has no 'missing'"),
        (("cli_models:number", "--input", "1x3x16x16"), "must be an nn.Module"),
        ((MODEL,), "--input 1x3x224x224"),
        ((MODEL, "--input", "1x3xAx16"), "a shape is written like"),
        ((MODEL, "--input", "1x3x16x16:float31"), "no dtype 'float31'"),
        ((MODEL, "--input", "1x3x16x16", "--input", "step=1"), "can't be mixed"),
        ((MODEL, "--input", "1x5x16x16"), "raised RuntimeError on the example inputs"),
        ((MODEL, "--input", "1x3x16x16", "--kinds", "wide"), "unknown kind 'wide'"),
        ((MODEL, "--input", "1x3x16x16", "--rule", "magic"), "unknown rule 'magic'"),
        ((MODEL, "--input", "1x3x16x16", "--rule", "dilated-to-dcls:speed=3"), "has no option 'speed'"),
        ((MODEL, "--input", "1x3x16x16", "--rule", "dilated-to-dcls:reach"), "option=value"),
        ((MODEL, "--input", "1x3x16x16", "--config", "absent.toml"), "absent.toml"),
    ],
)
def test_mistakes_get_one_clear_message(run, arguments, says):
    result = run("plan", *arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_unknown_key_in_a_file(run, tmp_path):
    (tmp_path / "wrong.toml").write_text("incldue = ['*']\n")
    result = run("plan", MODEL, "--input", "1x3x16x16", "--config", "wrong.toml")
    assert result.exit_code == 2
    assert "unknown key incldue" in result.stderr


def test_unwritable_target(run, tmp_path):
    (tmp_path / "file").write_text("")
    result = run("rewrite", MODEL, "--input", "1x3x16x16", "--out", "file")
    assert result.exit_code == 2
    assert "file can't be written" in result.stderr


def test_compare_and_report(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ccrewrite", "compare", MODEL, "--out", "/data/me/before", "--config=/data/me/c.toml"])
    result = run("compare", MODEL, "--input", "1x3x16x16", "--out", "before", "--variants", "rewritten,folded", "--quick")
    assert result.exit_code == 0, result.stderr
    assert sorted(p.name for p in (tmp_path / "before").iterdir()) == ["report.html", "report.json", "report.md"]
    text = (tmp_path / "before" / "report.md").read_text()
    assert "folded" in text
    assert f"Made by `ccrewrite compare {MODEL} --out before --config=c.toml`" in text, "no folders of the machine"
    same = run("report", "before", "before")
    assert same.exit_code == 0
    assert "are the same" in same.stdout
    assert {c["verdict"] for c in json.loads(run("report", "before", "before", "--json").stdout)["changes"]} == {"same"}
    common = ("--input", "1x3x16x16", "--out", "after", "--quick", "--no-html")
    after = json.loads(run("compare", MODEL, *common, "--batches", "1,2", "--json").stdout)
    assert [entry["batch"] for entry in after["batches"]] == [1, 2]
    wrong = run("compare", MODEL, *common, "--batches", "1;2")
    assert wrong.exit_code == 2
    assert "--batches takes integers" in wrong.stderr


def test_fold_and_export(run, tmp_path):
    assert run("rewrite", MODEL, "--input", "1x3x16x16", "--out", "saved").exit_code == 0
    common = (MODEL, "--input", "1x3x16x16", "--from", "saved")
    folded = run("fold", *common, "--out", "model.pt2")
    assert folded.exit_code == 0, folded.stderr
    exported = run("export", *common, "--out", "model.onnx", "--dynamic", "0=batch")
    assert exported.exit_code == 0, exported.stderr
    assert (tmp_path / "model.pt2").exists()
    assert (tmp_path / "model.onnx").exists()
    wrong = run("fold", MODEL, "--input", "1x3x16x16", "--from", "nowhere", "--out", "model.pt2")
    assert wrong.exit_code == 2
    assert "nowhere" in wrong.stderr


def test_folding_and_exporting_for_a_target(run, tmp_path):
    network = MODEL, "--input", "1x3x16x16"
    assert run("rewrite", *network, "--out", "saved").exit_code == 0
    exported = run("export", *network, "--from", "saved", "--out", "m.onnx", "--target", "tensorrt", "--json")
    assert exported.exit_code == 0, exported.output
    assert json.loads(exported.stdout)["not_taken"] == []
    folded = run("fold", *network, "--from", "saved", "--out", "m.pt2", "--target", "executorch-xnnpack", "--json")
    assert folded.exit_code == 0, folded.output
    assert json.loads(folded.stdout)["not_taken"] == []
    refused = run("export", *network, "--from", "saved", "--out", "n.onnx", "--target", "coreml")
    assert refused.exit_code == 2
    assert "coreml reads no ONNX files" in refused.stderr


def test_a_model_as_it_was_is_exported_with_a_warning(run, tmp_path):
    assert run("rewrite", MODEL, "--input", "1x3x16x16", "--out", "saved").exit_code == 0
    common = ("export", MODEL, "--input", "1x3x16x16", "--json")
    plain = run(*common, "--out", "plain.onnx")
    assert plain.exit_code == 0
    assert "nothing in the Sequential of cli_models:network is rewritten; --from DIR loads" in plain.stderr
    json.loads(plain.stdout)
    assert not run(*common, "--from", "saved", "--out", "model.onnx").stderr


def test_rules_by_pattern(run, tmp_path):
    text = """
        [rules]
        "0" = "leave-alone"
        "re:[01]" = ["dilated-to-dcls", { rule = "strided-to-cc", reach = 0 }]
    """
    (tmp_path / "rules.toml").write_text(text)
    result = run("plan", MODEL, "--input", "1x3x16x16", "--config", "rules.toml", "--json")
    assert [s["decision"]["code"] for s in json.loads(result.stdout)["sites"]] == ["not-selected", "dilated-to-dcls", "plain"]


def test_a_failed_verification_is_a_failure(run, tmp_path, monkeypatch):
    """Whatever the reason that the numbers differ: not 0, and no file."""
    assert run("rewrite", MODEL, "--input", "1x3x16x16", "--out", "saved").exit_code == 0
    common = [MODEL, "--input", "1x3x16x16", "--from", "saved"]
    assert run("export", *common, "--out", "right.onnx").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(check.Check, "ok", property(lambda self: False))
        folded = run("fold", *common, "--out", "wrong.pt2")
    assert folded.exit_code == 1
    assert "DIFFER" in folded.stdout
    with monkeypatch.context() as patch:
        patch.setattr(kernel, "basis", lambda op, name, distance: op.Relu(op.Sub(1.5, op.Abs(distance))))
        rewritten = run("rewrite-onnx", "right.onnx", "--out", "wrong.onnx")
    assert rewritten.exit_code == 2
    assert "something else than" in rewritten.stderr
    assert run("rewrite-onnx", "right.onnx", "--out", "wrong.onnx", "--tolerance", "0").exit_code == 2
    assert run("export", *common, "--out", "wrong.onnx", "--tolerance", "0").exit_code == 2
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(("wrong", "."))]
