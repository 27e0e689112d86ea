"""Which output sizes of a rewritten model stay open in its ONNX file, and where each comes from: ``SizePlan``.

The plan is made before torch traces the model. ``traced_sizes`` carries it out while the model is traced.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from ccrewrite.errors import InputError
from ccrewrite.families.resizable import scaled_size
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.geometry import Ints
from ccrewrite.ir.sites import ROOT
from ccrewrite.passes.scales.resize import resize_, resizings_of
from ccrewrite.passes.scales.scale_groups import ScaleGroups, Settings, require_sites, scale_groups
from ccrewrite.passes.scales.sizes import Expr, samplings_of
from ccrewrite.passes.scales.trials import RATIOS
from ccrewrite.passes.substitute import copied

Mode = Literal["fixed", "ratio", "input"]


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


@dataclass(frozen=True)
class Asked:
    """A size that an input of the file says."""


@dataclass(frozen=True)
class Tied:
    """A size that others determine."""

    expression: Expr
    """Over the symbols of those."""


@dataclass(frozen=True)
class Native:
    """The size that the site has where no size of the model is another than its own, or ``ratio`` times that."""

    ratio: float | None = None


@dataclass(frozen=True)
class Natural:
    """The size that the site's input and its convolution make, or ``ratio`` times that."""

    ratio: float | None = None


@dataclass(frozen=True)
class Fixed:
    """A number."""

    size: int


Source = Asked | Tied | Native | Natural | Fixed
"""Where a size comes from when the file runs."""


@dataclass(frozen=True)
class SizePlan:
    """What becomes of the output sizes of a model's sites.

    ``model`` is to be exported: it asks for no size itself where the plan does. ``symbols`` names the sizes of each site that
    the plan has to know, one for each axis, and ``sources`` says where they come from. ``sized``: those of the sites whose
    size may be another than ``Natural``. ``inputs``: what is asked of who runs the file. ``groups``: the model's scale groups,
    where the plan follows these.
    """

    model: nn.Module
    symbols: Mapping[str, tuple[Expr, ...]]
    sources: Mapping[Expr, Source]
    sized: frozenset[str]
    inputs: tuple[SizeInput, ...] = ()
    groups: ScaleGroups | None = None

    @property
    def code(self) -> str:
        """What becomes of the plan's sites: a key of ``ccrewrite.export.report.CODES``."""
        return "size-input" if self.inputs else "size-ratio"

    @property
    def asked(self) -> tuple[Expr, ...]:
        """The sizes that the inputs say, in their order."""
        return tuple(self.symbols[site][axis] for x in self.inputs for site, axis in x.axes)

    @property
    def native_needed(self) -> bool:
        return any(isinstance(source, Native) for source in self.sources.values())

    def examples(self) -> dict[str, int]:
        """For each of ``asked``, under a name that sorts, a size to trace with: another one than the native, each at its own
        ratio, so that torch takes none for a constant or for the same as another."""
        found: dict[str, int] = {}
        for i, native in enumerate(n for x in self.inputs for n in x.native):
            size = scaled_size(native, RATIOS[i % len(RATIOS)])
            found[f"{i:04}"] = max(2, size if size != native else native + 1)
        return found

    def trials(self, model: nn.Module, inputs: Inputs) -> Generator[tuple[Settings | None, dict[str, Ints]]]:
        """Sizes to check the file at, for these inputs: (settings of ``ccrewrite.resized``, what the file's inputs get)."""
        yield None, {x.name: (0,) * len(x.axes) for x in self.inputs}
        if self.groups is None or not self.inputs:
            return
        here = scale_groups(model, inputs)
        native = here.sizes({})
        yield None, {x.name: tuple(native[site][axis] for site, axis in x.axes) for x in self.inputs}
        for shift in range(2):
            ratios: dict[Expr, float] = {}
            for i, symbol in enumerate(_free(self.groups)):
                native = here.run.values[symbol]
                ratios[symbol] = scaled_size(native, RATIOS[(i + shift) % len(RATIOS)]) / native
            settings = {site: found for site in self.sized if (found := _settings(self.groups, site, ratios))}
            sizes = here.sizes(settings)
            yield settings, {x.name: tuple(sizes[site][axis] for site, axis in x.axes) for x in self.inputs}


