"""Rewritten model -> a copy without learnable geometry: every site becomes the cheapest plain layer that computes the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ccrewrite.errors import InputError, ModelRunError, SelectionError
from ccrewrite.families.adopt import HOSTED, RewrittenConv
from ccrewrite.families.cc.sampling import CCSampling
from ccrewrite.families.dcls.sampling import DclsSampling
from ccrewrite.families.reroute import Rerouted
from ccrewrite.families.sampling import Sampling
from ccrewrite.families.sites import RewrittenSite, rewritten_sites
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.check import Check, OutputCheck
from ccrewrite.ir.names import hits, patterns_of
from ccrewrite.ir.preserve import preserved
from ccrewrite.passes.fold.layers import Alternative, alternative, at_start, fold_hosted_, fold_layer_
from ccrewrite.passes.fold.norms import fold_norms_
from ccrewrite.passes.fold.resized import Shapes, resized_layer, resized_shapes, settle_sizes_
from ccrewrite.passes.fold.sites import Folded, FoldedSite
from ccrewrite.passes.scales.resize import without_wrapper
from ccrewrite.passes.substitute import copied
from ccrewrite.passes.verify import compare_outputs, culprits, outputs_of


@torch.no_grad()
def fold(
    model: nn.Module,
    example_inputs: Any,
    *,
    tol: float = 0.0,
    batch_norm: bool = False,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    forms: Mapping[str, str] | None = None,
) -> Folded:
    """A copy of a rewritten model whose learned geometry has become plain layers, for inference and export.

    A layer whose geometry is at its start is the original one again. Of any other the effective kernel is built, cut to the
    smallest dilated grid that holds its non-zero cells, and put into a torch layer at the same path. Parametrizations (and the
    older weight norm, spectral norm and pruning hooks) of such a layer are folded in; all other hooks stay. Where the weight is
    not the layer's own (functional calls, convolutions with a forward of their own), the geometry becomes a constant that is
    applied to the weight in each call.

    ``example_inputs`` as ``ccrewrite.rewrite``'s: the copy is compared with ``model`` on them, in evaluation mode, and a site
    that changes the outputs is folded so that its layer keeps its attributes and weight, or else left as it is.

    ``tol``: positions (and shifts of CC layers) at most so many samples from a sample are moved onto it first. That is lossy:
    ``site.kernel_error`` and ``result.lost`` say how much. ``batch_norm``: the scale and shift of batch norms go into the
    convolutions before them, rewritten or not, wherever that is right (``result.norms``). ``include`` and ``exclude`` are globs
    of site names. ``forms`` forces "dense", or "shifted", "gathered" or "sparse", for a site (by its name) that could be either
    (``alternatives``).

    Raises ``InputError`` where nothing in ``model`` was rewritten, for a negative ``tol``, models on the meta device and
    ``forms`` that a site can't take, ``SelectionError`` where no site is selected.

    >>> import ccrewrite
    >>> model, x = nn.Conv2d(3, 8, 3, dilation=2, padding=2), torch.randn(1, 3, 16, 16)
    >>> rewritten = ccrewrite.rewrite(model, x).model
    >>> _ = rewritten.sampling.offset.data[0, ..., 0, :].fill_(1.0)    # the first row of taps, one sample down
    >>> folded = fold(rewritten, x)
    >>> folded.model.weight.shape, folded["(root)"].message, folded.check.ok
    (torch.Size([8, 3, 4, 3]), 'k4x3 d1x2', True)
    """
    if not (math.isfinite(tol) and tol >= 0):
        raise InputError(f"tol must be a number of samples, at least 0, found {tol!r}")
    inputs = Inputs.of(example_inputs)
    model = without_wrapper(model)
    sites = rewritten_sites(model)
    if not sites:
        raise InputError(f"nothing in this {type(model).__name__} was rewritten, so there is nothing to fold")
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        raise InputError("the model is on the meta device: folding reads positions and weights; load them first")
    chosen = _selected(sites, include, exclude)
    _check_forms(model, forms or {})
    snapped = copied(model)
    losses = snap_(snapped, chosen, tol) if tol else {}
    settle_sizes_(snapped, inputs)
    before = outputs_of(snapped, inputs)
    result = _verified(snapped, inputs, chosen, before, losses, resized_shapes(snapped, inputs), forms or {})
    if batch_norm:
        result = _with_norms(result, inputs, before)
    lost = compare_outputs(outputs_of(model, inputs), outputs_of(result.model, inputs)) if tol else ()
    return replace(result, lost=lost)


def _with_norms(result: Folded, inputs: Inputs, before: Mapping[str, Any]) -> Folded:
    model = copied(result.model)
    norms = fold_norms_(model, inputs)
    outputs = _compared(before, model, inputs)
    if result.check.ok and not all(o.ok for o in outputs):
        return replace(result, norms=tuple(replace(n, code="verification-failed") for n in norms))
    return replace(result, model=model, norms=norms, check=replace(result.check, outputs=outputs))


@dataclass(frozen=True)
class _Place:
    """Where a sampling is: in the module at ``module``, which is its layer (``key`` None) or the host of functional calls."""

    module: str
    key: str | None


def find(model: nn.Module) -> dict[str, _Place]:
    """The rewritten sites of ``model``, by name, in the order of its modules."""
    return {name: _Place(site.path, site.key) for name, site in rewritten_sites(model).items()}


def alternatives(model: nn.Module) -> dict[str, Alternative]:
    """The sites of ``model`` that ``forms`` of ``fold`` is for: what each could be instead of a dense kernel."""
    found: dict[str, Alternative] = {}
    for name, place in find(model).items():
        layer = model.get_submodule(place.module)
        if place.key is None and isinstance(layer, RewrittenConv) and not at_start(layer.sampling):
            other = None if isinstance(layer, Rerouted) else alternative(layer, layer.sampling)
            if other is not None:
                found[name] = other
    return found


def _check_forms(model: nn.Module, forms: Mapping[str, str]) -> None:
    allowed = {name: (other.form, "dense") for name, other in alternatives(model).items()} if forms else {}
    for name, form in forms.items():
        if form not in allowed.get(name, ()):
            known = ", ".join(f"{n} ({' or '.join(both)})" for n, both in allowed.items()) or "none"
            raise InputError(f"site {name} can't be folded to {form!r}; the sites that can take two forms are: {known}")


def sampling_at(model: nn.Module, place: _Place) -> Sampling:
    """The sampling of a site that ``find`` found."""
    below = "sampling" if place.key is None else f"{HOSTED}.{place.key}"
    return cast(Sampling, model.get_submodule(f"{place.module}.{below}".removeprefix(".")))


def _selected(sites: Mapping[str, RewrittenSite], include: Any, exclude: Any) -> list[str]:
    wanted = None if include is None else patterns_of(include, "include")
    unwanted = () if exclude is None else patterns_of(exclude, "exclude")

    def hit(site: RewrittenSite, patterns: Sequence[str]) -> bool:
        return any(hits(pattern, (site.name, *site.aliases)) for pattern in patterns)

    chosen = [n for n, s in sites.items() if (wanted is None or hit(s, wanted)) and not hit(s, unwanted)]
    if not chosen:
        raise SelectionError(f"include={include!r}, exclude={exclude!r} selects none of the rewritten sites {', '.join(sites)}")
    return chosen


def snap_(model: nn.Module, names: Sequence[str], tol: float) -> dict[str, tuple[float, float]]:
    """Move the positions (and shifts) of the sites ``names`` that are within ``tol`` samples of a sample onto it, in place:
    (largest move, relative change of the effective kernel) of each."""
    places = find(model)
    samplings = {name: sampling_at(model, places[name]) for name in names}
    kernels = {name: _kernel(model, places[name], s) for name, s in samplings.items()}
    moves = {name: _snap_(s, tol) for name, s in samplings.items()}
    losses: dict[str, tuple[float, float]] = {}
    for name, kernel in kernels.items():
        change = _kernel(model, places[name], samplings[name]) - kernel
        losses[name] = moves[name], float(change.norm() / kernel.norm().clamp_min(1e-30))
    return losses


def _snap_(sampling: Sampling, tol: float) -> float:
    if isinstance(sampling, CCSampling) and sampling.shift is not None:
        near = sampling.shift.abs() <= tol
        moved = float((sampling.shift.abs() * near).max())
        sampling.shift.masked_fill_(near, 0)
        return moved
    moved = 0.0
    if isinstance(sampling, DclsSampling):
        cells = sampling.cells()
        for offset, axis in zip(sampling.offset, sampling.axes, strict=True):
            away = cells[axis].round() - cells[axis]
            near = away.abs() <= tol
            start = sampling.grid.axes[axis].start(sampling.taps, sampling.offset)
            placed = torch.where(near, cells[axis].round(), cells[axis])
            offset.copy_((placed - start).view(offset.shape))
            moved = max(moved, float((away.abs() * near).max()))
    return moved


def _kernel(model: nn.Module, place: _Place, sampling: Sampling) -> Tensor:
    """The effective kernel, of the layer's weight, or where that is not known, of one that is all ones."""
    module = model.get_submodule(place.module)
    weight = module.weight if place.key is None else None
    if not isinstance(weight, Tensor):
        taps = sampling.taps if isinstance(sampling, DclsSampling) else sampling.kernel_size
        sets = sampling.offset.shape[1:3] if isinstance(sampling, DclsSampling) else (1, 1)
        weight = torch.ones(*sets, *taps, device=next(sampling.parameters()).device)
    with preserved(module):
        return sampling.kernel(weight).double()


