"""What this machine has and lacks of what the package can use: ``examined``, for ``ccrewrite doctor``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

State = Literal["ok", "missing", "broken"]


@dataclass(frozen=True)
class Finding:
    """One part of the machine: what was ``found``, what the package uses it for, and how to ``mend`` what isn't "ok".

    "missing": what it ``serves`` doesn't work here, all else does. "broken": it is there, and doesn't work.
    """

    part: str
    state: State
    found: str
    serves: str
    mend: str = ""


EXTRAS = {
    "onnx": (("onnx", "onnx-ir", "onnxscript", "onnxruntime"), "export_onnx, rewrite_onnx"),
    "train": (("accelerate",), "finetune"),
    "forecast": (("scipy",), "forecast.choose, which picks sites under a limit"),
    "report": (("jinja2", "matplotlib"), "the page of compare, pictures of finetune"),
    "demo": (("scikit-learn",), "ccrewrite demo"),
}
"""Extra -> (the packages it brings, what needs them)."""
MODULES = {"onnx-ir": "onnx_ir", "scikit-learn": "sklearn"}
"""Package -> module, where they have different names."""

PROGRAM = """#include <Python.h>
#include <omp.h>
extern "C" int threads() { return omp_get_max_threads(); }
"""


def examined() -> Iterator[Finding]:
    """One finding after the other."""
    yield _versions()
    yield _rewriting()
    yield _families()
    for extra, (packages, serves) in EXTRAS.items():
        yield _extra(extra, packages, serves)
    yield _compiler()
    yield _cuda()
    yield _cache()


def _versions() -> Finding:
    found = f"ccrewrite {version('ccrewrite')}, python {sys.version.partition(' ')[0]}, torch {version('torch')}"
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:  # most installers bring it
        return Finding("versions", "ok", found, "everything")
    wanted = (Requirement(one) for one in requires("ccrewrite") or ())
    wrong = [
        f"{one.name} {one.specifier}, found {has or 'none'}"
        for one in wanted
        if (one.marker is None or one.marker.evaluate({"extra": ""}))
        and not ((has := _version(one.name)) and one.specifier.contains(has.partition("+")[0], prereleases=True))
    ]
    if wrong:
        return Finding("versions", "broken", found, "everything", f"install {'; '.join(wrong)}")
    return Finding("versions", "ok", found, "everything")


def _rewriting() -> Finding:
    def rewrite() -> str:
        import torch

        import ccrewrite

        model, x = torch.nn.Sequential(torch.nn.Conv1d(2, 2, 3, dilation=2)), torch.zeros(1, 2, 9)
        result = ccrewrite.rewrite(model, x)
        if not result.check.ok:
            raise RuntimeError(f"outputs differ by {result.check.max_rel_error:.1e}")
        return "a small model was rewritten, and computes the same"

    serves = "plan, rewrite, fold, save, load, resize_, compare"
    return _tried("rewriting", serves, rewrite, "install torch and ccrewrite anew, in an environment of their own")


def _families() -> Finding:
    def load() -> str:
        from ccrewrite.families.family import families

        return ", ".join(family.name for family in families())

    return _tried("families", "every rule and saved model", load, "the message says which package to mend or uninstall")


def _extra(extra: str, packages: tuple[str, ...], serves: str) -> Finding:
    missing: list[str] = []
    found: list[str] = []
    for name in packages:
        try:
            import_module(MODULES.get(name, name))
        except ModuleNotFoundError:
            missing.append(name)
        except Exception as error:
            told = f"{name} can't be imported: {type(error).__name__}: {error}"
            return Finding(f"extra {extra}", "broken", told, serves, f"pip install --force-reinstall {name}")
        else:
            found.append(f"{name} {_version(name) or ''}".strip())
    if missing:
        return Finding(f"extra {extra}", "missing", f"no {', '.join(missing)}", serves, f"pip install 'ccrewrite[{extra}]'")
    return Finding(f"extra {extra}", "ok", ", ".join(found), serves)


def _compiler() -> Finding:
    serves = "lower, aot, finetune with compile, compare without --quick; else models run eagerly"
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    compiler = next((name for name in names if shutil.which(name)), None)
    if compiler is None:
        mend = "install one (Debian: apt install g++; macOS: xcode-select --install), or name it in CXX"
        return Finding("C++ compiler", "missing", f"no {' or '.join(names)} on the path", serves, mend)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "threads.cpp"
        source.write_text(PROGRAM, encoding="utf-8")
        includes = f"-I{sysconfig.get_path('include')}"
        told = [compiler, "-shared", "-fPIC", "-fopenmp", includes, str(source), "-o", str(source.with_suffix(".so"))]
        try:
            done = subprocess.run(told, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            return Finding("C++ compiler", "broken", f"{compiler}: {error}", serves, "install another, or name it in CXX")
    if done.returncode:
        reason = next((line.rpartition("error: ")[2] for line in done.stderr.splitlines() if "error: " in line), "it fails")
        mend = "install Python's headers (Debian: apt install python3-dev)" if "Python.h" in reason else "install OpenMP for it"
        return Finding("C++ compiler", "broken", f"{compiler}: {reason}", serves, mend)
    return Finding("C++ compiler", "ok", f"{compiler}, with OpenMP and Python's headers", serves)


def _cuda() -> Finding:
    import torch

    serves = "running on a GPU; else the CPU is used"
    if torch.version.cuda is None:
        return Finding("CUDA", "missing", "torch is built for the CPU", serves, "install torch for CUDA: pytorch.org")
    if not torch.cuda.is_available():
        found = f"torch is built for CUDA {torch.version.cuda}, and finds no device"
        return Finding("CUDA", "missing", found, serves, "where there is a GPU: look at its driver, by nvidia-smi")
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    if (triton := _version("triton")) is None:
        return Finding("CUDA", "broken", f"{names}, without triton", "lower and aot on a GPU", "pip install triton")
    return Finding("CUDA", "ok", f"{names}, CUDA {torch.version.cuda}, triton {triton}", serves)


def _cache() -> Finding:
    serves = "times of forms that lower has measured; else it measures them each time"
    folder = Path(os.environ.get("CCREWRITE_CACHE") or "")
    mend = "make it writable, or name another folder in CCREWRITE_CACHE"
    try:
        from ccrewrite.lowering.times import cache_file

        folder = cache_file().parent
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:
        return Finding("cache", "broken", f"{folder} can't be written: {error}", serves, mend)
    return Finding("cache", "ok", "can be written", serves)


def _tried(part: str, serves: str, attempt: Callable[[], str], mend: str) -> Finding:
    try:
        return Finding(part, "ok", attempt(), serves)
    except Exception as error:
        return Finding(part, "broken", f"{type(error).__name__}: {error}", serves, mend)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
