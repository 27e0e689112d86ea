"""What each rewritten site costs once its geometry has moved, next to its plain convolution: ``site_costs``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.families.adopt import RewrittenConv, adopt_
from ccrewrite.families.estimate import plain_seconds
from ccrewrite.families.sites import rewritten_sites
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.choice import Choice, Seconds
from ccrewrite.ir.outcome import GivenModel, model_of
from ccrewrite.ir.progress import step
from ccrewrite.ir.sites import ROOT
from ccrewrite.ir.timing import Effort, seconds_of
from ccrewrite.ir.torch_private import ConvNd
from ccrewrite.lowering.calls import SiteCall, site_calls
from ccrewrite.lowering.choose import choose, choose_folded, key_of
from ccrewrite.lowering.measure import EFFORT, compiled_call, nudged
from ccrewrite.lowering.times import Times, cache_key
from ccrewrite.passes.fold.layers import fold_layer_
from ccrewrite.passes.substitute import copied

How = Literal["eager", "lowered", "estimated"]
Mode = Literal["inference", "training"]
QUICK = Effort(0, (7, 7), 0.01)
"""A tenth of a second for a layer."""
LAYERS = {
    False: (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    True: (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
}
"""Transposed or not -> torch's layers, by number of axes."""


@dataclass(frozen=True)
class SiteCost:
    """Seconds of all ``calls`` of a site in one run of its model: as it is once its geometry has moved, in ``form`` ("eager":
    not compiled), and of the plain convolution. With their backward, where training was asked for. ``how`` the form was chosen:
    a key of ``ccrewrite.lowering.lowered.HOW``."""

    form: str
    how: str
    calls: int
    seconds: float
    plain_seconds: float

    @property
    def ratio(self) -> float:
        """Time over the plain convolution's."""
        return self.seconds / self.plain_seconds


def site_costs(
    model: GivenModel, example_inputs: object, *, mode: Mode = "training", how: How = "eager"
) -> dict[str, SiteCost]:
    """What each site of a rewritten model costs once it has moved, by name; those that ``example_inputs`` don't reach are left
    out. ``model`` runs once and is left alone: layers like its own, with random weights, are timed at the shapes of the call.

    ``mode``: a call without gradients, or one and its backward. ``how``: "eager" times both as they run without a compiler, in
    a few tenths of a second a site. "lowered" compiles both, in the form that ``ccrewrite.lower`` takes, in seconds a site;
    times are kept on disk. "estimated" times nothing: seconds of one core, from shapes alone, that are good for ratios at most.

    Raises ``InputError`` where nothing in ``model`` was rewritten, ``ModelRunError`` where it can't run.

    >>> import ccrewrite
    >>> model, x = nn.Conv2d(8, 8, 3, dilation=4, padding=4), torch.zeros(1, 8, 16, 16)
    >>> cost = site_costs(ccrewrite.rewrite(model, x), x, how="estimated")["(root)"]
    >>> cost.calls, 1 < cost.ratio < 100
    (1, True)
    """
    given, inputs = model_of(model, "whose sites are asked for their costs"), Inputs.of(example_inputs)
    samplings = {name: site.sampling for name, site in rewritten_sites(given).items()}
    if not samplings:
        raise InputError(f"nothing in this {type(given).__name__} was rewritten, so no site has moved geometry to pay for")
    training, known = mode == "training", dict[Any, SiteCost]()
    cost = {"eager": _eager, "lowered": _lowered, "estimated": _estimated}[how]
    found: dict[str, SiteCost] = {}
    calls = site_calls(given, inputs, samplings)
    for done, (name, site) in enumerate(calls.items()):
        key = key_of(site) or name
        if key not in known:
            if how != "estimated":
                step("costs", f"timing {name}, {mode}", done / len(calls))
            known[key] = cost(site, training)
        each = known[key]
        found[name] = SiteCost(each.form, each.how, site.calls, site.calls * each.seconds, site.calls * each.plain_seconds)
    return found


def plain_layer(site: SiteCall) -> ConvNd:
    """A plain layer that computes what ``site``'s calls start as, with random weights."""
    sampling, shapes = site.sampling, site.shapes
    first, second = shapes.weight[0], shapes.weight[1] * shapes.arguments["groups"]
    channels = (first, second) if sampling.transposed else (second, first)
    kind: Any = LAYERS[sampling.transposed][sampling.ndim - 1]
    where = {"device": shapes.device, "dtype": shapes.dtype}
    return kind(*channels, sampling.kernel_size, bias=shapes.bias, **shapes.arguments, **where)


def moved_layer(site: SiteCall) -> RewrittenConv:
    """A layer like ``site``'s, with random weights, whose geometry is off its start."""
    layer, shapes = plain_layer(site), site.shapes
    if site.sampling.own_weight:
        layer.weight = nn.Parameter(torch.randn(shapes.weight, device=shapes.device, dtype=shapes.dtype))
    return adopt_(layer, nudged(site.sampling))


def random_input(site: SiteCall) -> Tensor:
    return torch.randn(site.shapes.input, device=site.shapes.device, dtype=site.shapes.dtype)


def _estimated(site: SiteCall, training: bool) -> SiteCost:
    sampling = site.sampling
    choice = Choice.fastest("estimated", sampling.estimates(site.shapes, training))
    plain = plain_seconds(site.shapes, sampling.kernel_size, sampling.transposed, training)
    return SiteCost(choice.form, choice.how, 1, choice.seconds[choice.form], plain)


def _eager(site: SiteCall, training: bool) -> SiteCost:
    x = random_input(site)
    layers = {"plain": plain_layer(site), "moved": moved_layer(site)}
    runs = {name: _run(layer, x, training) for name, layer in layers.items()}
    return _cost("eager", "measured", seconds_of(runs, x.device, QUICK))


def _lowered(site: SiteCall, training: bool) -> SiteCost:
    x, layer = random_input(site), moved_layer(site)
    if training:
        choice = choose({ROOT: site}, {}, measured=True)[ROOT]
        layer.sampling.form = choice.form
    else:
        chosen = choose_folded(layer, Inputs.of(x), {})
        layer = copied(layer)
        form = chosen[ROOT].form if chosen else None
        code = fold_layer_(cast(RewrittenConv, layer), form=form).code
        choice = Choice(code, chosen[ROOT].how if chosen else "only", {})
    kept, key = Times(), key_of(site)
    runs = {"plain": plain_layer(site), "moved": layer}
    seconds, _ = kept.of(
        key and cache_key(x.device, "costs", key, training, choice.form),
        tuple(runs),
        lambda: seconds_of({name: _run(run, x, training, compiled_call()) for name, run in runs.items()}, x.device, EFFORT),
    )
    kept.keep()
    return _cost(choice.form, choice.how, seconds)


def _cost(form: str, how: str, seconds: Seconds) -> SiteCost:
    return SiteCost(form, how, 1, seconds["moved"], seconds["plain"])


def _eagerly(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    return module(*arguments, **named)


def _run(layer: nn.Module, x: Tensor, training: bool, call: Callable[..., Tensor] = _eagerly) -> Callable[[], object]:
    layer.train(training)
    x = x.clone().requires_grad_(training)
    wanted = [x, *layer.parameters()]

    def run() -> None:
        with torch.set_grad_enabled(training):
            out = call(layer, (x,), {})
            if training:
                torch.autograd.grad(out, wanted, torch.ones_like(out), allow_unused=True)

    return run
