"""Rewrite the convolutions of any PyTorch model, in one call, into learnable ones that start out exactly the same.

``plan`` shows what would happen, ``rewrite`` does it to a copy, ``revert`` undoes it. README.md has the tour.
"""

from ccrewrite import nn
from ccrewrite.api import Result, plan, revert, rewrite, rewrite_, verify
from ccrewrite.errors import CcrewriteError, InputError, ModelRunError, SelectionError, SelectionWarning
from ccrewrite.geometry import AxisMap, ConvGeometry
from ccrewrite.passes.rules import DEFAULT_RULES, DilatedToDcls, Rule, StridedToCC, TransposedToCC
from ccrewrite.passes.verify import Check, OutputCheck
from ccrewrite.sites import Decision, Plan, Site

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_RULES",
    "AxisMap",
    "CcrewriteError",
    "Check",
    "ConvGeometry",
    "Decision",
    "DilatedToDcls",
    "InputError",
    "ModelRunError",
    "OutputCheck",
    "Plan",
    "Result",
    "Rule",
    "SelectionError",
    "SelectionWarning",
    "Site",
    "StridedToCC",
    "TransposedToCC",
    "nn",
    "plan",
    "revert",
    "rewrite",
    "rewrite_",
    "verify",
]
