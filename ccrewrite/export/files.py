"""A file that appears under its name only when it is right."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
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


def writable(path: Path) -> Path:
    """``path``, where a file of that name can be written; else ``InputError`` says why not."""
    if path.is_dir():
        raise InputError(f"path must be a file, found the directory {path}")
    if not path.parent.is_dir():
        raise InputError(f"there is no directory {path.parent} to write {path.name} to")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise InputError(f"{path} can't be written: no permission")
    return path


@contextmanager
def replacing(target: Path) -> Generator[Path]:
    """The target's name in a directory of its own beside it. What is there in the end, its weights first, moves to the target's
    directory, unless an error ends the block: then nothing changes. Raises ``InputError`` where the disk refuses."""
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".ccrewrite-") as directory:
            yield Path(directory, target.name)
            for name in sorted(os.listdir(directory), reverse=True):  # the weights before the file that names them
                os.replace(Path(directory, name), target.parent / name)
    except OSError as error:
        raise InputError(f"{target} can't be written: {error}") from error


def save(model: onnx_ir.Model, path: Path, *, external: bool = False) -> None:
    """Write ``model``, with its weights in a file of their own where they are too large for one, or ``external``. Raises
    ``ExportError`` where ``onnx.checker`` refuses it."""
    import onnx

    write(model, path, external=external)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise ExportError(f"onnx.checker refuses the file: {error}") from error


def write(model: onnx_ir.Model, path: Path, *, external: bool = False) -> None:
    """The same, unchecked."""
    import onnx_ir

    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    onnx_ir.save(model, path, external_data=f"{path.name}.data" if external or weights > EXTERNAL else None)
