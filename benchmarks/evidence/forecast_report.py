"""The tables of ``forecast.py``."""

from __future__ import annotations

from pathlib import Path


def write(work: Path) -> None:
    """Not yet."""
    raise SystemExit(f"{work}: no report yet")
