"""Which output sizes of a rewritten model stay open in its ONNX file, and what they make of the others: ``Sizes``."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from ccrewrite.errors import InputError
from ccrewrite.families.cc.sampling import CCSampling
from ccrewrite.families.resizable import scaled_size
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.geometry import Ints
from ccrewrite.ir.sites import ROOT
from ccrewrite.passes.scales.resize import Resizing, resize_
from ccrewrite.passes.scales.scale_groups import ScaleGroups, Settings, require_sites, scale_groups
from ccrewrite.passes.scales.sizes import Expr, samplings_of
from ccrewrite.passes.scales.trials import RATIOS, scaled
from ccrewrite.passes.substitute import copied

if TYPE_CHECKING:
    from ccrewrite.export.functions import Operator

Mode = Literal["fixed", "ratio", "input"]
SIZES = "ccrewrite_sizes"
"""The argument of a model that is exported that has the sizes."""


@dataclass(frozen=True)
class SizeInput:
    """An input of an ONNX file that chooses internal sizes: int64, one number for each of ``axes``.

    ``axes`` are (site, spatial axis): the size of that axis of that site's output. 0 there, and the input left out, leave the
    size to the original's arithmetic. ``native``: what it is then, for the example inputs. ``sites``: the scale group.
    """

    name: str
    sites: tuple[str, ...]
    axes: tuple[tuple[str, int], ...]
    native: Ints


class Sizes:
    """Output sizes of the CC sites of a model while it is traced.

    ``sites``: those that it has to know of. ``sized``: those of them whose size may be another than their input and their
    convolution make it. ``inputs``: what is asked of who runs the file.
    """

    def __init__(self, model: nn.Module, groups: ScaleGroups | None, ratios: Mapping[Expr, float] | None) -> None:
        self.groups, self.ratios = groups, ratios
        self.sized = {n for n, s in samplings_of(model).items() if s.resized}
        self.sites = set(self.sized)
        self.inputs: tuple[SizeInput, ...] = ()
        self.chosen: list[Expr] = []
        self.looking = False
        self.native: dict[Expr, Any] = {}
        self.values: dict[Expr, Any] = {}
        self.natural: dict[Expr, Any] = {}
        self.given: dict[Expr, Any] = {}
        self.operators: dict[str, Operator] = {}
        if groups is not None:
            ties, pins = groups.ties, groups.pins
            self.chosen = [r for r in ties.roots if (r not in pins if ratios is None else r in ratios)]
            self._find_sites(groups)
            if ratios is None:
                self.inputs = tuple(self._inputs(groups))

    @classmethod
    def of(cls, model: nn.Module, inputs: Inputs, mode: Mode) -> Sizes:
        """``model`` as ``resize_`` or its layers' ``scale`` left it, for ``mode`` "ratio" or "input"."""
        require_sites(model)
        hook = next((h for h in model._forward_pre_hooks.values() if isinstance(h, Resizing)), None)
        asking = [n for n, s in samplings_of(model).items() if s.scale is not None or s.output_size is not None]
        if mode == "input":
            if hook or asking:
                raise InputError(
                    "sizes='input' leaves internal sizes to who runs the file, but the model asks for some already "
                    f"({', '.join(asking) or 'resize_'}); undo that, ccrewrite.resize_(model, None), or say sizes='ratio'"
                )
            found = cls(model, scale_groups(model, inputs), None)
            if not found.inputs:
                raise InputError(
                    "no internal size of this model is free, so there is none to leave open; sizes='fixed' exports it:\n"
                    + str(found.groups)
                )
            return found
        if hook is None and not asking:
            raise InputError(
                "sizes='ratio' exports the ratios that the model was given, but it has none; "
                "call ccrewrite.resize_(model, {...}) or set a layer's scale before"
            )
        if hook is None:
            return cls(model, None, None)
        groups = scale_groups(model, inputs)
        ratios = {root: ratio for root, ratio in groups.ratios(hook.settings).items() if root not in groups.pins}
        return cls(without_sizes(model), groups, ratios)

    def _find_sites(self, groups: ScaleGroups) -> None:
        ties, pins, run = groups.ties, groups.pins, groups.run
        moving = set(self.chosen)

        def moves(expression: Expr) -> bool:
            return bool(ties.size(expression).free_symbols & moving)

        for root in ties.roots:
            if (root not in pins or root in ties.follow) and moves(ties.natural[root]):
                moving.add(root)
        owners = {s: n for n, x in run.sites.items() for s in x.symbols}
        for name, site in run.sites.items():
            for symbol in site.symbols if site.one_size else ():
                bound = symbol in ties.tied or symbol in pins
                if symbol in self.chosen or (bound and (moves(symbol) or moves(ties.natural[symbol]))):
                    self.sized.add(name)
        for name in self.sized:
            roots = {r for s in run.sites[name].symbols for r in ties.size(s).free_symbols}
            self.sites |= {name, *(owners[r] for r in roots)}

    def _inputs(self, groups: ScaleGroups) -> Generator[SizeInput]:
        run = groups.run
        for group in groups:
            axes = [(n, a, s) for n in group.sites for a, s in enumerate(run.sites[n].symbols) if s in self.chosen]
            if axes:
                name = "size" if group.name == ROOT else f"{group.name}.size"
                yield SizeInput(name, group.sites, tuple((n, a) for n, a, _ in axes), tuple(run.values[s] for *_, s in axes))

    def symbol(self, axis: tuple[str, int]) -> Expr:
        assert self.groups is not None
        return self.groups.run.sites[axis[0]].symbols[axis[1]]

    def keys(self) -> dict[str, Expr]:
        """The names by which the model takes its sizes, in the order of the inputs."""
        return {f"{i:04}": self.symbol(axis) for i, axis in enumerate(a for x in self.inputs for a in x.axes)}

    def examples(self) -> dict[str, int]:
        """Sizes to trace with: others than the native ones, each at its own ratio."""
        found: dict[str, int] = {}
        for i, (key, symbol) in enumerate(self.keys().items()):
            assert self.groups is not None
            native = self.groups.run.values[symbol]
            size = scaled(native, RATIOS[i % len(RATIOS)])
            found[key] = max(2, size if size != native else native + 1)
        return found

    def trials(self, model: nn.Module, inputs: Inputs) -> Generator[tuple[Settings | None, dict[str, tuple[int, ...]]]]:
        """Sizes to check the file at, for these inputs: (settings of ``ccrewrite.resized``, what the file's inputs get)."""
        yield None, {x.name: (0,) * len(x.axes) for x in self.inputs}
        if not self.inputs:
            return
        groups = scale_groups(model, inputs)
        for shift in range(2):
            ratios: dict[Expr, float] = {}
            for i, symbol in enumerate(self.chosen):
                native = groups.run.values[symbol]
                ratios[symbol] = scaled(native, RATIOS[(i + shift) % len(RATIOS)]) / native
            settings = {n: s for n in self.sized if (s := self._settings(n, ratios))}
            sizes = groups.sizes(settings)
            yield settings, {x.name: tuple(sizes[n][a] for n, a in x.axes) for x in self.inputs}

    def _settings(self, site: str, ratios: Mapping[Expr, float]) -> tuple[float, ...] | None:
        """The ratios to ask of a site that has a chosen size; None for others."""
        assert self.groups is not None
        symbols = self.groups.run.sites[site].symbols
        if not any(s in ratios for s in symbols):
            return None
        roots = (next((r for r in self.groups.ties.size(s).free_symbols if r in ratios), None) for s in symbols)
        return tuple(1.0 if r is None else ratios[r] for r in roots)

    # While the model is traced:

    @contextmanager
    def run(self, given: Mapping[str, Any]) -> Generator[bool]:
        """A new run begins; inside, it is looked what the native sizes are, where that matters (yielded)."""
        self.given = {symbol: given[key] for key, symbol in self.keys().items()}
        self.native, self.values, self.natural = {}, {}, {}
        self.looking = True
        try:
            yield self.groups is not None and (self.ratios is not None or bool(self._pinned()))
        finally:
            self.looking = False

    def _pinned(self) -> set[Expr]:
        assert self.groups is not None
        ties, run, pins = self.groups.ties, self.groups.run, self.groups.pins
        return {r for n in self.sized for s in run.sites[n].symbols for r in ties.size(s).free_symbols if r in pins}

    def see(self, site: str, natural: Sequence[Any]) -> None:
        assert self.groups is not None
        for symbol, size in zip(self.groups.run.sites[site].symbols, natural, strict=True):
            self.native.setdefault(symbol, size)

    def size(self, site: str, sampling: CCSampling, natural: Sequence[Any]) -> tuple[Any, ...]:
        """The size of ``site``'s output, where its input and its convolution make ``natural`` of it."""
        if self.groups is None:
            scale = sampling.scale if isinstance(sampling.scale, tuple) else (sampling.scale,) * len(natural)
            scaled = (n if s is None else scaled_size(n, s) for n, s in zip(natural, scale, strict=True))
            return sampling.output_size or tuple(scaled)
        symbols = self.groups.run.sites[site].symbols
        for symbol, size in zip(symbols, natural, strict=True):
            if symbol not in self.values:
                self.values[symbol] = self._value(symbol, size)
        return tuple(self.values[s] for s in symbols) if site in self.sized else tuple(natural)

    def _value(self, symbol: Expr, natural: Any) -> Any:
        assert self.groups is not None
        ties = self.groups.ties
        if symbol in self.given:
            self.natural[symbol] = natural
            return self.given[symbol]
        if self.ratios is not None and symbol in self.ratios:
            return scaled_size(self.native[symbol], self.ratios[symbol])
        if symbol in ties.tied:
            return sympy_interp(PythonReferenceAnalysis, self.values, ties.tied[symbol])
        return self.native[symbol] if symbol in self.native and symbol in self.groups.pins else natural

    def register(self, operator: Operator) -> str:
        """A name for what one call computes."""
        key = str(len(self.operators))
        self.operators[key] = operator
        return key

    def by_themselves(self) -> tuple[Tensor, ...]:
        """What the sizes that are chosen would be otherwise, in the order of ``keys``."""
        return tuple(torch.scalar_tensor(self.natural[s], dtype=torch.int64) for s in self.keys().values())


def without_sizes(model: nn.Module) -> nn.Module:
    """A copy of ``model`` that asks for no size."""
    model = resize_(copied(model), None)
    for sampling in samplings_of(model).values():
        sampling.output_size = sampling.scale = None
    return model
