"""Sites whose sizes hang together: ``ScaleGroup``, and ``grouped``, which finds them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import sympy  # pyright: ignore[reportMissingTypeStubs]

from ccrewrite.ir.geometry import Ints
from ccrewrite.ir.names import paths
from ccrewrite.passes.scales.sizes import Expr, SizeRun
from ccrewrite.passes.scales.ties import Ties
from ccrewrite.passes.scales.trials import Pin


@dataclass(frozen=True)
class ScaleGroup:
    """Sites whose output sizes are chosen together. ``native`` has each site's size as it is; ``pins`` one entry for each
    axis, None where the axis is free; ``relations`` each site's sizes as expressions of those that can be chosen, ``n``."""

    name: str
    sites: tuple[str, ...]
    native: tuple[Ints, ...]
    pins: tuple[Pin | None, ...]
    relations: tuple[str, ...]

    @property
    def free_axes(self) -> tuple[int, ...]:
        return tuple(axis for axis, pin in enumerate(self.pins) if pin is None)

    @property
    def free(self) -> bool:
        """Whether every axis is free."""
        return not any(self.pins)

    @property
    def aliases(self) -> tuple[str, ...]:
        """Its sites: ``groups["layer3.0.conv2"]`` is the group that this one is in."""
        return self.sites

    @property
    def code(self) -> str:
        """ "free", "pinned", or "partly-free" where some axes are."""
        return "free" if self.free else "partly-free" if self.free_axes else "pinned"

    @property
    def message(self) -> str:
        held = "; ".join(f"axis {axis} is pinned by {pin}" for axis, pin in enumerate(self.pins) if pin)
        return f"sites {', '.join(self.sites)}" + (f"; {held}" if held else "")


def grouped(run: SizeRun, ties: Ties, pins: Mapping[Expr, Pin]) -> tuple[ScaleGroup, ...]:
    """The groups in the order of the run."""

    def group(sites: Sequence[str]) -> ScaleGroup:
        expressions = [[ties.size(symbol) for symbol in run.sites[site].symbols] for site in sites]
        return ScaleGroup(
            name=_name(sites, run.sites),
            sites=tuple(sites),
            native=tuple(run.sites[site].native for site in sites),
            pins=tuple(next((pins[r] for r in e.free_symbols if r in pins), None) for e in expressions[0]),
            relations=tuple(_relations(expressions, ties.roots)),
        )

    return tuple(group(sites) for sites in _components(run, ties))


def _components(run: SizeRun, ties: Ties) -> list[list[str]]:
    """Sites that share roots, directly or through others."""
    components: list[tuple[list[str], set[Expr]]] = []
    for name, sizes in run.sites.items():
        roots = {r for s in sizes.symbols for r in ties.size(s).free_symbols}
        meeting = [c for c in components if c[1] & roots]
        components = [c for c in components if not c[1] & roots]
        components.append(([n for c in meeting for n in c[0]] + [name], roots.union(*(c[1] for c in meeting))))
    order = list(run.sites)
    return sorted((sorted(c, key=order.index) for c, _ in components), key=lambda c: order.index(c[0]))


def _name(sites: Sequence[str], every: Collection[str]) -> str:
    """The path of the innermost module that contains all ``sites``, where it contains no others; else the first one's name."""
    common = next((p for p in reversed(paths(sites[0])) if all(p in paths(s) for s in sites)), "")
    return common if common and all(s in sites for s in every if common in paths(s)) else sites[0]


def _relations(expressions: Sequence[Sequence[Expr]], roots: Sequence[Expr]) -> Iterator[str]:
    """Each site's sizes as expressions of the group's roots: ``n0 x n1``, ``2*n0 x 2*n1``."""
    own = dict.fromkeys(r for site in expressions for e in site for r in roots if r in e.free_symbols)
    names = {r: sympy.Symbol(f"n{i}" if len(own) > 1 else "n") for i, r in enumerate(own)}
    for site in expressions:
        yield " x ".join(str(e.xreplace(names)) for e in site)