_PLAIN, _GEOMETRY, _LEFT = range(3)
"""Ways to fold a site, the next one for what the one before can't: its layer loses its attributes, keeps them, is left."""


def _verified(
    model: nn.Module,
    inputs: Inputs,
    chosen: Sequence[str],
    before: Mapping[str, Any],
    losses: Mapping[str, tuple[float, float]],
    shapes: Shapes,
    forms: Mapping[str, str],
) -> Folded:
    ways = dict.fromkeys(chosen, _PLAIN)
    reasons: dict[str, str] = {}

    def check(ways: Mapping[str, int]) -> tuple[nn.Module, tuple[FoldedSite, ...], tuple[OutputCheck, ...]]:
        folded, sites = _fold(model, ways, reasons, losses, shapes, forms)
        return folded, sites, _compared(before, folded, inputs)

    def passes_with(way: int) -> Callable[[Sequence[str]], bool]:
        def passes(plain: Sequence[str]) -> bool:
            outputs = check({n: w if n in plain else max(w, way) for n, w in ways.items()})[2]
            failed = [o for o in outputs if not o.ok]
            if failed and len(plain) == 1:
                reasons[plain[0]] = failed[0].note or f"{failed[0].path} changed by {failed[0].max_rel_error:.1e}"
            return not failed

        return passes

    folded, sites, outputs = check(ways)
    note = ""
    if not all(o.ok for o in outputs):
        if not all(o.ok for o in compare_outputs(before, outputs_of(model, inputs))):
            note = "two runs of the rewritten model differ as well: it is not deterministic"
        else:
            for way in (_GEOMETRY, _LEFT):
                worse = culprits([n for n in ways if ways[n] < way], passes_with(way))
                ways.update(dict.fromkeys(worse, way))
                folded, sites, outputs = check(ways)
                if all(o.ok for o in outputs):
                    break
            else:
                note = "sites that are right by themselves differ together"
    return Folded(folded, sites, Check(outputs, True, note))


