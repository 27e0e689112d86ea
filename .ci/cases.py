"""Runs every program of a folder and of those in it, one after the other: each prints what it found, in its last line ``ok`` or
``skipped: why``, or ``FAULT: what`` with exit status 1.

    python .ci/cases.py FOLDER [PATTERN]
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SECONDS = 300
"""After which a program counts as failed."""

OLD_NAMES = Path(__file__).parent.resolve() / "old_names"
"""On the programs' path: some import modules by names of before 0.2.0."""


def main(folder: Path, pattern: str = "**/*.py") -> int:
    files = sorted(folder.glob(pattern)) if folder.is_dir() else []
    if not files:
        print(f"skipped: no programs in {folder}; CASES=FOLDER names another one")
        return 0
    failed = [file for file in files if not passes(file, str(file.relative_to(folder)))]
    print(f"{len(files) - len(failed)} of {len(files)} pass")
    return 1 if failed else 0


def passes(file: Path, name: str) -> bool:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(OLD_NAMES)}
    try:
        done = subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=SECONDS, env=environment)
    except subprocess.TimeoutExpired:
        print(f"{name}: FAULT: not done after {SECONDS} s", flush=True)
        return False
    said = (done.stdout.strip() or done.stderr.strip() or "nothing said").splitlines()[-1]
    ok = done.returncode == 0 and (said == "ok" or said.startswith("skipped"))
    if not ok and done.stderr.strip() and "FAULT" not in said:
        said = done.stderr.strip().splitlines()[-1]
    print(f"{name}: {said[:300]}", flush=True)
    return ok


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:3]))
