"""What folding answers, as data: ``FoldedSite`` for each site, and ``Folded``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from tabulate import tabulate
from torch import nn

from ccrewrite.ir.check import Check, OutputCheck
from ccrewrite.passes.fold.norms import FoldedNorm

FORMS: dict[str, str] = {
    "original": "its geometry is at its start: the original layer or call, with its own weight",
    "convolution": "a torch layer with the effective kernel, dilated where its cells are",
    "padded": "the same, with pads that differ from side to side",
    "shifted": "a matrix product over channels and shifted sums: taps that lie far apart, kept apart",
    "gathered": "the same for taps that lie elsewhere in each output channel: gathered sums",
    "sparse": "a depthwise convolution that, compiled, visits only the cells of its kernel that aren't zero",
    "geometry": "a constant geometry applied to the weight at each call",
    "resized": "another output size than the convolution's own: constant matrices around a convolution, for one input size",
    "size-asked": "it asks for another output size, and is called at several sizes or in its own way: still learnable",
    "not-selected": "left out by include or exclude: still learnable",
    "verification-failed": "the outputs changed when it was folded: still learnable",
}
"""Code -> what became of a site. docs/deploy.md has a section for each."""


@dataclass(frozen=True)
class FoldedSite:
    """What became of one site. ``code`` is a key of ``FORMS``.

    ``moved`` is the largest distance, in samples, by which ``tol`` let a position be snapped, and ``kernel_error`` what that
    did to the effective kernel, ``|K' - K| / |K|`` (2-norms): 0 where nothing was snapped.
    """

    name: str
    layer: str
    window: tuple[int, ...]
    code: str
    message: str
    moved: float = 0.0
    kernel_error: float = 0.0

    @property
    def folded(self) -> bool:
        """Whether its geometry is learnable no more."""
        return self.code not in ("size-asked", "not-selected", "verification-failed")


@dataclass(frozen=True)
class Folded:
    """What ``fold`` returns.

    ``check`` compares the folded model with the rewritten one (after snapping, where ``tol`` is not 0). ``lost`` says what
    snapping did to the outputs; empty where ``tol`` is 0.
    """

    model: nn.Module
    sites: tuple[FoldedSite, ...]
    check: Check
    lost: tuple[OutputCheck, ...] = ()
    norms: tuple[FoldedNorm, ...] = ()
    """What became of the batch norms, where ``batch_norm`` was asked for."""

    def __iter__(self) -> Iterator[FoldedSite]:
        return iter(self.sites)

    def __getitem__(self, name: str) -> FoldedSite:
        """The site of this name."""
        for site in self.sites:
            if site.name == name:
                return site
        raise KeyError(f"no site is called {name!r}; there are {', '.join(s.name for s in self.sites)}")

    def summary(self) -> str:
        """One line: how many sites, by code."""
        codes = Counter(s.code for s in self.sites)
        return f"{len(self.sites)} sites: " + ", ".join(f"{n} {code}" for code, n in codes.most_common())

    def to_json(self) -> str:
        check = {"ok": self.check.ok, **asdict(self.check)}
        return json.dumps(
            {
                "sites": [asdict(s) for s in self.sites],
                "norms": [asdict(n) for n in self.norms],
                "check": check,
                "lost": [asdict(o) for o in self.lost],
            },
            indent=2,
        )

    def __str__(self) -> str:
        rows = [
            {
                "site": s.name,
                "layer": s.layer,
                "window": "x".join(map(str, s.window)),
                "becomes": s.code,
                "": s.message,
                "snapped by": f"{s.moved:.2g}" if s.moved else "",
                "kernel error": f"{s.kernel_error:.1e}" if s.moved else "",
            }
            for s in self.sites
        ]
        lost = max((o.max_rel_error for o in self.lost), default=0.0)
        snapped = f"snapping positions changed the outputs by {lost:.1e} of their largest magnitude" if self.lost else ""
        outputs = f"outputs {'agree' if self.check.ok else 'DIFFER'}: max rel error {self.check.max_rel_error:.1e}"
        norms = tabulate([(n.name, n.code, n.conv) for n in self.norms], headers=("batch norm", "", "convolution"))
        table = tabulate(rows, headers="keys", disable_numparse=True)
        parts = (table, norms if self.norms else "", self.summary(), snapped, outputs, self.check.note)
        return "\n".join(filter(None, parts))
