"""An ONNX file against the model that it was made of: runs of both, at sizes that may vary."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ccrewrite.errors import ExportError
from ccrewrite.export.examples import arguments
from ccrewrite.export.report import FileCheck, FileRun
from ccrewrite.export.sizes import SizePlan
from ccrewrite.families.sites import rewritten_sites
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.check import COMPILED, OutputCheck
from ccrewrite.ir.geometry import Ints
from ccrewrite.ir.preserve import preserved
from ccrewrite.ir.typed import manual_seed
from ccrewrite.passes.judging import Verdict, judged
from ccrewrite.passes.noise import with_noise
from ccrewrite.passes.scales.resize import resized
from ccrewrite.passes.verify import compare_outputs


def checked(model: nn.Module, path: Path, runs: Sequence[Inputs], sizes: SizePlan | None, tolerance: float | None) -> FileCheck:
    """The file at ``path`` in onnxruntime against ``model`` in eager mode, on each of ``runs``, and at several sizes where the
    file asks for them. Raises ``ExportError`` where it doesn't run, or gives something else."""
    from ccrewrite.export.copies import runnable  # of the extra onnx

    with runnable(path) as (file, copied):
        session = session_of(file)
    notes: dict[str, None] = {}
    found: list[FileRun] = []

    def run_both(inputs: Inputs, given: Mapping[str, Ints]) -> FileRun:
        run, note = _run_both(model, path, session, copied, inputs, given, tolerance)
        notes.update(dict.fromkeys([note] if note else []))
        return run

    for inputs in runs:
        for settings, given in sizes.trials(model, inputs) if sizes else [(None, dict[str, Ints]())]:
            if settings is None:
                run = run_both(inputs, given)
            else:
                with resized(model, settings, inputs):
                    run = run_both(inputs, given)
            if not run.ok:
                raise ExportError(
                    f"the file computes something else than the model on inputs of shape {run}: {run.note}. Where the "
                    "shape is not that of the example inputs, a size computed in the model's Python code may have become a "
                    "constant. Nothing was written"
                )
            found.append(run)
    return FileCheck.of(found, runtime(), "; ".join(notes))


def runtime() -> str:
    """What files are run in."""
    import onnxruntime  # pyright: ignore[reportMissingTypeStubs]

    return f"onnxruntime {onnxruntime.__version__}"


TOLERANCES = COMPILED | {torch.float64: COMPILED[torch.float32]}
"""``COMPILED``, but files in float64 run as copies in float32."""


class Session(Protocol):
    """``onnxruntime.InferenceSession``."""

    def run(self, output_names: None, input_feed: dict[str, Any]) -> Sequence[object]: ...
    def get_inputs(self) -> Sequence[FileInput]: ...


class FileInput(Protocol):
    """What a file takes: ``type`` is written ``tensor(float)``."""

    name: str
    type: str


def session_of(path: Path, level: str = "ORT_ENABLE_ALL") -> Session:
    """The file in onnxruntime on the CPU, quietly; ``level``: how much of it is optimized."""
    import onnxruntime  # pyright: ignore[reportMissingTypeStubs]

    options = cast(Any, onnxruntime.SessionOptions())  # pyright: ignore[reportUnknownMemberType]
    options.graph_optimization_level = getattr(cast(Any, onnxruntime).GraphOptimizationLevel, level)
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    with _runtime_errors():
        return cast(Session, onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))


def run_file(session: Session, fed: Mapping[str, np.ndarray]) -> list[Tensor]:
    """The outputs, in order."""
    with _runtime_errors():
        return [torch.as_tensor(np.asarray(v)) for v in session.run(None, dict(fed))]


