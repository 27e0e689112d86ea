"""A rewritten model made ready for torch's exporter: its sites folded, but for those that stay open in the file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from ccrewrite.errors import ExportError, InputError
from ccrewrite.export.kept import Calls, keep_, tensors_of
from ccrewrite.export.report import CODES, OnnxSite
from ccrewrite.export.sizes import SizePlan
from ccrewrite.export.traced_sizes import TracedSizes, take_sizes_
from ccrewrite.families.adapters import require_merged
from ccrewrite.families.sites import RewrittenSite, rewritten_sites
from ccrewrite.ir.capture import Inputs
from ccrewrite.passes.fold import fold
from ccrewrite.passes.substitute import copied
from ccrewrite.passes.targets import Target

FUNCTION = "function"
"""Code of a site that becomes a call of a function."""


@dataclass(frozen=True)
class Prepared:
    """``model`` is to be exported, and of no other use. ``sites``: what became of each rewritten convolution, ``modules``:
    every path of their layers, or of their samplings where they are functional calls -> the site. ``calls`` fills while the
    model is traced. ``tensors``: path of a buffer -> the site that is kept which learned it, and its name there."""

    model: nn.Module
    sites: tuple[OnnxSite, ...]
    modules: Mapping[str, str]
    calls: Calls
    tensors: Mapping[str, tuple[str, str]]


def prepared(
    model: nn.Module, inputs: Inputs, sizes: SizePlan | None, *, functions: bool, target: Target | None = None
) -> Prepared:
    """A copy of ``model`` in evaluation mode: sites whose sizes stay open (``sizes``) and, with ``functions``, those that can
    be functions are kept, the others folded, for ``target`` where there is one. Raises ``InputError`` where a site that must
    be kept can't be, ``ExportError`` where folding changed what the model computes."""
    model = sizes.model if sizes else model
    there = rewritten_sites(model)
    require_merged(model, there.values(), "export")
    if not there:
        return Prepared(copied(model).eval(), (), {}, {}, {})
    kept = _kept(there.values(), sizes, functions=functions)
    sites: dict[str, OnnxSite] = {}
    if len(kept) < len(there):
        result = fold(model, inputs, exclude=[f"re:{re.escape(name)}" for name in kept], forms="estimated", target=target)
        if not result.check.ok:
            raise ExportError(f"the folded model differs from the rewritten one:\n{result}")
        model = result.model
        sites = {s.name: OnnxSite(s.name, s.layer, s.code, s.message, s.window) for s in result.sites}
    model, calls = copied(model).eval(), Calls()
    left, traced = rewritten_sites(model), TracedSizes(sizes) if sizes else None
    for name, code in kept.items():
        sampling, form = left[name].sampling, left[name].sampling.onnx_form()
        assert form is not None
        layer = type(left[name].module).__name__.removeprefix("Parametrized")
        sites[name] = OnnxSite(name, layer, code, CODES[code], sampling.window)
        keep_(sampling, form, name, calls, None if code == FUNCTION else traced)
    if traced is not None:
        take_sizes_(model, traced)
    modules = {path: name for name, site in there.items() for path in (site.paths if site.key is None else site.sampling_paths)}
    return Prepared(model, tuple(sites[n] for n in there), modules, calls, tensors_of(model))


def _kept(sites: Iterable[RewrittenSite], sizes: SizePlan | None, *, functions: bool) -> dict[str, str]:
    """The sites that are not folded -> their codes."""
    kept: dict[str, str] = {}
    for site in sites:
        opened = sizes is not None and site.name in sizes.symbols
        form = site.sampling.onnx_form() if opened or functions else None
        if sizes is not None and opened:
            if form is None or not form.sized:
                raise InputError(
                    f"{site.name}: the output size of its {type(site.sampling).__name__} can't stay open in an ONNX file, for "
                    "onnx_form gives no operator that takes sizes; sizes='fixed' exports it as it is for the example inputs"
                )
            kept[site.name] = sizes.code
        elif form is not None and not form.sized:
            kept[site.name] = FUNCTION
    return kept
