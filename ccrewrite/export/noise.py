"""What rounding does to an ONNX file: runs of it under the runtime's other optimization levels, and on rounded inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ccrewrite.export.check import numbered, run_file, session_of
from ccrewrite.ir.typed import from_numpy
from ccrewrite.passes.noise import Noise, rounded
from ccrewrite.passes.verify import compare_outputs

OTHERWISE = "the runtime optimizes the same file less, or its inputs are rounded"
"""What happens in these runs."""
LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED")
"""Of onnxruntime, beside the one that files are compared at."""


def noise_of(path: Path, inputs: Mapping[str, np.ndarray]) -> Noise:
    """The most that any of these changes in each output."""
    session = session_of(path)
    before = numbered(run_file(session, inputs))
    others = [run_file(session_of(path, level), inputs) for level in LEVELS]
    others.append(run_file(session, {name: rounded(from_numpy(value)).numpy() for name, value in inputs.items()}))
    return Noise.most(compare_outputs(before, numbered(after)) for after in others)
