"""What folding answers, as data: ``FoldedSite`` for each site, ``FoldedNorm`` for each batch norm, and ``Folded``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import NamedTuple

from tabulate import tabulate
from torch import nn

from ccrewrite.ir.check import Check, OutputCheck
from ccrewrite.ir.geometry import Ints
from ccrewrite.ir.json_types import JsonObject
from ccrewrite.ir.outcome import Outcome
from ccrewrite.passes.targets import NotTaken

CODES: dict[str, str] = {
    "original": "its geometry is at its start: the original layer or call, with its own weight",
    "convolution": "a torch layer with the effective kernel, dilated where its cells are",
    "padded": "the same, with pads that differ from side to side",
    "shifted": "a matrix product over channels and shifted sums: taps that lie far apart, kept apart",
    "gathered": "the same for taps that lie elsewhere in each output channel: gathered sums",
    "sparse": "a depthwise convolution that leaves out cells of its kernel that are zero",
    "filtered": "a filter for each tap and one product over channels: a kernel that is wider than its taps are many",
    "geometry": "a constant geometry applied to the weight at each call",
    "resized": "another output size than the convolution's own: constant matrices around a convolution, for one input size",
    "size-asked": "it asks for another output size, and is called at several sizes or in its own way: still learnable",
    "not-selected": "left out by include or exclude: still learnable",
    "verification-failed": "the outputs changed when it was folded: still learnable",
}
"""Code -> what became of a site. docs/deploy.md has a section for each. Where a family's ``Sampling.alternatives`` offers
another layer, the alternative's name is the code."""
STILL_LEARNABLE = ("size-asked", "not-selected", "verification-failed")

NORM_CODES: dict[str, str] = {
    "folded": "its scale and shift are in the convolution before it; an identity is left",
    "no-convolution": "what comes before it is no convolution layer with a weight of its own",
    "several-calls": "it, or the convolution before it, is called more than once",
    "several-users": "the convolution's output is used elsewhere too",
    "shared-weight": "the convolution's weight is another module's as well",
    "no-statistics": "it normalises by the batch at hand",
    "hooked": "a forward hook sees what is between them",
    "not-exported": "torch.export refuses the model, so nothing says what comes before it",
    "never-called": "the example inputs don't reach it",
    "control-flow": "reached only in a branch or loop of torch.cond or its like, if at all",
    "verification-failed": "the outputs changed when norms were folded, so none was",
}
"""Code -> what became of a batch norm."""


class Answer(NamedTuple):
    """What became of a site: a code, and the values that belong to it."""

    code: str
    message: str


@dataclass(frozen=True)
class FoldedSite:
    """What became of one site. ``code`` is a key of ``CODES``.

    ``moved`` is the largest distance, in samples, by which ``tol`` let a position be snapped, and ``kernel_error`` what that
    did to the effective kernel, ``|K' - K| / |K|`` (2-norms): 0 where nothing was snapped. ``cut_error`` is the same of what
    ``cut`` left out. ``milliseconds`` are those of the example call in each form, where several were measured.
    """

    name: str
    layer: str
    window: Ints
    code: str
    message: str
    moved: float = 0.0
    kernel_error: float = 0.0
    cut_error: float = 0.0
    milliseconds: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def folded(self) -> bool:
        """Whether its geometry is learnable no more."""
        return self.code not in STILL_LEARNABLE


@dataclass(frozen=True)
class FoldedNorm:
    """What became of one batch norm. ``code`` is a key of ``NORM_CODES``; ``conv`` the path of the convolution before it."""

    name: str
    code: str
    conv: str = ""


@dataclass(frozen=True)
class Folded(Outcome[FoldedSite]):
    """What ``fold`` returns.

    ``check`` compares the folded model with the rewritten one (after snapping and cutting, where ``tol`` or ``cut`` is not
    0). ``lost`` says what these did to the outputs; empty where both are 0.
    """

    model: nn.Module
    sites: tuple[FoldedSite, ...]
    check: Check
    lost: tuple[OutputCheck, ...] = ()
    not_taken: tuple[NotTaken, ...] = ()
    """What the target that was asked for doesn't take."""
    norms: tuple[FoldedNorm, ...] = ()
    """What became of the batch norms, where ``batch_norm`` was asked for."""

    def rows(self) -> list[dict[str, str]]:
        return [
            {
                "site": s.name,
                "layer": s.layer,
                "window": "x".join(map(str, s.window)),
                "becomes": s.code,
                "message": s.message,
                "snapped by": f"{s.moved:.2g}" if s.moved else "",
                "kernel error": f"{s.kernel_error:.1e}" if s.moved else "",
                "cut error": f"{s.cut_error:.1e}" if s.cut_error else "",
                "milliseconds": ", ".join(f"{form} {ms:.3g}" for form, ms in s.milliseconds.items()),
            }
            for s in self.sites
        ]

    def to_dict(self) -> JsonObject:
        """As plain data: ``{"sites", "norms", "check", "lost", "not_taken"}``."""
        return {
            "sites": [asdict(s) for s in self.sites],
            "norms": [asdict(n) for n in self.norms],
            "check": self.check.to_dict(),
            "lost": [asdict(o) for o in self.lost],
            "not_taken": [asdict(n) for n in self.not_taken],
        }

    def notes(self) -> list[str]:
        lost = max((o.max_rel_error for o in self.lost), default=0.0)
        return [
            tabulate([(n.name, n.code, n.conv) for n in self.norms], headers=("batch norm", "", "convolution"))
            if self.norms
            else "",
            f"snapping and cutting changed the outputs by {lost:.1e} of their largest magnitude" if self.lost else "",
            f"outputs {'agree' if self.check.ok else 'DIFFER'}: max rel error {self.check.max_rel_error:.1e}",
            self.check.note,
            "\n".join(f"not taken: {n}" for n in self.not_taken),
        ]
