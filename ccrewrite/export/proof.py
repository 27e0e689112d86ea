"""What proves a rewritten file right at its native sizes: runs of it, and of copies in which every site computes as it does
once it moved, against the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from ccrewrite.errors import ExportError
from ccrewrite.export.check import compared, run_file, runtime, session_of
from ccrewrite.export.convolutions import convolutions
from ccrewrite.export.follow import tried
from ccrewrite.export.memory import Need
from ccrewrite.export.noise import OTHERWISE, noise_of
from ccrewrite.export.probed import Probed
from ccrewrite.export.report import FileCheck, FileRun, SizeTrial
from ccrewrite.export.sizes import SizeInput
from ccrewrite.export.source import Source
from ccrewrite.export.variants import Variants
from ccrewrite.ir.check import COMPILED, TOLERANCE
from ccrewrite.ir.geometry import Ints
from ccrewrite.passes.noise import JUDGED, settled

SEEDED = "random nodes drew the same numbers in both files, which are written without these seeds"


class Proof:
    """Of ``source`` rewritten as ``variants`` say, on ``inputs``. ``tolerance``: relative to an output's largest magnitude;
    None: what the type rounds to, or more where the file amplifies rounding. ``directory``: for files that are run."""

    def __init__(
        self, source: Source, variants: Variants, inputs: Mapping[str, np.ndarray], tolerance: float | None, directory: Path
    ) -> None:
        self.source, self.variants, self.inputs = source, variants, inputs
        self.tolerance, self.directory = tolerance, directory
        self.original = source.file(directory)
        self.expected = run_file(session_of(self.original), inputs)
        self.notes: dict[str, None] = dict.fromkeys([SEEDED] if source.random else [])

    def needs(self) -> list[Need]:
        """Of the sites that get a size input, at their native sizes."""
        model = self.variants.model.clone()
        sited = zip(convolutions(model), self.variants.sites, strict=True)
        forms = self.variants.forms
        convs = [replace(c, site=s) for c, s in sited if s.name in forms and forms[s.name].sized]
        shapes = [s[0] if (s := conv.site.input_shapes) else () for conv in convs]
        if not all(shape and all(shape) for shape in shapes):  # the file leaves some open
            shape_nodes = [ir.node("Shape", [conv.node.inputs[0]]) for conv in convs]
            for node in shape_nodes:
                node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
                model.graph.append(node)
            probed = Probed(model, [node.outputs[0] for node in shape_nodes], self.inputs, (), self.directory)
            shapes = [tuple(int(n) for n in shape) for shape in probed.run()[1]]
        pairs = zip(convs, shapes, strict=True)
        return [Need.of(c.site.name, forms[c.site.name], c.call, shape, (1,) * (len(shape) - 2)) for c, shape in pairs]

    def trials(self) -> tuple[SizeTrial, ...]:
        """Runs at other sizes. Raises ``ExportError`` where the sites, moved, compute something else natively."""
        moved = self.variants.moved()
        probed = Probed(moved.model, [one.shape for one in moved.watched], self.inputs, moved.asked, self.directory)
        self._check(probed.run()[0], {})
        return tried(probed, moved.watched)

    def check(self, path: Path, asked: Sequence[SizeInput], native: Mapping[str, Ints]) -> FileCheck:
        """Of the file at ``path``: with nothing asked for, and with the ``native`` sizes. Raises ``ExportError`` where it
        differs."""
        session, runs = session_of(path), list[FileRun]()
        for sizes in [{}, {x.name: native[x.name] for x in asked}][: 2 if asked else 1]:
            given = {name: np.array(size, np.int64) for name, size in sizes.items()}
            runs.append(self._check(run_file(session, {**self.inputs, **given}), sizes))
        return FileCheck.of(runs, runtime(), "; ".join(self.notes))

    def _check(self, found: Sequence[Tensor], sizes: Mapping[str, Ints]) -> FileRun:
        """One run. Sites are judged one by one where the outputs alone can't tell."""
        outputs = compared(self.expected, found, self._tolerance(self.expected))
        if self.tolerance is None and not all(o.ok for o in outputs):
            faults = self._faults()
            if not faults:
                noise = lambda: noise_of(self.original, self.inputs)  # noqa: E731
                outputs, note = settled(outputs, noise, OTHERWISE, roundings=JUDGED)
                self.notes |= dict.fromkeys([note] if note else [])
            else:
                self._refuse("; ".join(faults))
        run = FileRun({n: tuple(v.shape) for n, v in self.inputs.items()}, outputs, dict(sizes))
        if not run.ok:
            self._refuse(run.note + self._advice())
        return run

    def _advice(self) -> str:
        return "" if self.tolerance is not None else "; tolerance= allows more, relative to each output's largest magnitude"

    def _refuse(self, why: str) -> None:
        raise ExportError(f"the rewritten file computes something else than {self.source.name}: {why}. Nothing was written")

    def _faults(self) -> list[str]:
        """What is wrong with single sites, each on the input that it gets."""
        judged = self.variants.moved(judged=True)
        values = [v for pair in judged.judged.values() for v in pair]
        found = Probed(judged.model, values, self.inputs, judged.asked, self.directory).run()[1]
        said: list[str] = []
        for site, expected, mine in zip(judged.judged, found[::2], found[1::2], strict=True):
            (output,) = compared([expected], [mine], self._tolerance([expected]))
            if not output.ok:
                said.append(f"{site} {output.note or f'is off by {output.max_rel_error:.1e} on the input that it gets'}")
        return said

    def _tolerance(self, outputs: Sequence[Tensor]) -> float:
        tolerance = TOLERANCE[torch.float32] if self.tolerance is None else self.tolerance
        return max(tolerance, COMPILED[torch.float16]) if any(t.dtype == torch.float16 for t in outputs) else tolerance
