"""What a target doesn't take of a folded model, listed before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from torch import nn

from ccrewrite.families.adopt import TORCH_LAYERS
from ccrewrite.folded.alternative import Alternative
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.torch_private import ConvNd
from ccrewrite.ir.typed import named_modules
from ccrewrite.passes.fold.layers import DENSE, taken
from ccrewrite.passes.fold.sites import STILL_LEARNABLE, FoldedSite
from ccrewrite.passes.targets import NotTaken, Target

PLAIN = ("original", "convolution", "padded")


def forms_for(offered: Mapping[str, tuple[Alternative, ...]], target: Target) -> dict[str, str]:
    """The form of each site that has a choice: the cheapest by estimate that ``target`` takes."""
    fitting = {name: tuple(a for a in found if a.name in target.forms) for name, found in offered.items()}
    best = {name: taken(found, None) for name, found in fitting.items()}
    return {name: DENSE if alternative is None else alternative.name for name, alternative in best.items()}


def not_taken(model: nn.Module, sites: Iterable[FoldedSite], target: Target) -> tuple[NotTaken, ...]:
    """Of the layers of a folded ``model``, rewritten once or not, and of its ``sites``."""
    source = target.sources.get("forms", "")
    codes = [(s.name, s.code) for s in sites if s.code not in (*PLAIN, *target.forms)]
    found = [NotTaken(n, "still learnable" if c in STILL_LEARNABLE else f"the form {c!r}", source) for n, c in codes]
    for path, layer in named_modules(model):
        if type(layer) in TORCH_LAYERS:
            wrong = target.refused(ConvGeometry.from_module(cast(ConvNd, layer)))
            found += [NotTaken(path, f"a {type(layer).__name__} of {words}", said) for words, said in wrong]
    return tuple(found)