def _compared(before: Mapping[str, Any], folded: nn.Module, inputs: Inputs) -> tuple[OutputCheck, ...]:
    try:
        return compare_outputs(before, outputs_of(folded, inputs))
    except ModelRunError as error:
        note = f"the folded model raised {type(error.__cause__).__name__}: {error.__cause__}"
        return (OutputCheck("output", "", (), math.inf, math.inf, 0, False, note),)


def _fold(
    model: nn.Module,
    ways: Mapping[str, int],
    reasons: Mapping[str, str],
    losses: Mapping[str, tuple[float, float]],
    shapes: Shapes,
    forms: Mapping[str, str],
) -> tuple[nn.Module, tuple[FoldedSite, ...]]:
    """A copy of ``model`` with its sites folded in these ways, and what became of each."""
    model = copied(model)
    done: list[FoldedSite] = []
    for name, place in find(model).items():
        module, sampling = model.get_submodule(place.module), sampling_at(model, place)
        site = FoldedSite(name, _layer_name(module), sampling.window, "", "", *losses.get(name, (0.0, 0.0)))
        if name not in ways:
            code, message = "not-selected", "still learnable"
        elif ways[name] == _LEFT:
            code, message = "verification-failed", reasons.get(name, "")
        elif place.key is not None:
            code, message = fold_hosted_(module, place.key)
        elif place.module in shapes and (resized := resized_layer(cast(RewrittenConv, module), shapes[place.module])):
            model = _exchanged(model, module, resized)
            code, message = "resized", f"for inputs of {'x'.join(map(str, resized.size))} samples"
        else:
            layer = cast(RewrittenConv, module)
            keep = ways[name] == _GEOMETRY or isinstance(layer, Rerouted)
            code, message = fold_layer_(layer, keep=keep, form=forms.get(name))
        done.append(replace(site, code=code, message=message))
    return model, tuple(done)


def _exchanged(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """``model`` with one module for another, wherever it is registered."""
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if module is old and path:
            owner, _, name = path.rpartition(".")
            model.get_submodule(owner)._modules[name] = new
    return new if model is old else model


def _layer_name(module: nn.Module) -> str:
    return type(module).__name__.removeprefix("Parametrized")
