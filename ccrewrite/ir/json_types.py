"""What JSON's values are called in type hints. Here alone, so that whoever names them needs no reader of files."""

from __future__ import annotations

from typing import Any

JsonObject = dict[str, Any]
"""JSON's "object". Whoever reads one from a file knows what is under its keys once it is ``checked``
(``ccrewrite.ir.documents``); whoever makes one knows it anyway."""
