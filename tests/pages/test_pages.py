"""The pages of docs/: their Python blocks run, a page as one session in a folder of its own, with the blocks that HTML comments
hide. A block marked ``text`` that follows shows what was printed, with ``...`` for what may differ."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
ELSEWHERE = {"writing-a-family.md": "tests/plugin"}
"""Pages whose blocks another test runs."""
SLOW = {"lowering.md": "compiles", "neighbours.md": "needs transformers and peft", "phone.md": "needs executorch"}
"""Pages that need a C++ compiler, or minutes."""
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = sorted(page for page in DOCS.rglob("*.md") if "```python" in page.read_text(encoding="utf-8"))


def marked(page: Path) -> object:
    torchs_own = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
    marks = [pytest.mark.slow, torchs_own] if page.name in SLOW else []
    return pytest.param(page, id=page.relative_to(DOCS).as_posix(), marks=marks)


@pytest.mark.parametrize("page", [marked(page) for page in PAGES if page.name not in ELSEWHERE])
def test_the_blocks_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": "page"}
    printed = ""
    for block in BLOCK.finditer(text):
        if block[1] == "python":
            line = text[: block.start()].count("\n") + 1  # the fence's: so that an error names the line of the page
            exec(compile("\n" * line + block[2], str(page), "exec"), namespace)
            printed = capsys.readouterr().out
        else:
            assert matches(block[2], printed), f"the page says\n{block[2]}\nprinted was\n{printed}"


def matches(shown: str, printed: str) -> bool:
    return doctest.OutputChecker().check_output(shown, tidy(printed), doctest.ELLIPSIS)


def tidy(printed: str) -> str:
    return "\n".join(line.rstrip() for line in printed.strip("\n").splitlines()) + "\n"


def test_a_block_that_shows_something_else_is_noticed() -> None:
    assert matches("a ... c\n", "a b c \n\n")
    assert not matches("a\n", "b\n")


@pytest.mark.parametrize("page", [*DOCS.rglob("*.md"), DOCS.parent / "README.md"], ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)\s#:]+)(?:#[^)\s]*)?\)", text)
    made = DOCS / "reference" / "cli.md"
    assert [link for link in links if not (there := (page.parent / link).resolve()).exists() and there != made] == []


ROOT = DOCS.parent
FILES = {
    file.relative_to(ROOT).as_posix()
    for folder in ("ccrewrite", "tests", "benchmarks", "examples", ".ci")
    for file in (ROOT / folder).rglob("*.py")
}


METADATA = ("ccrewrite.module", "ccrewrite.from")
"""Keys in an ONNX file."""


@pytest.mark.parametrize("page", [*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_files_and_names_of_a_page_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if page.name not in ELSEWHERE:  # that one shows the files of a package
        files = re.findall(r"`(?:python )?((?:[\w.-]+/)*[\w-]+\.py)`", text)
        assert [file for file in files if not any(f"/{known}".endswith(f"/{file}") for known in FILES)] == []
    folders = re.findall(r"`((?:ccrewrite|tests|benchmarks|examples)/[\w/-]*)`", text)
    assert [folder for folder in folders if not (ROOT / folder).exists()] == []
    assert [name for name in re.findall(r"`(ccrewrite(?:\.\w+)+)\b", text) if name not in METADATA and not resolves(name)] == []


def resolves(name: str) -> bool:
    """Whether ``name`` is a module, or an attribute of one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            thing: object = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        try:
            for part in parts[count:]:
                thing = getattr(thing, part)
        except AttributeError:
            continue
        return True
    return False


def test_a_name_that_is_not_there_is_noticed() -> None:
    assert resolves("ccrewrite.nn.DclsConv2d.from_conv")
    assert not resolves("ccrewrite.ensemble.ScaleEnsemble")
