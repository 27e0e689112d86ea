"""What writing an ONNX file found out about it: ``OnnxFile``, the outcome of ``export_onnx`` and ``rewrite_onnx``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from tabulate import tabulate

from ccrewrite.export.sizes import SizeInput
from ccrewrite.ir.check import Check, OutputCheck
from ccrewrite.ir.geometry import Ints
from ccrewrite.ir.json_types import JsonObject
from ccrewrite.ir.outcome import Outcome
from ccrewrite.ir.sites import Plan
from ccrewrite.passes.targets import NotTaken

CODES: dict[str, str] = {
    "size-input": "its output size is an input, or follows one",
    "size-ratio": "its output size follows the input's",
    "function": "a call of a function in the file, with what it learned as initializers",
}
"""Code -> what became of a site that ``export_onnx`` did not fold. Those that it did have ``fold``'s codes."""


@dataclass(frozen=True)
class FileRun:
    """One run of the file in onnxruntime, against what it was made of.

    ``shapes``: of the inputs. ``sizes``: what the inputs that choose internal sizes were given. ``outputs``: the comparison.
    ``in_float32``: the runtime doesn't compute in the file's type, so a copy of the file in float32 was run.
    """

    shapes: dict[str, Ints]
    outputs: tuple[OutputCheck, ...]
    sizes: dict[str, Ints] = field(default_factory=dict[str, Ints])
    in_float32: bool = False

    @property
    def ok(self) -> bool:
        return all(o.ok for o in self.outputs)

    @property
    def max_abs_error(self) -> float:
        return max((o.max_abs_error for o in self.outputs), default=0.0)

    @property
    def max_rel_error(self) -> float:
        """Relative to each output's largest magnitude."""
        return max((o.max_rel_error for o in self.outputs), default=0.0)

    @property
    def flips(self) -> int:
        """How many elements of integer and boolean outputs differ."""
        return sum(o.flips for o in self.outputs if o.note)

    @property
    def note(self) -> str:
        """What is wrong; "" where nothing is."""
        worst = next((o for o in self.outputs if not o.ok), None)
        if worst is None:
            return ""
        return f"{worst.path} {worst.note or f'is off by {worst.max_rel_error:.1e} of its largest magnitude'}"

    def __str__(self) -> str:
        return ", ".join(f"{name} {times(size)}" for name, size in (self.shapes | self.sizes).items())


@dataclass(frozen=True)
class FileCheck(Check):
    """What verifying a file found: ``runs`` of it in ``runtime``, and as ``outputs`` the outputs of all of them."""

    runtime: str = ""
    runs: tuple[FileRun, ...] = ()

    @classmethod
    def of(cls, runs: Sequence[FileRun], runtime: str, note: str = "") -> FileCheck:
        outputs = tuple(o for run in runs for o in run.outputs)
        return cls(outputs, ran=True, note=note, runtime=runtime, runs=tuple(runs))

    def to_dict(self) -> JsonObject:
        """As plain data, a summary for each run."""
        runs = [
            {
                **{name: getattr(run, name) for name in ("shapes", "sizes", "ok", "max_abs_error", "max_rel_error")},
                **{name: getattr(run, name) for name in ("flips", "note", "in_float32")},
            }
            for run in self.runs
        ]
        errors = {"max_abs_error": self.max_abs_error, "max_rel_error": self.max_rel_error}
        return {"ok": self.ok, "ran": self.ran, "note": self.note, "runtime": self.runtime, **errors, "runs": runs}

    def __str__(self) -> str:
        copy = ", as a copy in float32" if any(run.in_float32 for run in self.runs) else ""
        rows = [(run, f"{run.max_rel_error:.1e}", run.flips) for run in self.runs]
        table = tabulate(rows, headers=(f"run in {self.runtime}{copy}", "max rel error", "flips"), disable_numparse=True)
        return "\n".join(filter(None, (table, self.note)))


@dataclass(frozen=True)
class SizeTrial:
    """A run of a file with its input ``input`` at ``size``, natively ``native``.

    ``others``, the inputs of that kind: "free", left to themselves; "native", given their native sizes; "alike", those too, but
    given the same size where the native one is the same. The first of these with which the file runs. ``failure``: why it runs
    with none. ``doubts``: numbers in the file that were applied to something of another size than natively, and that its model
    may have computed of the size.
    """

    input: str
    native: Ints
    size: Ints
    others: str
    failure: str = ""
    doubts: tuple[str, ...] = ()

    def __str__(self) -> str:
        at = re.search(r"running (\w+) node. Name:'([^']*)'", self.failure)
        failed = f"not by itself: {' '.join(at.groups())} fails" if at else self.failure
        return failed or (f"runs; unsure of {', '.join(self.doubts)}" if self.doubts else "follows")


