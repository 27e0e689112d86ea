"""Values inside an ONNX graph, seen while it runs: ``Probed``, a copy of the graph with more outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from torch import Tensor

from ccrewrite.export.check import run_file, session_of
from ccrewrite.export.files import write
from ccrewrite.export.sizes import SizeInput
from ccrewrite.ir.geometry import Ints


class Probed:
    """``model``, which also gives the ``values`` inside it, in onnxruntime. ``asked`` are those of its inputs that choose
    sizes, ``inputs`` what the others get. Written to ``directory`` while it is loaded; ``model`` is of no other use then."""

    def __init__(
        self,
        model: ir.Model,
        values: Sequence[ir.Value],
        inputs: Mapping[str, np.ndarray],
        asked: Sequence[SizeInput],
        directory: Path,
    ) -> None:
        self.inputs, self.asked, self.own = inputs, asked, len(model.graph.outputs)
        for i, value in enumerate(values):
            probe = ir.node("Identity", [value], name=f"ccrewrite.probe.{i}")
            probe.outputs[0].name, probe.outputs[0].type = probe.name, value.type
            model.graph.append(probe)
            model.graph.outputs.append(probe.outputs[0])
        path = directory / "probed.onnx"
        write(model, path)
        self.session = session_of(path)
        for file in directory.glob("probed.onnx*"):
            file.unlink()

    def run(self, sizes: Mapping[str, Ints] | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """The model's own outputs, and the values, at these sizes; others are native."""
        asked = sizes or {}
        given = {x.name: np.array(asked.get(x.name, (0,) * len(x.axes)), np.int64) for x in self.asked}
        found = run_file(self.session, {**self.inputs, **given})
        return found[: self.own], found[self.own :]
