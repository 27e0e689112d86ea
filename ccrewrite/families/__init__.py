"""Kinds of learnable layers, one folder each, behind one protocol."""
