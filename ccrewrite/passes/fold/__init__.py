"""Rewritten model -> plain layers."""
