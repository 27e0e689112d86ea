"""Equalities between sizes -> what is left to choose: ``Ties``, the sizes as expressions of a few free ones, the roots."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import sympy  # pyright: ignore[reportMissingTypeStubs]

from ccrewrite.passes.scales.sizes import Expr, Relation, SizeRun
from ccrewrite.passes.scales.whereabouts import Where


@dataclass
class Ties:
    """``tied``: size symbol -> its expression over the roots. ``held``: roots that some relation fixes -> where. For each
    symbol, in the order of the run, its axis, its size as it is, and the expression of its size as the original makes it."""

    axis: dict[Expr, int]
    native: Mapping[Expr, int]
    natural: dict[Expr, Expr]
    follow: set[Expr]
    """Symbols of sites with calls of different sizes: whatever comes, these follow."""
    tied: dict[Expr, Expr] = field(default_factory=dict[Expr, Expr])
    held: dict[Expr, Where] = field(default_factory=dict[Expr, Where])

    @classmethod
    def of(cls, run: SizeRun) -> Ties:
        """What the run's operations relied on. What its Python code compared may have been a mere question: see ``open``."""
        sites = run.sites.values()
        axes = {s: axis for sizes in sites for axis, s in enumerate(sizes.symbols)}
        natural = {s: e for sizes in sites for s, e in zip(sizes.symbols, sizes.natural, strict=True)}
        follow = {s for sizes in sites if not sizes.one_size for s in sizes.symbols}
        ties = cls(axes, run.values, natural, follow)
        for relation in run.relations:
            if relation.where.node:
                ties.add(relation)
        return ties

    def size(self, expression: Expr) -> Expr:
        """``expression`` over the roots."""
        return expression.xreplace(self.tied)

    @property
    def roots(self) -> list[Expr]:
        return [s for s in self.axis if s not in self.tied]

    def resolve(self, chosen: Mapping[Expr, int], kept: Collection[Expr]) -> dict[Expr, int]:
        """All sizes, with the roots ``chosen`` at these values, those ``kept`` native, and the others as they come: as the
        original's arithmetic makes the first size of each group from those before it."""
        known: dict[Expr, int] = dict(chosen)
        for root in self.roots:
            if root not in known and root in kept and root not in self.follow:
                known[root] = self.native[root]
        for root in self.roots:
            if root not in known:
                expression = self.size(self.natural[root])
                complete = expression.free_symbols <= known.keys()  # not where its own group comes before it
                known[root] = max(1, number(expression, known)) if complete else self.native[root]
        return {s: max(1, number(self.size(s), known)) for s in self.axis}

    def open(self, relation: Relation) -> list[Expr]:
        """The roots that the relation says something about and that nothing holds so far."""
        difference = _expanded(self.size(_at_least_one(relation.left)) - self.size(_at_least_one(relation.right)))
        return [r for r in self._sorted(difference.free_symbols) if r not in self.held]

    def add(self, relation: Relation) -> None:
        left, right = (self.size(_at_least_one(side)) for side in (relation.left, relation.right))
        difference = _expanded(left - right)
        free = self._sorted(difference.free_symbols)
        if len(free) == 1:
            self._hold(free, relation.where)
        elif free:
            difference = difference.primitive()[1]
            for symbol in reversed(free):  # the later site follows the earlier one
                factor = difference.coeff(symbol)
                rest = difference - factor * symbol
                if factor in (1, -1) and symbol not in rest.free_symbols:
                    return self._tie(symbol, -factor * rest, relation.where)
            self._tie_alike(self._sorted(left.free_symbols), self._sorted(right.free_symbols), relation.where)
        return None

    def _tie_alike(self, left: list[Expr], right: list[Expr], where: Where) -> None:
        """An equality that can't be solved for one size, as ``h w == h' w'`` or ``a // 2 == b // 2``: where the sizes of
        both sides are the same ones, axis by axis, each equals its counterpart; else all of them stay as they are."""
        ours, theirs = [s for s in left if s not in right], [s for s in right if s not in left]
        if [self._kind(s) for s in ours] == [self._kind(s) for s in theirs]:
            for one, other in zip(ours, theirs, strict=True):
                early, late = self._sorted((one, other))
                self._tie(late, early, where)
        else:
            self._hold([*left, *theirs], where)

    def _kind(self, symbol: Expr) -> tuple[int, int]:
        return self.axis[symbol], self.native[symbol]

    def _tie(self, symbol: Expr, expression: Expr, where: Where) -> None:
        held = self.held.pop(symbol, None)
        self.tied = {s: e.xreplace({symbol: expression}) for s, e in self.tied.items()} | {symbol: expression}
        if held:
            self._hold(self._sorted(expression.free_symbols), held)

    def _hold(self, symbols: Iterable[Expr], where: Where) -> None:
        for symbol in symbols:
            self.held.setdefault(symbol, where)

    def _sorted(self, symbols: Iterable[Expr]) -> list[Expr]:
        order = list(self.axis)
        return sorted(symbols, key=order.index)


def number(expression: Expr, known: Mapping[Expr, int]) -> int:
    return int(expression.xreplace(known))


def _expanded(expression: Expr) -> Expr:
    return sympy.expand(expression)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _at_least_one(expression: Expr) -> Expr:
    """``Max(1, n)`` is ``n``: no size is below 1."""

    def takes(e: Expr) -> bool:
        return e.func.__name__ == "Max" and len(e.args) == 2 and sympy.Integer(1) in e.args

    def other(e: Expr) -> Expr:
        return next(a for a in e.args if a != 1)

    return expression.replace(takes, other)
