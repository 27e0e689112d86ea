"""Rewrite the convolutions of any PyTorch model, in one call, into learnable ones that start out exactly the same.

``plan`` shows what would happen, ``rewrite`` does it to a copy, ``revert`` undoes it. README.md has the tour.

Names are imported when they are first used: ``import ccrewrite`` by itself loads next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ccrewrite.ir.lazy import lazy_names

if TYPE_CHECKING:
    from ccrewrite import families as families
    from ccrewrite import nn as nn
    from ccrewrite import report as report
    from ccrewrite import training as training
    from ccrewrite.api import plan, revert, rewrite, rewrite_, verify
    from ccrewrite.errors import CcrewriteError
    from ccrewrite.export.onnx import export_onnx
    from ccrewrite.export.rewrite import rewrite_onnx
    from ccrewrite.families.cc.rule import StridedToCC, TransposedToCC
    from ccrewrite.families.dcls.rule import DilatedToDcls
    from ccrewrite.families.dcls.sparsify import LargeToDcls
    from ccrewrite.families.family import Family, register_family
    from ccrewrite.families.rule import Rule
    from ccrewrite.families.sampling import Sampling
    from ccrewrite.forecasting.forecast import forecast
    from ccrewrite.lowering.aot import aot
    from ccrewrite.lowering.lower import lower
    from ccrewrite.passes.fold import fold
    from ccrewrite.passes.scales.resize import resize_, resized
    from ccrewrite.passes.scales.scale_groups import scale_groups
    from ccrewrite.report.measure import compare
    from ccrewrite.saving.store import load, save
    from ccrewrite.training.config import FinetuneConfig
    from ccrewrite.training.finetune import finetune

__version__ = "0.2.0"

__all__ = [
    "CcrewriteError",
    "DilatedToDcls",
    "Family",
    "FinetuneConfig",
    "LargeToDcls",
    "Rule",
    "Sampling",
    "StridedToCC",
    "TransposedToCC",
    "aot",
    "compare",
    "export_onnx",
    "finetune",
    "fold",
    "forecast",
    "load",
    "lower",
    "plan",
    "register_family",
    "resize_",
    "resized",
    "revert",
    "rewrite",
    "rewrite_",
    "rewrite_onnx",
    "save",
    "scale_groups",
    "verify",
]

_HOME = {
    "CcrewriteError": "errors",
    "DilatedToDcls": "families.dcls.rule",
    "Family": "families.family",
    "FinetuneConfig": "training.config",
    "LargeToDcls": "families.dcls.sparsify",
    "Rule": "families.rule",
    "Sampling": "families.sampling",
    "StridedToCC": "families.cc.rule",
    "TransposedToCC": "families.cc.rule",
    "aot": "lowering.aot",
    "compare": "report.measure",
    "export_onnx": "export.onnx",
    "finetune": "training.finetune",
    "fold": "passes.fold",
    "forecast": "forecasting.forecast",
    "load": "saving.store",
    "lower": "lowering.lower",
    "plan": "api",
    "register_family": "families.family",
    "resize_": "passes.scales.resize",
    "resized": "passes.scales.resize",
    "revert": "api",
    "rewrite": "api",
    "rewrite_": "api",
    "rewrite_onnx": "export.rewrite",
    "save": "saving.store",
    "scale_groups": "passes.scales.scale_groups",
    "verify": "api",
}
"""Public name -> the module that has it."""

_MOVED = {
    "AxisMap": "ir.geometry",
    "Check": "ir.check",
    "ConvGeometry": "ir.geometry",
    "Decision": "ir.sites",
    "ExportError": "errors",
    "InputError": "errors",
    "ModelRunError": "errors",
    "OutputCheck": "ir.check",
    "Plan": "ir.sites",
    "Result": "api",
    "ScaleEnsemble": "training.ensemble",
    "SelectionError": "errors",
    "SelectionWarning": "errors",
    "Site": "ir.sites",
    "SizeWarning": "errors",
    "convert_dcls_checkpoint": "families.dcls.checkpoints",
    "misalignment": "passes.scales.alignment",
    "recalibrate": "training.recalibrate",
    "trade": "report.budget",
}
"""Name that version 0.1.0 had here -> the module that has it now."""


_get, __dir__ = lazy_names(__name__, _HOME)


def __getattr__(name: str) -> object:
    if name in ("families", "nn", "report", "training"):
        return import_module(f"{__name__}.{name}")
    if name in _MOVED:
        raise AttributeError(f"ccrewrite.{name} is now {name} of ccrewrite.{_MOVED[name]}")
    return _get(name)
