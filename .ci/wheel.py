"""Looks at what a release is made of: the wheel's size, what is in it, and its version.

python .ci/wheel.py dist [--tag v1.2.3]
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

LARGEST = 1.5
"""Of a wheel, in MB."""
ROOMS = ("ccrewrite/", "ccrewrite-")


def main(folder: Path, tag: str | None) -> int:
    (wheel,) = folder.glob("*.whl")
    version = wheel.name.split("-")[1]
    size = wheel.stat().st_size / 1e6
    with zipfile.ZipFile(wheel) as archive:
        strange = [name for name in archive.namelist() if not name.startswith(ROOMS)]
    faults = [
        f"{size:.2f} MB, at most {LARGEST} wanted" if size > LARGEST else "",
        f"not of the package: {strange[:5]}" if strange else "",
        f"the tag is {tag}, the version {version}" if tag not in (None, f"v{version}") else "",
    ]
    print(f"{wheel.name}: {size:.2f} MB", *filter(None, faults), sep="\n")
    return 1 if any(faults) else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[3] if sys.argv[2:3] == ["--tag"] else None))