@dataclass(frozen=True)
class Latency:
    """Seconds of one run in onnxruntime on the CPU, on the example inputs at native sizes: of the original, and of the file
    that was written (medians). ``ratio``: of the file to the original, the median over rounds in which both ran, with its
    interval."""

    original_s: float
    file_s: float
    ratio: float
    ratio_low: float
    ratio_high: float

    def __str__(self) -> str:
        times = f"{self.file_s * 1e3:.3g} ms, the original {self.original_s * 1e3:.3g} ms"
        return f"latency at native sizes: {times}, ratio {self.ratio:.2f} ({self.ratio_low:.2f} to {self.ratio_high:.2f})"


@dataclass(frozen=True)
class OnnxSite:
    """What became of one convolution in a file. ``window``: of its kernel, where it has a geometry that can be learned.
    ``initializers``: the names of what it learned, where the file has that apart."""

    name: str
    layer: str
    code: str
    message: str
    window: Ints = ()
    initializers: tuple[str, ...] = ()


@dataclass(frozen=True)
class OnnxFile(Outcome[OnnxSite]):
    """A verified ONNX file. ``size`` is its bytes, external data included; ``size_inputs`` are those of its inputs that choose
    internal sizes."""

    path: str
    opset: int
    size: int
    sites: tuple[OnnxSite, ...]
    check: FileCheck  # pyright: ignore[reportIncompatibleVariableOverride]
    size_inputs: tuple[SizeInput, ...]
    latency: Latency | None
    """None: not asked for, or the runtime doesn't compute in the file's type."""

    def rows(self) -> list[dict[str, str]]:
        return [
            {"site": s.name, "layer": s.layer, "window": times(s.window), "becomes": s.code, "message": s.message}
            for s in self.sites
        ]

    def notes(self) -> list[str]:
        asked = [
            (x.name, " ".join(f"{n}[{a}]" for n, a in x.axes), times(x.native), " ".join(x.sites)) for x in self.size_inputs
        ]
        inputs = tabulate(asked, headers=("size input (0: native)", "chooses", "native", "sites")) if asked else ""
        apart = [name for site in self.sites for name in site.initializers]
        learned = f"learned: {', '.join(apart)}" if apart else ""
        latency = "" if self.latency is None else str(self.latency)
        return [inputs, learned, str(self.check), latency, f"{self.path}: opset {self.opset}, {self.size} bytes"]

    def to_dict(self) -> JsonObject:
        return {
            "path": self.path,
            "opset": self.opset,
            "size": self.size,
            "sites": [asdict(s) for s in self.sites],
            "size_inputs": [asdict(x) for x in self.size_inputs],
            "check": self.check.to_dict(),
            "latency": None if self.latency is None else asdict(self.latency),
        }


@dataclass(frozen=True)
class ExportedFile(OnnxFile):
    """What ``export_onnx`` wrote. ``sites`` are the rewritten convolutions (none of a model that was not rewritten).
    ``ops_before`` and ``ops_after``: how many nodes of each operator, before and after constants were folded."""

    ops_before: dict[str, int]
    ops_after: dict[str, int]
    not_taken: tuple[NotTaken, ...] = ()
    """What the target that was asked for doesn't take."""

    def notes(self) -> list[str]:
        *others, path = super().notes()
        operators = f"operators: {_shown(self.ops_after)} (before folding constants: {_shown(self.ops_before)})"
        return [*others, operators, "\n".join(f"not taken: {n}" for n in self.not_taken), path]

    def to_dict(self) -> JsonObject:
        refused = [asdict(n) for n in self.not_taken]
        return {**super().to_dict(), "ops_before": self.ops_before, "ops_after": self.ops_after, "not_taken": refused}


@dataclass(frozen=True)
class RewrittenFile(OnnxFile):
    """What ``rewrite_onnx`` wrote. ``sites`` are all convolutions of the file, as the ``plan`` that was carried out has them;
    ``trials`` its runs at other sizes."""

    plan: Plan
    trials: tuple[SizeTrial, ...]

    def rows(self) -> list[dict[str, str]]:
        return self.plan.rows()

    def shown(self) -> list[dict[str, str]]:
        return self.plan.shown()

    def summary(self) -> str:
        return self.plan.summary()

    def notes(self) -> list[str]:
        rows = [(t.input, times(t.native), times(t.size), t.others, str(t)) for t in self.trials]
        tried = tabulate(rows, headers=("size input", "native", "tried", "others", "the rest of the file")) if rows else ""
        return [tried, *super().notes()]

    def to_dict(self) -> JsonObject:
        return {**super().to_dict(), "plan": self.plan.to_dict(), "trials": [asdict(t) for t in self.trials]}


def times(sizes: Ints) -> str:
    return "x".join(map(str, sizes))


def _shown(ops: dict[str, int]) -> str:
    return ", ".join(f"{n} {op}" for op, n in sorted(ops.items(), key=lambda item: (-item[1], item[0])))
