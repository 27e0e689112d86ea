"""What an export found out about the file that it wrote: ``ExportReport``."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field

from tabulate import tabulate

from ccrewrite.export.sizes import SizeInput
from ccrewrite.passes.fold.sites import FoldedSite


@dataclass(frozen=True)
class RunCheck:
    """One run of the file in the runtime against the model in eager mode. Errors over all outputs; the relative one is relative
    to each output's largest magnitude. ``flips`` counts differing integers."""

    shapes: dict[str, tuple[int, ...]]
    max_abs_error: float
    max_rel_error: float
    flips: int
    ok: bool
    note: str = ""
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    """What the inputs that choose internal sizes were given."""
    in_float32: bool = False
    """The runtime doesn't compute in the file's type, so a copy of the file in float32 was run."""


@dataclass(frozen=True)
class SizeTrial:
    """A run of a file with its input ``input`` at ``size``, natively ``native``.

    ``others``, the inputs of that kind: "free", left to themselves; "native", given their native sizes; "alike", those too, but
    given the same size where the native one is the same. The first of these with which the file runs. ``failure``: why it runs
    with none. ``doubts``: numbers in the file that were applied to something of another size than natively, and that its model
    may have computed of the size.
    """

    input: str
    native: tuple[int, ...]
    size: tuple[int, ...]
    others: str
    failure: str = ""
    doubts: tuple[str, ...] = ()

    def __str__(self) -> str:
        at = re.search(r"running (\w+) node. Name:'([^']*)'", self.failure)
        failed = f"not by itself: {' '.join(at.groups())} fails" if at else self.failure
        return failed or (f"runs; unsure of {', '.join(self.doubts)}" if self.doubts else "follows")


@dataclass(frozen=True)
class ExportReport:
    """A verified file. ``ops_before`` and ``ops_after``: how many nodes of each operator, before and after constants were
    folded. ``sites``: what became of each rewritten convolution (empty for a model that was not rewritten)."""

    path: str
    opset: int
    size: int
    """Bytes, external data included."""
    runtime: str
    checks: tuple[RunCheck, ...]
    ops_before: dict[str, int]
    ops_after: dict[str, int]
    sites: tuple[FoldedSite, ...] = ()
    size_inputs: tuple[SizeInput, ...] = ()

    @property
    def max_rel_error(self) -> float:
        return max(c.max_rel_error for c in self.checks)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        runs = [
            (" ".join(f"{n}={times(size)}" for n, size in (c.shapes | c.sizes).items()), f"{c.max_rel_error:.1e}", c.flips)
            for c in self.checks
        ]
        copy = ", as a copy in float32" if any(c.in_float32 for c in self.checks) else ""
        sites = [(s.name, s.layer, times(s.window), s.code, s.message) for s in self.sites]
        asked = [
            (x.name, " ".join(f"{n}[{a}]" for n, a in x.axes), times(x.native), " ".join(x.sites)) for x in self.size_inputs
        ]
        return "\n".join(
            filter(
                None,
                (
                    tabulate(sites, headers=("site", "layer", "window", "becomes", "")) if sites else "",
                    tabulate(asked, headers=("size input", "chooses", "native", "sites")) if asked else "",
                    tabulate(runs, headers=(f"run in {self.runtime}{copy}", "max rel error", "flips"), disable_numparse=True),
                    f"operators: {_shown(self.ops_after)} (before folding constants: {_shown(self.ops_before)})",
                    f"{self.path}: opset {self.opset}, {self.size} bytes",
                ),
            )
        )


def times(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def _shown(ops: dict[str, int]) -> str:
    return ", ".join(f"{n} {op}" for op, n in sorted(ops.items(), key=lambda item: (-item[1], item[0])))
