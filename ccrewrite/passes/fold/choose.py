"""What sites are folded to where they have a choice: by measurement at the sizes of the example call, or by estimate."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ccrewrite.families.adopt import RewrittenConv
from ccrewrite.families.methods import Rerouted
from ccrewrite.families.sites import rewritten_sites
from ccrewrite.folded.alternative import Alternative
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.choice import Choice
from ccrewrite.ir.observe import Like, module_calls
from ccrewrite.ir.outcome import GivenModel, model_of
from ccrewrite.ir.progress import step
from ccrewrite.ir.timing import seconds_of
from ccrewrite.passes.fold.layers import DENSE, alternatives_of, fold_layer_, taken
from ccrewrite.passes.fold.trim import trim_
from ccrewrite.passes.substitute import copied

WORTH_MEASURING = 5.0
"""Where one form is estimated to take so many times as long as another, neither is measured: its dense kernel may be gigabytes
of zeros."""


class Question(NamedTuple):
    """A layer, what it is called with, and the forms that it may take; ``key`` is equal for layers that are alike."""

    layer: RewrittenConv
    input: Like
    forms: tuple[str, ...]
    key: Hashable
    cut: float = 0.0
    """What a dense kernel may lose at its border."""

    def example(self) -> Tensor:
        """Random data like the input."""
        generator = torch.Generator(self.input.device).manual_seed(0)
        return torch.randn(self.input.shape, generator=generator, dtype=self.input.dtype, device=self.input.device)

    def folded(self, form: str) -> nn.Module:
        """A copy of the layer in this form, in evaluation mode."""
        layer = copied(self.layer)
        if form == DENSE and self.cut:
            trim_(layer, list(rewritten_sites(layer)), self.cut)
        fold_layer_(cast(RewrittenConv, layer), form=form)
        return layer.eval()


def alternatives(model: GivenModel) -> dict[str, tuple[Alternative, ...]]:
    """What the sites of ``model`` could become besides a convolution with a dense kernel, by site: what ``forms`` of ``fold``
    takes. Sites without a choice are left out."""
    found: dict[str, tuple[Alternative, ...]] = {}
    for name, site in rewritten_sites(model_of(model, "what is asked for alternatives")).items():
        own = site.key is None and not isinstance(site.module, Rerouted)
        if own and not site.sampling.resized and not site.sampling.at_start():
            found[name] = alternatives_of(site.module, site.sampling)
    return {name: offered for name, offered in found.items() if offered}


def estimated(model: nn.Module) -> dict[str, str]:
    """The form of each site that has a choice, from shapes alone."""
    chosen = {name: taken(offered, None) for name, offered in alternatives(model).items()}
    return {name: DENSE if alternative is None else alternative.name for name, alternative in chosen.items()}


def chosen(
    model: nn.Module, inputs: Inputs, names: Iterable[str], judge: Callable[[Question], Choice], *, cut: float = 0.0
) -> dict[str, Choice]:
    """What ``judge`` says of those of the sites ``names`` that have a choice and are worth it; layers that are alike are judged
    once. Sites that ``inputs`` don't reach are left out. ``cut``: see ``fold``."""
    sites, near = rewritten_sites(model), dict[str, list[Alternative]]()
    for name, offered in alternatives(model).items():
        worth = [a for a in offered if 1 / WORTH_MEASURING < a.cost_of_dense < WORTH_MEASURING]
        if worth and name in names:
            near[name] = worth
    layers = {name: cast(RewrittenConv, sites[name].module) for name in near}
    known, found = dict[Hashable, Choice](), dict[str, Choice]()
    for done, (name, calls) in enumerate(module_calls(model, inputs, layers).items()):
        if not calls:
            continue
        step("fold", f"choosing the form of {name}", done / len(layers))
        args, named = calls[0]
        input, told = cast(Like, args[0] if args else named["input"]), [a.told for a in near[name]]
        key = (*input, str(layers[name]), *told)
        if key not in known:
            known[key] = judge(Question(layers[name], input, (DENSE, *(a.name for a in near[name])), key, cut))
        found[name] = known[key]
    return found


def measured(question: Question) -> Choice:
    """By one call in each form, in eager mode."""
    x = question.example()
    runs = {form: partial(question.folded(form).forward, x) for form in question.forms}
    return Choice.fastest("measured", seconds_of(runs, x.device))
