"""Rewrite the convolutions of any PyTorch model, in one call, into learnable ones that start out exactly the same.

``plan`` shows what would happen, ``rewrite`` does it to a copy, ``revert`` undoes it. README.md has the tour.
"""

from ccrewrite import metrics, nn, training
from ccrewrite.alignment import misalignment
from ccrewrite.api import Result, plan, revert, rewrite, rewrite_, verify
from ccrewrite.budget import trade
from ccrewrite.checkpoints import convert_dcls_checkpoint
from ccrewrite.ensemble import ScaleEnsemble
from ccrewrite.errors import (
    CcrewriteError,
    ExportError,
    InputError,
    ModelRunError,
    SelectionError,
    SelectionWarning,
    SizeWarning,
)
from ccrewrite.export.onnx import export_onnx
from ccrewrite.export.rewrite import rewrite_onnx
from ccrewrite.geometry import AxisMap, ConvGeometry
from ccrewrite.lowering.aot import aot
from ccrewrite.lowering.lower import lower
from ccrewrite.passes.fold import fold
from ccrewrite.passes.rules import DEFAULT_RULES, DilatedToDcls, Rule, StridedToCC, TransposedToCC
from ccrewrite.passes.scale_groups import scale_groups
from ccrewrite.passes.sparsify import LargeToDcls
from ccrewrite.passes.verify import Check, OutputCheck
from ccrewrite.report.compare import compare
from ccrewrite.resize import resize_, resized
from ccrewrite.saving import load, save
from ccrewrite.sites import Decision, Plan, Site
from ccrewrite.training.config import FinetuneConfig
from ccrewrite.training.finetune import finetune
from ccrewrite.training.recalibrate import recalibrate

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_RULES",
    "AxisMap",
    "CcrewriteError",
    "Check",
    "ConvGeometry",
    "Decision",
    "DilatedToDcls",
    "ExportError",
    "FinetuneConfig",
    "InputError",
    "LargeToDcls",
    "ModelRunError",
    "OutputCheck",
    "Plan",
    "Result",
    "Rule",
    "ScaleEnsemble",
    "SelectionError",
    "SelectionWarning",
    "Site",
    "SizeWarning",
    "StridedToCC",
    "TransposedToCC",
    "aot",
    "compare",
    "convert_dcls_checkpoint",
    "export_onnx",
    "finetune",
    "fold",
    "load",
    "lower",
    "metrics",
    "misalignment",
    "nn",
    "plan",
    "recalibrate",
    "resize_",
    "resized",
    "revert",
    "rewrite",
    "rewrite_",
    "rewrite_onnx",
    "save",
    "scale_groups",
    "trade",
    "training",
    "verify",
]
