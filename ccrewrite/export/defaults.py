"""Sizes of a file without their defaults: ``require_sizes``."""

from __future__ import annotations

import os
from pathlib import Path

from ccrewrite.errors import InputError
from ccrewrite.export.files import load, require_packages, save
from ccrewrite.ir.written import replacing, writable


def require_sizes(path_in: str | os.PathLike[str], path_out: str | os.PathLike[str]) -> tuple[str, ...]:
    """Write the ONNX file ``path_in`` to ``path_out`` with its inputs ``<site>.size`` as inputs that must be given, 0 for the
    native size; their names.

    For runtimes that let nobody choose an input which has a default (onnxruntime-web, OpenVINO). Raises ``InputError`` where
    the file can't be read or has no such input.
    """
    require_packages()
    import onnx_ir as ir

    target = writable(Path(path_out))
    try:
        model = load(Path(path_in))
    except Exception as error:
        raise InputError(f"{path_in} can't be read as ONNX: {error}") from error
    names = tuple(str(v.name) for v in model.graph.inputs if v.name in model.graph.initializers)
    if not names:
        raise InputError(f"{path_in} has no input with a default; export_onnx(sizes='input') and rewrite_onnx write such files")
    external = any(isinstance(v.const_value, ir.ExternalTensor) for v in model.graph.initializers.values())
    ir.external_data.load_to_model(model)
    for name in names:
        del model.graph.initializers[name]
    with replacing(target) as temporary:
        save(model, temporary, external=external)
    return names
