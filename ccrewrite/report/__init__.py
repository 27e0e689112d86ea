"""Comparison reports: what changed in a model, what it costs and how far it carries; as data, tables and a page.

Names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ccrewrite.ir.lazy import lazy_names

if TYPE_CHECKING:
    from ccrewrite.report.changes import Regression, regression
    from ccrewrite.report.comparison import Comparison
    from ccrewrite.report.measure import compare

__all__ = ["Comparison", "Regression", "compare", "regression"]

_HOME = {
    "Comparison": "report.comparison",
    "Regression": "report.changes",
    "compare": "report.measure",
    "regression": "report.changes",
}
"""Name -> the module of ``ccrewrite`` that has it."""

__getattr__, __dir__ = lazy_names(__name__, _HOME)
