"""Where a report was made: enough to make it again, and nothing that names a machine or a user."""

from __future__ import annotations

import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from ccrewrite.ir.json_types import JsonObject


def environment(device: torch.device) -> JsonObject:
    """Date, device, processor, threads, versions and git revision, as plain data."""
    found: JsonObject = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": _cpu(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "versions": {"ccrewrite": version("ccrewrite"), "torch": torch.__version__, "python": platform.python_version()},
        "git_revision": _revision(),
    }
    if device.type == "cuda":
        found["versions"]["cuda"] = str(torch.version.cuda)
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _revision() -> str | None:
    """Commit of the package's checkout ("+": with changes), None where it is installed or git is missing."""
    package = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(package), *arguments], capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        tracked = git("ls-files", "__init__.py")
        changed = git("status", "--porcelain", "--untracked-files=no", ".")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "") if tracked else None
    except (OSError, subprocess.SubprocessError):
        return None


def without_folders(text: str) -> str:
    """File names alone of absolute paths: a report says nothing of the machine's folders.

    >>> without_folders("compare a.b:c --out=/data/me/report; no /usr/bin/g++; a/b and 1/2 stay")
    'compare a.b:c --out=report; no g++; a/b and 1/2 stay'
    """
    return re.sub(r"(?<![\w.])/(?:[^\s/'\"]+/)*(?=[^\s/'\"])", "", text)
