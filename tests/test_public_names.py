"""The public names. Removing one breaks somebody: change this list only together with the changelog."""

import subprocess
import sys

import ccrewrite


def test_package() -> None:
    assert ccrewrite.__all__ == [
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
    assert all(hasattr(ccrewrite, name) for name in ccrewrite.__all__)


def test_layers() -> None:
    assert ccrewrite.nn.__all__ == [
        "CCConv1d",
        "CCConv2d",
        "CCConv3d",
        "CCConvTranspose1d",
        "CCConvTranspose2d",
        "CCConvTranspose3d",
        "CCSampling",
        "DclsConv1d",
        "DclsConv2d",
        "DclsConv3d",
        "DclsSampling",
        "RewrittenConv",
        "Sampling",
        "nyquist_penalty",
        "share_positions",
    ]
    assert all(hasattr(ccrewrite.nn, name) for name in ccrewrite.nn.__all__)


def test_imported_without_the_extras() -> None:
    extras = ("accelerate", "matplotlib", "onnx", "onnx_ir", "onnxruntime", "onnxscript")
    code = f"import sys; sys.modules.update(dict.fromkeys({extras})); import ccrewrite"
    subprocess.run([sys.executable, "-c", code], check=True)
