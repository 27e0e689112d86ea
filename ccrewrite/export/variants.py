"""The graphs that a rewritten file is made of: ``Variants``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass

from ccrewrite.export.branch import branched
from ccrewrite.export.convolutions import Convolution, convolutions
from ccrewrite.export.follow import Watched, watch_
from ccrewrite.export.functions import Functions
from ccrewrite.export.pads import restore_pads_
from ccrewrite.export.sizes import SizeInput
from ccrewrite.export.surgery import beside_, call_, forget_sizes_, free_group_norms_, size_
from ccrewrite.families.onnx import OnnxForm
from ccrewrite.ir.sites import Site


@dataclass
class Variant:
    """A copy of a graph with sites rewritten. ``asked``: its inputs that choose sizes. ``learned``: by site, the initializers
    that can be edited. ``watched``: places whose shapes can be looked at. ``judged``: by site, what it stands for and what it
    computes, on the same input."""

    model: ir.Model
    asked: list[SizeInput] = field(default_factory=list[SizeInput])
    learned: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    watched: list[Watched] = field(default_factory=list[Watched])
    judged: dict[str, tuple[ir.Value, ir.Value]] = field(default_factory=dict[str, tuple[ir.Value, ir.Value]])


@dataclass(frozen=True)
class Variants:
    """``model``, whose convolutions are ``sites``, in the ways in which it is written and run. ``forms``: of the sites that are
    rewritten."""

    model: ir.Model
    sites: Sequence[Site]
    forms: Mapping[str, OnnxForm]

    def file(self) -> Variant:
        """What is written: at native sizes the graph as it was."""
        opened, native = self._rewritten(), self.model.clone()
        restore_pads_(native)
        learned = {name for names in opened.learned.values() for name in names}
        return replace(opened, model=branched(native, opened.model, [x.name for x in opened.asked], learned))

    def moved(self, *, judged: bool = False) -> Variant:
        """One in which every site computes as it does once it moved, or is asked for another size."""
        found = self._rewritten(watched=not judged, judged=judged)
        return replace(found, model=NameFixPass()(found.model).model)

    def _rewritten(self, *, watched: bool = False, judged: bool = False) -> Variant:
        model = self.model.clone()
        pairs = zip(convolutions(model), self.sites, strict=True)
        convs = [replace(conv, site=site) for conv, site in pairs]
        free_group_norms_(model)
        found = Variant(model, watched=watch_(model, convs) if watched else [])
        functions = Functions(model)
        for conv in (c for c in convs if c.site.name in self.forms):
            if judged:
                found.judged[conv.site.name] = beside_(conv)
            self._rewrite_(found, conv, functions)
        if found.asked:
            forget_sizes_(model)
        return found

    def _rewrite_(self, found: Variant, conv: Convolution, functions: Functions) -> None:
        name, form = conv.site.name, self.forms[conv.site.name]
        if form.sized:
            asks, found.learned[name] = size_(found.model, conv, form)
            found.asked.append(asks)
        else:
            found.learned[name] = call_(found.model, conv, form, functions)
