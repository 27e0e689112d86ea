"""Rewritten model -> plain layers: ``fold``, and ``alternatives``, the sites that have a choice."""

from ccrewrite.passes.fold.choose import alternatives
from ccrewrite.passes.fold.folding import fold

__all__ = ["alternatives", "fold"]
