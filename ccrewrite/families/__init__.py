"""Kinds of learnable layers, one folder each, behind one protocol. What a family's author needs has its name here; a facade.

docs/writing-a-family.md goes through it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ccrewrite.ir.lazy import lazy_names

if TYPE_CHECKING:
    from ccrewrite.families.adopt import RewrittenConv
    from ccrewrite.families.family import Family, families, register_family
    from ccrewrite.families.interpolation import hat, keys_cubic
    from ccrewrite.families.learnable import Recording, clamp_between_
    from ccrewrite.families.onnx import OnnxCall, OnnxForm, OnnxOperator
    from ccrewrite.families.resizable import ResizableSampling, scaled_size
    from ccrewrite.families.rule import Rule
    from ccrewrite.families.sampling import Sampling
    from ccrewrite.families.scratch import ScratchConv
    from ccrewrite.folded.alternative import Alternative
    from ccrewrite.ir.calls import CallShapes
    from ccrewrite.ir.geometry import AxisMap, ConvGeometry
    from ccrewrite.ir.sites import Site

__all__ = [
    "Alternative",
    "AxisMap",
    "CallShapes",
    "ConvGeometry",
    "Family",
    "OnnxCall",
    "OnnxForm",
    "OnnxOperator",
    "Recording",
    "ResizableSampling",
    "RewrittenConv",
    "Rule",
    "Sampling",
    "ScratchConv",
    "Site",
    "clamp_between_",
    "families",
    "hat",
    "keys_cubic",
    "register_family",
    "scaled_size",
]

_HOME = {
    "Alternative": "folded.alternative",
    "AxisMap": "ir.geometry",
    "CallShapes": "ir.calls",
    "ConvGeometry": "ir.geometry",
    "Family": "families.family",
    "OnnxCall": "families.onnx",
    "OnnxForm": "families.onnx",
    "OnnxOperator": "families.onnx",
    "Recording": "families.learnable",
    "ResizableSampling": "families.resizable",
    "RewrittenConv": "families.adopt",
    "Rule": "families.rule",
    "Sampling": "families.sampling",
    "ScratchConv": "families.scratch",
    "Site": "ir.sites",
    "clamp_between_": "families.learnable",
    "families": "families.family",
    "hat": "families.interpolation",
    "keys_cubic": "families.interpolation",
    "register_family": "families.family",
    "scaled_size": "families.resizable",
}
"""Name -> the module of ``ccrewrite`` that has it."""

__getattr__, __dir__ = lazy_names(__name__, _HOME)
