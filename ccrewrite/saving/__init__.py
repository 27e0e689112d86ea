"""Rewritten models on disk: ``save``, and ``load`` onto a fresh original."""

from ccrewrite.saving.store import load, save

__all__ = ["load", "save"]
