"""Runs at other sizes that tell real pins from conjectured ones, and free sizes from seemingly free ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ccrewrite.families.resizable import scaled_size
from ccrewrite.ir.capture import Inputs
from ccrewrite.passes.scales.sizes import Expr, SizeRun, try_sizes
from ccrewrite.passes.scales.ties import Ties
from ccrewrite.passes.scales.whereabouts import Where

RATIOS = (0.7, 0.85, 1.2)
"""Of the native sizes, tried before a group is called free."""


@dataclass(frozen=True)
class Pin:
    """Why an axis keeps its size: what relies on it, the size that was tried, and what happened."""

    node: str
    module: str
    tried: int
    failure: str

    @property
    def where(self) -> Where:
        return Where(self.node, self.module)

    def __str__(self) -> str:
        return f"{self.where} (at size {self.tried}: {self.failure})"


class Trials:
    """``ties`` is what a run relied on, as far as it showed; ``pins`` completes it by what other runs show."""

    def __init__(self, model: nn.Module, inputs: Inputs, run: SizeRun, ties: Ties) -> None:
        self.model, self.inputs, self.run, self.ties = model, inputs, run, ties

    def pins(self) -> dict[Expr, Pin]:
        """The roots that keep their size, and why."""
        self._settle_questions()
        pins = self.held() | self._called_for_several_sizes()
        self._try_conjectures(pins)
        if not self.all_run(pins):
            self._pin_what_fails(pins)
        return pins

    def _settle_questions(self) -> None:
        """What Python code compared may have been a mere question, with an answer for either case: it ties only where other
        sizes fail."""
        for relation in self.run.relations:
            if not relation.where.node and any(self.fails_alone(r, self.held()) for r in self.ties.open(relation)):
                self.ties.add(relation)

    def _called_for_several_sizes(self) -> dict[Expr, Pin]:
        pins: dict[Expr, Pin] = {}
        for name, sizes in self.run.sites.items():
            if not sizes.one_size:
                shown = ", ".join("x".join(map(str, c)) for c in dict.fromkeys(sizes.calls))
                message = f"it is called for different sizes, {shown}, and one can't serve them all"
                for symbol, size in zip(sizes.symbols, sizes.native, strict=True):
                    for root in self.ties.size(symbol).free_symbols:
                        pins[root] = Pin("convolution", name, size, message)
        return pins

    def _try_conjectures(self, pins: dict[Expr, Pin]) -> None:
        """Take away the pins without a failure so far that none shows for, and say it in the others."""
        for root, pin in list(pins.items()):
            if pin.failure:
                continue
            failure = self.fails_alone(root, pins)
            if failure is None:
                del pins[root]
            else:
                tried, where, message = failure
                elsewhere = "" if where == pin.where else f" ({where})"
                pins[root] = Pin(pin.node, pin.module, tried, message + elsewhere)

    def _pin_what_fails(self, pins: dict[Expr, Pin]) -> None:
        """Add the pins that only trials show: of single roots, then of the axes of one site together."""
        for root in reversed(self.ties.roots):  # once a later site keeps its size, an earlier one may be free
            if root not in pins and (failure := self.fails_alone(root, pins)):
                tried, where, message = failure
                pins[root] = Pin(where.node, where.module, tried, message)
        for sizes in self.smallest(pins):  # where each axis may be small, but not all at once
            if failure := self.fails(sizes, pins):
                where, message = failure
                pins |= {r: Pin(where.node, where.module, size, message) for r, size in sizes.items()}

    def held(self) -> dict[Expr, Pin]:
        return {r: Pin(w.node, w.module, 0, "") for r, w in self.ties.held.items()}

    def fails_alone(self, root: Expr, pins: Mapping[Expr, Pin]) -> tuple[int, Where, str] | None:
        """The first size of one root that does not run, the others as they come; None where all run."""
        native = self.run.values[root]
        for ratio in RATIOS:
            size = scaled_size(native, ratio)
            size = size if size != native else native + (1 if ratio > 1 or native == 1 else -1)
            failure = self.fails({root: size}, pins)
            if failure:
                return size, *failure
        return None

    def all_run(self, pins: Mapping[Expr, Pin]) -> bool:
        """Whether all free roots together run, each at every ratio next to others at other ones; and the smallest ratio of
        all axes of each site alone."""
        roots = [r for r in self.ties.roots if r not in pins]
        for shift in range(len(RATIOS)):
            sizes = {r: scaled_size(self.run.values[r], RATIOS[(i + shift) % len(RATIOS)]) for i, r in enumerate(roots)}
            if self.fails(sizes, pins):
                return False
        return not any(self.fails(sizes, pins) for sizes in self.smallest(pins))

    def smallest(self, pins: Mapping[Expr, Pin]) -> list[dict[Expr, int]]:
        """The free roots of each site, all of them at the smallest ratio."""
        alone = {
            tuple(r for s in x.symbols for r in self.ties.size(s).free_symbols if r not in pins): None
            for x in self.run.sites.values()
        }
        return [{r: scaled_size(self.run.values[r], min(RATIOS)) for r in roots} for roots in alone if roots]

    def fails(self, chosen: Mapping[Expr, int], pins: Mapping[Expr, Pin]) -> tuple[Where, str] | None:
        known = self.ties.resolve(chosen, pins)
        sizes = {n: tuple(known[s] for s in x.symbols) for n, x in self.run.sites.items() if x.one_size}
        return try_sizes(self.model, self.inputs, sizes, self.run.shapes)
