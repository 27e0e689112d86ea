"""Rewritten model -> a copy without learnable geometry: every site becomes the cheapest plain layer that computes the same."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from ccrewrite.errors import InputError, SelectionError
from ccrewrite.families.adapters import require_merged
from ccrewrite.families.sites import RewrittenSite, rewritten_sites
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.choice import Choice
from ccrewrite.ir.names import hits, patterns_of
from ccrewrite.ir.options import check_arguments
from ccrewrite.ir.outcome import GivenModel, model_of
from ccrewrite.ir.progress import step
from ccrewrite.passes.fold.attempts import Attempts, compared, fold_verified
from ccrewrite.passes.fold.choose import alternatives, chosen, estimated, measured
from ccrewrite.passes.fold.layers import DENSE
from ccrewrite.passes.fold.norms import fold_norms_
from ccrewrite.passes.fold.resized import resized_shapes, settle_sizes_
from ccrewrite.passes.fold.sites import Folded, FoldedNorm, FoldedSite
from ccrewrite.passes.fold.snap import Loss, snap_
from ccrewrite.passes.fold.taken import forms_for, not_taken
from ccrewrite.passes.fold.trim import trim_
from ccrewrite.passes.fold.weights import evaluating
from ccrewrite.passes.noise import JUDGED, judged, with_noise
from ccrewrite.passes.scales.resize import without_wrapper
from ccrewrite.passes.substitute import copied
from ccrewrite.passes.targets import Target, target_of
from ccrewrite.passes.verify import compare_outputs, outputs_of

FORMS = ("measured", "estimated")


@torch.no_grad()
def fold(
    model: GivenModel,
    example_inputs: object,
    *,
    tol: float = 0.0,
    cut: float = 0.0,
    batch_norm: bool = False,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    forms: Mapping[str, str] | Literal["measured", "estimated"] = "measured",
    target: str | Target | None = None,
) -> Folded:
    """A copy of a rewritten model whose learned geometry has become plain layers, for inference and export.

    A layer whose geometry is at its start is the original one again. Of any other the effective kernel is built, cut to the
    smallest dilated grid that holds its non-zero cells, and put into a torch layer at the same path. Parametrizations (and the
    older weight norm, spectral norm and pruning hooks) of such a layer are folded in; all other hooks stay. Where the weight is
    not the layer's own (functional calls, convolutions with a forward of their own), the geometry becomes a constant that is
    applied to the weight in each call.

    Args:
        model: a rewritten model, or what ``rewrite`` returned. Stays as it is.
        example_inputs: as ``plan``'s. The copy is compared with ``model`` on them, in evaluation mode, and a site that changes
            the outputs is folded so that its layer keeps its attributes and weight, or else left as it is.
        tol: positions (and shifts of CC layers) at most so many samples from a sample are moved onto it first. That is lossy:
            ``site.kernel_error`` and ``result.lost`` say how much.
        cut: cells at the border of a dense kernel are left out as far as the kernel changes by at most this part of its 2-norm:
            a CC layer's is often two or three samples wider than the original's for little. Lossy as well: see
            ``site.cut_error`` and ``result.lost``. Forms that aren't dense stay exact.
        batch_norm: the scale and shift of batch norms go into the convolutions before them, rewritten or not, wherever that is
            right (``result.norms``).
        include: names of sites, globs or "re:..."; None: all sites.
        exclude: the same, for sites that stay learnable.
        forms: what a site becomes where it has a choice: a "dense" kernel, or one of its ``alternatives``, such as "shifted",
            "gathered" or "sparse". "measured": each is timed in eager mode on this device at the size of the example call (some
            tenths of a second for each kind of layer; ``site.milliseconds``), unless they are estimated to be far from each
            other; none is taken that is slower than the next best. "estimated" goes by shapes alone, and gives the same on
            every machine. A mapping says it by the sites' names; the others are measured.
        target: where the model goes, a name of ``ccrewrite.passes.targets.TARGETS`` or one of your own: a site becomes what is
            estimated to be the cheapest of the forms that it takes, and ``result.not_taken`` lists what it doesn't take of the
            folded model's convolutions, rewritten or not. Nothing is timed then.

    Returns:
        The folded copy (``model``), what became of each site, and what was compared (``check``).

    Raises:
        InputError: where nothing in ``model`` was rewritten, for a ``tol`` or ``cut`` out of range, models on the meta device,
            adapters that aren't merged, an unknown ``target`` and ``forms`` that are unknown or that a site can't take.
        SelectionError: where no site is selected.

    >>> import ccrewrite
    >>> model, x = nn.Conv2d(3, 8, 3, dilation=2, padding=2), torch.randn(1, 3, 16, 16)
    >>> rewritten = ccrewrite.rewrite(model, x).model
    >>> _ = rewritten.sampling.offset.data[0, ..., 0, :].fill_(1.0)    # the first row of taps, one sample down
    >>> folded = fold(rewritten, x)
    >>> folded.model.weight.shape, folded["(root)"].message, folded.check.ok
    (torch.Size([8, 3, 4, 3]), 'k4x3 d1x2', True)
    """
    check_arguments(fold, {**locals(), "forms": {}})  # which are checked more closely
    if not (math.isfinite(tol) and tol >= 0):
        raise InputError(f"tol must be a number of samples, at least 0, found {tol!r}")
    if not 0 <= cut < 1:
        raise InputError(f"cut must be a part of a kernel's norm, from 0 to below 1, found {cut!r}")
    given, inputs = without_wrapper(model_of(model, "what fold folds")), Inputs.of(example_inputs)
    names = _selected(sites := _sites(given), include, exclude)
    require_merged(given, [sites[name] for name in names], "fold, or leave the site out (exclude)")
    asked, aim = _asked_forms(given, forms), None if target is None else target_of(target)
    snapped = copied(given)
    losses = snap_(snapped, names, tol) if tol else dict[str, Loss]()
    settle_sizes_(snapped, inputs)
    open_ = [] if forms == "estimated" or aim is not None else [name for name in names if name not in asked]
    timed = chosen(snapped, inputs, open_, measured, cut=cut)
    step("fold", f"making {len(names)} sites plain, and comparing outputs")
    by_shape = estimated(snapped) if aim is None else forms_for(alternatives(snapped), aim)
    forms = by_shape | {name: choice.form for name, choice in timed.items()} | asked
    if cut:
        dense = [name for name in names if forms.get(name, DENSE) == DENSE]
        for name, error in trim_(snapped, dense, cut).items():
            losses[name] = losses.get(name, Loss())._replace(cut_error=error)
    before = outputs_of(snapped, inputs)
    attempts = Attempts(snapped, inputs, before, forms, resized_shapes(snapped, inputs), losses, aim)
    result = fold_verified(attempts, names)
    result = replace(result, sites=tuple(_with_times(site, timed) for site in result.sites))
    if batch_norm:
        result = _with_norms(result, inputs, before, snapped)
    lost = compare_outputs(outputs_of(given, inputs), outputs_of(result.model, inputs)) if tol or cut else ()
    refused = not_taken(result.model, result.sites, aim) if aim is not None else ()
    return replace(result, lost=lost, not_taken=refused)


def _sites(model: nn.Module) -> dict[str, RewrittenSite]:
    sites = rewritten_sites(model)
    if not sites:
        raise InputError(f"nothing in this {type(model).__name__} was rewritten, so there is nothing to fold")
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        raise InputError("the model is on the meta device: folding reads positions and weights; load them first")
    return sites


def _selected(sites: Mapping[str, RewrittenSite], include: object, exclude: object) -> list[str]:
    wanted = ("*",) if include is None else patterns_of(include, "include")
    unwanted = () if exclude is None else patterns_of(exclude, "exclude")

    def hit(site: RewrittenSite, patterns: Sequence[str]) -> bool:
        return any(hits(pattern, (site.name, *site.aliases)) for pattern in patterns)

    chosen = [name for name, site in sites.items() if hit(site, wanted) and not hit(site, unwanted)]
    if not chosen:
        raise SelectionError(f"include={include!r}, exclude={exclude!r} selects none of the rewritten sites {', '.join(sites)}")
    return chosen


def _asked_forms(model: nn.Module, forms: Mapping[str, str] | str) -> dict[str, str]:
    """What ``forms`` says of sites by their names."""
    if not isinstance(forms, Mapping):
        if forms not in FORMS:
            raise InputError(f"forms must be {' or '.join(map(repr, FORMS))} or name the form of a site; found {forms!r}")
        return {}
    offered = alternatives(model) if forms else {}
    allowed = {name: [*(a.name for a in found), DENSE] for name, found in offered.items()}
    for name, form in forms.items():
        if form not in allowed.get(name, ()):
            known = ", ".join(f"{n} ({' or '.join(names)})" for n, names in allowed.items()) or "none"
            raise InputError(f"site {name} can't be folded to {form!r}; the sites that have a choice are: {known}")
    return dict(forms)


def _with_times(site: FoldedSite, timed: Mapping[str, Choice]) -> FoldedSite:
    if site.name not in timed:
        return site
    return replace(site, milliseconds={form: 1e3 * seconds for form, seconds in timed[site.name].seconds.items()})


def _with_norms(result: Folded, inputs: Inputs, before: Mapping[str, object], given: nn.Module) -> Folded:
    """``result`` with batch norms folded too, unless that changes its outputs."""
    model = copied(result.model)
    norms = fold_norms_(model, inputs)
    outputs, noise = compared(before, model, inputs), ""
    if not all(o.ok for o in outputs) and not _norms_fault(result.model, model, norms, inputs):
        outputs, noise = with_noise(outputs, lambda i: outputs_of(given, i), inputs, roundings=JUDGED)
    if result.check.ok and not all(o.ok for o in outputs):
        return replace(result, norms=tuple(replace(n, code="verification-failed") for n in norms))
    return replace(
        result, model=model, norms=norms, check=replace(result.check, outputs=outputs, note=result.check.note or noise)
    )


def _norms_fault(before: nn.Module, after: nn.Module, norms: Sequence[FoldedNorm], inputs: Inputs) -> str:
    """What is wrong with the convolutions of ``after`` that took in the norms of ``before``; empty where nothing is."""

    def both(norm: FoldedNorm, *args: object, **kwargs: object) -> object:
        convolved = before.get_submodule(norm.conv).forward(*args, **kwargs)
        return before.get_submodule(norm.name).forward(convolved)

    folded = (n for n in norms if n.code == "folded")
    pairs = [(n.conv, after.get_submodule(n.conv), functools.partial(both, n)) for n in folded]
    with evaluating(before):
        return judged(lambda: outputs_of(after, inputs), pairs, outputs_of(before, inputs))
