"""The sites that are worth most under a limit: a small integer programme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from ccrewrite.errors import InputError
from ccrewrite.ir.sites import Site


class Chosen(tuple[str, ...]):
    """Names of sites, for ``rewrite(include=...)``: it hits those sites and no others. ``left_out`` says by name why not the
    others; the plan of the rewrite has it as their messages."""

    left_out: Mapping[str, str]

    @classmethod
    def of(cls, names: Sequence[str], left_out: Mapping[str, str]) -> Chosen:
        chosen = cls(names)
        chosen.left_out = dict(left_out)
        return chosen

    def __call__(self, site: Site) -> bool:
        return site.name in self


class Limit(NamedTuple):
    """``spent`` by site must not exceed ``most`` in the sum; ``said``: how messages write the limit."""

    spent: Mapping[str, float]
    most: float
    said: str


def most_worth(gains: Mapping[str, float], limits: Sequence[Limit]) -> list[str]:
    """The names whose gains add up to most within all ``limits``. Raises ``InputError`` where scipy is missing.

    >>> most_worth({"a": 3.0, "b": 2.0, "c": 2.0}, [Limit({"a": 2.0, "b": 1.0, "c": 1.0}, 2.0, "time")])
    ['b', 'c']
    """
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]
    except ImportError as error:
        raise InputError("choose needs scipy; install it with: pip install 'ccrewrite[forecast]'") from error
    names = [name for name, gain in gains.items() if gain > 0]
    if not names:
        return []
    rows = [[limit.spent[name] for name in names] for limit in limits]
    # Each limit in its own unit, and with room for rounding.
    scales = [max(*map(abs, row), abs(limit.most), 1e-300) for row, limit in zip(rows, limits, strict=True)]
    matrix = np.asarray([[value / scale for value in row] for row, scale in zip(rows, scales, strict=True)])
    most = np.asarray([limit.most / scale + 1e-9 for limit, scale in zip(limits, scales, strict=True)])
    worth = np.asarray([gains[name] for name in names])
    within: Any = LinearConstraint(matrix, ub=cast(Any, most))
    found: Any = milp(-worth / worth.max(), constraints=within, integrality=np.ones(len(names)), bounds=Bounds(0, 1))
    return [name for name, taken in zip(names, found.x, strict=True) if taken > 0.5] if found.x is not None else []