def _run_both(
    model: nn.Module,
    path: Path,
    session: Session,
    copied: bool,
    inputs: Inputs,
    given: Mapping[str, Ints],
    tolerance: float | None,
) -> tuple[FileRun, str]:
    """The run, and what there is to say about it. Where the outputs alone can't tell, each site is judged by itself."""
    expected = [t for t in tree_leaves(_run(model, inputs)) if isinstance(t, Tensor)]
    tensors = dict(_named_tensors(model, inputs))
    fed = _feed(session, tensors, given)
    found = run_file(session, fed)
    if len(found) != len(expected):
        raise ExportError(f"the file has {len(found)} outputs, the model has {len(expected)}")
    if copied:
        found = [f.to(e.dtype) if f.is_floating_point() else f for f, e in zip(found, expected, strict=True)]
    outputs, note = compared(expected, found, tolerance), ""
    if tolerance is None and not all(o.ok for o in outputs):
        verdict = _judged(model, path, inputs, fed, copied)
        if verdict.faults:
            raise ExportError(
                f"the file computes something else than the model: {'; '.join(verdict.faults)}. Nothing was written"
            )

        def again(inputs: Inputs) -> dict[str, Tensor]:
            return numbered(tree_leaves(_run(model, inputs)))

        outputs, note = with_noise(outputs, again, inputs, torch.float32 if copied else None, verdict.roundings)
    return FileRun({name: tuple(t.shape) for name, t in tensors.items()}, outputs, dict(given), in_float32=copied), note


def inputs_of_file(session: Session, model: nn.Module, inputs: Inputs) -> dict[str, np.ndarray]:
    """What ``model``'s file is fed with, for these inputs; sizes that may be left out are."""
    return _feed(session, dict(_named_tensors(model, inputs)), {})


def _judged(model: nn.Module, path: Path, inputs: Inputs, fed: Mapping[str, Any], copied: bool) -> Verdict:
    """The sites of the file, or of its copy in float32, each on the input that it gets there."""
    from ccrewrite.export.regions import Calls, seen_in

    def seen() -> Calls:
        return seen_in(path, rewritten_sites(model), fed, path.parent, in_float32=copied)

    return judged(model, inputs, seen, TOLERANCES)


def compared(expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: float | None) -> tuple[OutputCheck, ...]:
    """One run's outputs, in order. ``tolerance`` is relative to an output's largest magnitude; None: ``COMPILED``."""
    tolerances = TOLERANCES if tolerance is None else dict.fromkeys(TOLERANCES, tolerance)
    return compare_outputs(numbered(expected), numbered(found), tolerances)


def numbered(outputs: Sequence[object]) -> dict[str, Tensor]:
    """The tensors among them, by place."""
    return {f"output {i}": t for i, t in enumerate(t for t in outputs if isinstance(t, Tensor))}


@contextmanager
def _runtime_errors() -> Generator[None]:
    try:
        yield
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise ExportError(f"onnxruntime can't run the file, so it was not verified: {first}") from error


def _run(model: nn.Module, inputs: Inputs) -> object:
    """The output with the structure that export flattens."""
    with preserved(model, inputs.tensors()):
        manual_seed(0)
        return tree_map_only(Tensor, lambda t: t.clone(), inputs.run(model))


def _named_tensors(model: nn.Module, inputs: Inputs) -> list[tuple[str, Tensor]]:
    named: list[tuple[str, Tensor]] = []
    for name, value in arguments(model, inputs).items():
        leaves = [t for t in tree_leaves(value) if isinstance(t, Tensor)]
        named += [(name if len(leaves) == 1 else f"{name}[{i}]", t) for i, t in enumerate(leaves)]
    return named


def _feed(session: Session, tensors: Mapping[str, Tensor], given: Mapping[str, Ints]) -> dict[str, np.ndarray]:
    fed: dict[str, np.ndarray] = {name: torch.tensor(size, dtype=torch.int64).numpy() for name, size in given.items()}
    types = {i.name: i.type for i in session.get_inputs()}
    names = [n for n in types if n not in fed]
    if set(names) <= tensors.keys():
        return fed | {n: _array(tensors[n], types[n]) for n in names}
    if len(names) != len(tensors):
        raise ExportError(f"the file has the inputs {', '.join(names)}, the model was called with {', '.join(tensors)}")
    return fed | {n: _array(t, types[n]) for n, t in zip(names, tensors.values(), strict=True)}


def _array(tensor: Tensor, kind: str) -> np.ndarray:
    return (tensor.float() if kind == "tensor(float)" else tensor).detach().cpu().numpy()
