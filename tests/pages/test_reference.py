"""Every public name is in the reference, once; and so is every command."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest
import typer

import ccrewrite
import ccrewrite.errors
import ccrewrite.training

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {page: page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md")}
SHOWN = [name for text in PAGES.values() for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)]
PACKAGES = ("ccrewrite", "ccrewrite.families", "ccrewrite.nn", "ccrewrite.report", "ccrewrite.saving", "ccrewrite.training")


ELSEWHERE = {
    "Alternative": "docs/writing-a-family.md",
    "CCSampling": "CCConv2d",
    "CallShapes": "docs/writing-a-family.md",
    "Comparison": "compare",
    "Movement": "Recorder",
    "OnnxCall": "docs/writing-a-family.md",
    "OnnxForm": "docs/writing-a-family.md",
    "OnnxOperator": "docs/writing-a-family.md",
    "Recording": "Recorder",
    "Regression": "regression",
    "ResizableSampling": "docs/writing-a-family.md",
    "RewrittenConv": "rewrite",
    "Sampling": "docs/writing-a-family.md",
    "ScratchConv": "docs/writing-a-family.md",
    "Site": "plan",
    "Snapped": "snap",
    "aot": "docs/lowering.md",
    "nyquist_penalty": "docs/finetune.md",
}
"""Names without an example of their own -> where one is."""


def found(path: str) -> object:
    """What a path in the reference stands for."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_shown_once(package: str) -> None:
    shown = [found(path) for path in SHOWN]
    module = importlib.import_module(package)
    counts = {name: sum(one is getattr(module, name) for one in shown) for name in module.__all__}
    assert {name: count for name, count in counts.items() if count != 1} == {}


def test_what_is_shown_is_documented() -> None:
    assert [path for path in SHOWN if not getattr(found(path), "__doc__", None)] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_has_an_example(package: str) -> None:
    module = importlib.import_module(package)
    without = {name for name in module.__all__ if ">>> " not in getattr(module, name).__doc__}
    assert without - set(ELSEWHERE) == set()


@pytest.mark.parametrize(("name", "place"), ELSEWHERE.items())
def test_an_example_that_is_elsewhere_is_there(name: str, place: str) -> None:
    if place.startswith("docs/"):
        assert name in (DOCS.parent / place).read_text(encoding="utf-8")
    else:
        packages = [importlib.import_module(package) for package in PACKAGES]
        assert ">>> " in next(getattr(p, place) for p in packages if place in p.__all__).__doc__


def described(thing: object) -> list[str]:
    """The arguments in its docstring."""
    listed = re.search(r"^Args:\n((?:    .*\n?|\n(?=    ))*)", inspect.getdoc(thing) or "", re.MULTILINE)
    return re.findall(r"^    (\w+): ", listed[1], re.MULTILINE) if listed else []


BY_ATTRIBUTE = {"CcrewriteError", "FinetuneConfig"}
"""An error; and what has a docstring for each field."""


@pytest.mark.parametrize("name", sorted(set(ccrewrite.__all__) - BY_ATTRIBUTE))
def test_every_argument_is_described(name: str) -> None:
    assert described(getattr(ccrewrite, name)) == list(inspect.signature(getattr(ccrewrite, name)).parameters)


ASIDE = ("nyquist_penalty", "Movement", "Snapped")
"""A sum of methods; and what others return."""


@pytest.mark.parametrize("name", sorted(set(ccrewrite.training.__all__) - set(ASIDE)))
def test_every_argument_of_training_is_described(name: str) -> None:
    thing = getattr(ccrewrite.training, name)
    assert described(thing) == list(inspect.signature(thing).parameters)


@pytest.mark.parametrize("name", [n for n in ccrewrite.__all__ if inspect.isfunction(getattr(ccrewrite, n))])
def test_every_function_says_what_it_raises(name: str) -> None:
    text = inspect.getdoc(getattr(ccrewrite, name)) or ""
    raised = re.search(r"^Raises:\n((?:    .*\n?)*)", text, re.MULTILINE)
    assert raised is not None
    kinds = re.findall(r"^    (\w+): ", raised[1], re.MULTILINE)
    assert [kind for kind in kinds if not issubclass(getattr(ccrewrite.errors, kind), ccrewrite.CcrewriteError)] == []


def test_every_command_and_option_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS / "site")
    from commands import reference  # pyright: ignore[reportMissingImports]

    from ccrewrite.cli.app import app

    text = reference()
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # pyright: ignore[reportAttributeAccessIssue]
        part = text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert command.help.splitlines()[0] in part
        options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
        assert [option for option in options if f"`{option}`" not in part] == []
    sys.modules.pop("commands", None)