def plan_sizes(model: nn.Module, inputs: Inputs, mode: Mode) -> SizePlan | None:
    """For ``model`` as ``resize_`` or its layers' ``scale`` left it; None for "fixed". Raises ``InputError`` where the mode
    doesn't suit the model."""
    if mode == "fixed":
        return None
    require_sites(model)
    hook = next(iter(resizings_of(model)), None)
    asking = [n for n, s in samplings_of(model).items() if s.scale is not None or s.output_size is not None]
    if mode == "input":
        if hook or asking:
            raise InputError(
                "sizes='input' leaves internal sizes to who runs the file, but the model asks for some already "
                f"({', '.join(asking) or 'resize_'}); undo that, ccrewrite.resize_(model, None), or say sizes='ratio'"
            )
        groups = scale_groups(model, inputs)
        plan = _of_groups(model, groups, dict.fromkeys(_free(groups), Asked()))
        if not plan.inputs:
            raise InputError(
                "no internal size of this model is free, so there is none to leave open; sizes='fixed' exports it:\n"
                + str(groups)
            )
        return plan
    if hook is None and not asking:
        raise InputError(
            "sizes='ratio' exports the ratios that the model was given, but it has none; "
            "call ccrewrite.resize_(model, {...}) or set a layer's scale before"
        )
    if hook is None:
        return _of_layers(model)
    groups = scale_groups(model, inputs)
    ratios = groups.ratios(hook.settings)
    return _of_groups(model, groups, {root: Native(ratio) for root, ratio in ratios.items() if root not in groups.pins})


def _of_layers(model: nn.Module) -> SizePlan:
    """Each layer's own ``scale`` or ``output_size``."""
    symbols: dict[str, tuple[Expr, ...]] = {}
    sources: dict[Expr, Source] = {}
    for site, sampling in samplings_of(model).items():
        if not sampling.resized:
            continue
        symbols[site] = tuple((site, axis) for axis in range(sampling.ndim))
        for axis, symbol in enumerate(symbols[site]):
            if sampling.output_size is not None:
                sources[symbol] = Fixed(sampling.output_size[axis])
            else:
                scale = sampling.scale
                sources[symbol] = Natural(scale[axis] if isinstance(scale, tuple) else scale)
    return SizePlan(model, symbols, sources, frozenset(symbols))


def _of_groups(model: nn.Module, groups: ScaleGroups, chosen: Mapping[Expr, Asked | Native]) -> SizePlan:
    """The sizes of the roots ``chosen`` come from there, all others follow."""
    model = without_sizes(model)
    centred = {n for n, s in samplings_of(model).items() if s.resized and n in groups.run.sites}
    sized = frozenset(_sized(groups, chosen)) | centred
    known = {r for site in sized for s in groups.run.sites[site].symbols for r in groups.ties.size(s).free_symbols}
    sites = {n: x.symbols for n, x in groups.run.sites.items() if n in sized or known.intersection(x.symbols)}
    looks = any(isinstance(source, Native) for source in chosen.values()) or not known.isdisjoint(groups.pins)
    sources: dict[Expr, Source] = {}
    for symbol in (s for symbols in sites.values() for s in symbols):
        if symbol in chosen:
            sources[symbol] = chosen[symbol]
        elif symbol in groups.ties.tied:
            sources[symbol] = Tied(groups.ties.tied[symbol])
        else:
            sources[symbol] = Native() if looks and symbol in groups.pins else Natural()
    inputs = tuple(_inputs(groups, {r for r, source in chosen.items() if isinstance(source, Asked)}))
    return SizePlan(model, sites, sources, sized, inputs, groups)


def _sized(groups: ScaleGroups, chosen: Mapping[Expr, object]) -> Iterator[str]:
    """The sites whose size may be another than the one that their input and their convolution make, when ``chosen`` move."""
    ties, pins = groups.ties, groups.pins
    moving = set(chosen)

    def moves(expression: Expr) -> bool:
        return bool(ties.size(expression).free_symbols & moving)

    for root in ties.roots:
        if (root not in pins or root in ties.follow) and moves(ties.natural[root]):
            moving.add(root)
    for site, sizes in groups.run.sites.items():
        for symbol in sizes.symbols if sizes.one_size else ():
            bound = symbol in ties.tied or symbol in pins
            if symbol in chosen or (bound and (moves(symbol) or moves(ties.natural[symbol]))):
                yield site


def _free(groups: ScaleGroups) -> list[Expr]:
    """The roots whose size can be chosen."""
    return [root for root in groups.ties.roots if root not in groups.pins]


def _inputs(groups: ScaleGroups, asked: set[Expr]) -> Iterator[SizeInput]:
    run = groups.run
    for group in groups:
        axes = [(n, a, s) for n in group.sites for a, s in enumerate(run.sites[n].symbols) if s in asked]
        if axes:
            name = "size" if group.name == ROOT else f"{group.name}.size"
            yield SizeInput(name, group.sites, tuple((n, a) for n, a, _ in axes), tuple(run.values[s] for *_, s in axes))


def _settings(groups: ScaleGroups, site: str, ratios: Mapping[Expr, float]) -> tuple[float, ...] | None:
    """The ratios to ask of a site that has a size of its own to choose; None for others."""
    symbols = groups.run.sites[site].symbols
    if not any(s in ratios for s in symbols):
        return None
    roots = (next((r for r in groups.ties.size(s).free_symbols if r in ratios), None) for s in symbols)
    return tuple(1.0 if r is None else ratios[r] for r in roots)


def without_sizes(model: nn.Module) -> nn.Module:
    """A copy of ``model`` that asks for no size."""
    model = resize_(copied(model), None)
    for sampling in samplings_of(model).values():
        sampling.output_size = sampling.scale = None
    return model
