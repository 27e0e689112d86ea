"""Rewritten models on disk: ``save``, and ``load`` onto a fresh original; several geometries for one model."""

from ccrewrite.saving.geometries import Geometries
from ccrewrite.saving.store import load, save

__all__ = ["Geometries", "load", "save"]
