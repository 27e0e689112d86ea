"""A file that appears under its name only when it is right."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ccrewrite.errors import ExportError, InputError

if TYPE_CHECKING:
    import onnx_ir

EXTERNAL = 1_900_000_000
"""Bytes of weights from which they go to a file of their own: protobuf holds at most 2 GiB."""
PACKAGES = ("onnx", "onnx_ir", "onnxscript", "onnxruntime")


def require_packages() -> None:
    """Raise ``InputError`` where a package of the extra ``onnx`` is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(f"ONNX needs {', '.join(missing)}: pip install 'ccrewrite[onnx]'")


def load(path: Path) -> onnx_ir.Model:
    """Raises what onnx_ir raises."""
    import onnx_ir

    return onnx_ir.load(path)  # pyright: ignore[reportUnknownMemberType]


def save(model: onnx_ir.Model, path: Path, *, external: bool = False) -> None:
    """Write ``model``, with its weights in a file of their own where they are too large for one, or ``external``. Raises
    ``ExportError`` where ``onnx.checker`` refuses it."""
    import onnx

    write(model, path, external=external)
    try:
        onnx.checker.check_model(str(path), full_check=True)  # pyright: ignore[reportUnknownMemberType]
    except Exception as error:
        raise ExportError(f"onnx.checker refuses the file: {error}") from error


def write(model: onnx_ir.Model, path: Path, *, external: bool = False) -> None:
    """The same, unchecked."""
    import onnx_ir

    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    beside = f"{path.name}.data" if external or weights > EXTERNAL else None
    onnx_ir.save(model, path, external_data=beside)  # pyright: ignore[reportUnknownMemberType]
