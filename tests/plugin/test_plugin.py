"""A family of somebody else's, installed as a package of its own: what is in ``inside`` passes where it is, and where it isn't,
is broken or clashes, errors say so."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "writing-a-family.md"
SAVED = """
import torch, ccrewrite
from torch import nn
model, x = nn.Sequential(nn.Conv2d(2, 2, 7)), torch.zeros(1, 2, 9, 9)
"""


def run(path: list[Path], *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Python with ``path`` and this package's root ahead on its path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
    return subprocess.run([sys.executable, *arguments], env=environment, cwd=cwd, capture_output=True, text=True)


def error(code: str, *path: Path, cwd: Path) -> str:
    """The last line that ``code`` leaves on stderr."""
    return run(list(path), "-c", code, cwd=cwd).stderr.strip().splitlines()[-1]


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the package is installed in, by pip, without a network."""
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "site-packages"))
    shutil.copytree(HERE / "package", source, dirs_exist_ok=True)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)], check=True)
    return target


def distribution(folder: Path, name: str, code: str, rule: str = "FAMILY") -> Path:
    """A package called ``name`` in ``folder``, as an installer leaves it."""
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (about / "entry_points.txt").write_text(f"[ccrewrite.families]\n{name} = {name}:{rule}\n", encoding="utf-8")
    return folder


def test_the_page_has_the_whole_package() -> None:
    shown = dict(re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
    files = {
        f.relative_to(HERE / "package").as_posix(): f for f in (HERE / "package").rglob("*") if f.suffix in (".py", ".toml")
    }
    assert shown == {name: file.read_text(encoding="utf-8") for name, file in files.items()}


def test_what_it_does_where_it_is_installed(installed: Path, tmp_path: Path) -> None:
    options = ["-p", "no:cacheprovider", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
    done = run([installed], "-m", "pytest", *options, str(HERE / "inside"), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_it_is_lowered_for_real(installed: Path, tmp_path: Path) -> None:
    options = ["-p", "no:cacheprovider", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), "-m", "slow"]
    done = run([installed], "-m", "pytest", *options, str(HERE / "inside"), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_where_it_is_not_installed_files_and_names_are_refused(installed: Path, tmp_path: Path) -> None:
    saving = SAVED + 'ccrewrite.save(ccrewrite.rewrite(model, x, rules="large-to-turned"), "saved")'
    assert run([installed], "-c", saving, cwd=tmp_path).returncode == 0
    assert error(saving, cwd=tmp_path).startswith("ccrewrite.errors.InputError: unknown rule 'large-to-turned'; the rules are ")
    said = error(SAVED + 'ccrewrite.load(model, "saved")', cwd=tmp_path)
    assert "saved: 0: no registered family has a TurnedSampling; found dcls (DclsSampling), cc (CCSampling)." in said
    assert "ccrewrite.register_family" in said


def test_a_sampling_that_nobody_registered_is_not_saved(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "turned").symlink_to(installed / "turned")  # without its metadata
    saving = SAVED + "from turned import LargeToTurned\n"
    saving += 'ccrewrite.save(ccrewrite.rewrite(model, x, rules=LargeToTurned()), "saved")'
    said = error(saving, tmp_path, cwd=tmp_path)
    assert said.startswith("ccrewrite.errors.InputError: 0: its TurnedSampling belongs to no family that is registered")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import nowhere", "can't be loaded: ModuleNotFoundError: No module named 'nowhere'"),
        ("", "can't be loaded: AttributeError: module 'broken' has no attribute 'FAMILY'"),
        ("FAMILY = 3", "must be a ccrewrite.Family, found 3"),
        (
            "import ccrewrite; FAMILY = ccrewrite.Family('dcls', ())",
            "can't be registered: a family called 'dcls' is",
        ),
    ],
)
def test_a_broken_package_is_named(code: str, reason: str, tmp_path: Path) -> None:
    distribution(tmp_path, "broken", code)
    plan = SAVED + "for again in range(2):\n  try: ccrewrite.plan(model, x)\n  except ccrewrite.CcrewriteError as e: print(e)"
    said = run([tmp_path], "-c", plan, cwd=tmp_path).stdout.splitlines()
    assert len(said) == 2, "it is said each time"
    assert said[0] == said[1]
    assert said[0].startswith(f"the family 'broken' of the installed package broken, broken:FAMILY, {reason}")


def test_two_packages_with_a_rule_of_one_name(installed: Path, tmp_path: Path) -> None:
    code = (
        "from turned import LargeToTurned\nimport ccrewrite\nFAMILY = ccrewrite.Family('whirled', (), rules=(LargeToTurned,))"
    )
    distribution(tmp_path, "whirled", code)
    said = error(SAVED + "ccrewrite.plan(model, x)", installed, tmp_path, cwd=tmp_path)
    assert "brings a rule called 'large-to-turned', as family '" in said
    assert "of the installed package " in said
