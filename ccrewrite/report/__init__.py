"""Comparison reports: what changed in a model, what it costs and how far it carries; as data, tables and a page."""

from ccrewrite.report.compare import compare
from ccrewrite.report.comparison import Comparison
from ccrewrite.report.regression import Regression, regression

__all__ = ["Comparison", "Regression", "compare", "regression"]
