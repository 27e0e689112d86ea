"""Output sizes while torch traces a model: ``TracedSizes`` carries out a ``SizePlan``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._sympy.interp import sympy_interp  # pyright: ignore[reportUnknownVariableType]
from torch.utils._sympy.reference import PythonReferenceAnalysis

from ccrewrite.export.sizes import Asked, Fixed, Native, Natural, SizePlan, Tied
from ccrewrite.families.resizable import scaled_size
from ccrewrite.ir.geometry import Ints
from ccrewrite.passes.scales.sizes import Expr

SIZES = "ccrewrite_sizes"
"""The argument of a model that is exported that has the sizes which the file's inputs say."""


class TracedSizes:
    """The sizes in one run of a model that is traced. All of them may be symbolic.

    Where the plan needs native sizes, the model runs twice: the first time, ``looking``, its sites give empty outputs of the
    sizes that they have by themselves.
    """

    def __init__(self, plan: SizePlan) -> None:
        self.plan = plan
        self.looking = False
        self.begin({})

    def begin(self, given: Mapping[str, Any]) -> None:
        """A new run begins. ``given``: the sizes that the file's inputs say, by the names of ``SizePlan.examples``."""
        self.given = dict(zip(self.plan.asked, (given[name] for name in sorted(given)), strict=False))
        self.native: dict[Expr, int] = {}
        self.natural: dict[Expr, int] = {}
        self.values: dict[Expr, int] = {}

    def look(self, site: str, natural: Sequence[int]) -> None:
        """Note the native size of ``site``'s output."""
        for symbol, size in zip(self.plan.symbols[site], natural, strict=True):
            self.native.setdefault(symbol, size)

    def size(self, site: str, natural: Sequence[int]) -> Ints:
        """The size of ``site``'s output, where its input and its convolution make ``natural`` of it."""
        pairs = zip(self.plan.symbols[site], natural, strict=True)
        found = tuple(self._value(symbol, size) for symbol, size in pairs)
        return found if site in self.plan.sized else tuple(natural)

    def _value(self, symbol: Expr, natural: int) -> int:
        source = self.plan.sources[symbol]
        if isinstance(source, Fixed):
            return source.size
        if isinstance(source, Natural) and source.ratio is not None:
            return scaled_size(natural, source.ratio)
        if symbol not in self.values:  # one size for all calls, which others may be tied to
            self.values[symbol] = self._found(symbol, source, natural)
        return self.values[symbol]

    def _found(self, symbol: Expr, source: Asked | Tied | Native | Natural, natural: int) -> int:
        match source:
            case Asked():
                self.natural[symbol] = natural
                return self.given[symbol]
            case Tied(expression):
                return cast(int, sympy_interp(PythonReferenceAnalysis, self.values, expression))
            case Native(ratio):
                native = self.native.get(symbol, natural)
                return native if ratio is None else scaled_size(native, ratio)
            case Natural():
                return natural

    def by_themselves(self) -> tuple[Tensor, ...]:
        """What the sizes that are asked for would be otherwise, in their order."""
        return tuple(torch.scalar_tensor(self.natural[symbol], dtype=torch.int64) for symbol in self.plan.asked)


def take_sizes_(model: nn.Module, sizes: TracedSizes) -> None:
    """Let ``model``'s forward begin a run of ``sizes``. In place; ``model`` is for export alone then.

    Where the plan has inputs, it takes what they say as one more argument, a dictionary of ints, and returns, beside its
    outputs, the sizes that the same sites would have by themselves.
    """
    base = type(model)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given: Mapping[str, int] = kwargs.pop(SIZES, {})
        sizes.begin(given)
        if sizes.plan.native_needed:
            sizes.looking = True
            try:
                base.forward(self, *args, **kwargs)
            finally:
                sizes.looking = False
        out = base.forward(self, *args, **kwargs)
        return (out, sizes.by_themselves()) if given else out

    signature = inspect.signature(base.forward)
    if sizes.plan.inputs:
        named = inspect.Parameter(SIZES, inspect.Parameter.KEYWORD_ONLY)
        known = list(signature.parameters.values())
        at = len(known) - (bool(known) and known[-1].kind is inspect.Parameter.VAR_KEYWORD)
        signature = signature.replace(parameters=[*known[:at], named, *known[at:]])
    cast(Any, forward).__signature__ = signature
    model.__class__ = cast(Any, type(base.__name__, (base,), {"forward": forward, "__module__": base.__module__}))
