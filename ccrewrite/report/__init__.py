"""Comparison reports: what changed in a model, what it costs and how far it carries; as data, tables and a page.

Names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ccrewrite.report.changes import Regression, regression
    from ccrewrite.report.comparison import Comparison
    from ccrewrite.report.measure import compare

__all__ = ["Comparison", "Regression", "compare", "regression"]

_HOME = {"Comparison": "comparison", "Regression": "changes", "compare": "measure", "regression": "changes"}
"""Name -> the module here that has it."""


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
