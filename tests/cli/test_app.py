"""The help: complete, and had without importing torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import ccrewrite
from ccrewrite.cli.app import app

COMMANDS = (
    *("plan", "rewrite", "forecast", "finetune", "compare", "report", "fold", "export", "rewrite-onnx", "lower", "aot"),
    *("rules", "doctor", "env", "demo"),
)
HEAVY = ("torch", "numpy", "onnx", "tabulate", "ccrewrite.api")


def help_of(*arguments: str) -> str:
    found = CliRunner().invoke(app, [*arguments, "--help"], env={"COLUMNS": "200"})
    assert found.exit_code == 0
    return found.stdout


def test_every_command_is_listed() -> None:
    lines = help_of().partition("Commands:")[2].split("\n")
    assert tuple(line.split()[0] for line in lines if line) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    assert command in help_of(command)


def test_short_help_and_version() -> None:
    for arguments in (["-h"], ["plan", "-h"]):
        assert "-h, --help" in CliRunner().invoke(app, arguments).stdout
    assert CliRunner().invoke(app, ["--version"]).stdout == f"ccrewrite {ccrewrite.__version__}\n"


def test_the_shell_completes_commands() -> None:
    environment = {"_CCREWRITE_COMPLETE": "complete_bash", "COMP_WORDS": "ccrewrite re", "COMP_CWORD": "1"}
    found = CliRunner().invoke(app, [], prog_name="ccrewrite", env=environment)
    assert found.stdout.split() == ["rewrite", "report", "rewrite-onnx"]


def test_brackets_are_shown_as_they_are() -> None:
    shown = " ".join(help_of("plan").split())
    assert "kinds and rules: [[rules]] tables, or a [rules] table by pattern" in shown
    assert "an example input, [NAME=]1x3x224x224[:dtype]" in shown
    assert "NAME[:option=value,...]" in shown


def test_help_imports_no_torch() -> None:
    code = f"""
import sys
from typer.testing import CliRunner
from ccrewrite.cli.app import app
for command in ([], *([c] for c in {COMMANDS})):
    assert CliRunner().invoke(app, [*command, "--help"]).exit_code == 0
print([name for name in {HEAVY} if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_python_m() -> None:
    environment = os.environ | {"COLUMNS": "80"}
    ran = subprocess.run([sys.executable, "-m", "ccrewrite", "--help"], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0
    assert "rewrite-onnx" in ran.stdout
