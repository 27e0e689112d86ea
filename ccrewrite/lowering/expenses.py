"""What each site costs once it has moved, before it does: time, operations and memory, for a plan and a forecast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.families.rule import Rule
from ccrewrite.families.sites import rewritten_sites
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.costs import Cost
from ccrewrite.ir.preserve import random_states_kept
from ccrewrite.ir.sites import Plan
from ccrewrite.ir.spent import flops_of, peak_memory
from ccrewrite.ir.typed import manual_seed
from ccrewrite.lowering.calls import SiteCall, site_calls
from ccrewrite.lowering.costs import How, moved_layer, plain_layer, random_input, site_costs
from ccrewrite.passes.rules import rule_for
from ccrewrite.passes.substitute import copied, substitute_

CHEAPER = ("sharing", "reach")
"""Options of rules, of whatever family, that decide what a moved layer costs."""
SPENT = ("flops", "plain_flops", "step_bytes", "plain_step_bytes")
HOWS = ("eager", "lowered", "estimated")


def with_costs(planned: Plan, model: nn.Module, inputs: Inputs, how: How) -> Plan:
    """``planned`` with its ``costs``. A copy of ``model`` is rewritten for it, which is gone afterwards.

    Raises ``InputError`` for another ``how`` than "eager", "lowered" and "estimated".
    """
    if how not in HOWS:
        raise InputError(f"costs must be True, False or one of {', '.join(map(repr, HOWS))}; found {how!r}")
    if not planned.rewritten:
        return planned
    probe = copied(model)
    substitute_(probe, planned.rewritten, planned.rules)
    return replace(planned, costs=costs_of(probe, inputs, planned, how))


def costs_of(model: nn.Module, inputs: Inputs, planned: Plan, how: How) -> dict[str, Cost]:
    """The cost of each site of ``model``, which was rewritten as ``planned``, by name; those that are not called are left
    out. FLOPs and bytes are those of layers like them, run once on random data; ``how="estimated"`` runs none."""
    samplings = {name: site.sampling for name, site in rewritten_sites(model).items()}
    with random_states_kept():
        manual_seed(0)
        inference = site_costs(model, inputs, mode="inference", how=how)
        training = site_costs(model, inputs, mode="training", how=how)
        calls = site_calls(model, inputs, samplings)
        spent = {name: _spent(call) if how != "estimated" else dict.fromkeys(SPENT) for name, call in calls.items()}
    options = _options(planned)
    return {
        name: Cost(
            how=how,
            form=training[name].form,
            inference_form=inference[name].form,
            seconds=inference[name].seconds,
            plain_seconds=inference[name].plain_seconds,
            step_seconds=training[name].seconds,
            plain_step_seconds=training[name].plain_seconds,
            parameters=sum(p.numel() for p in call.sampling.parameters()),
            options=options.get(name, ()),
            **spent[name],
        )
        for name, call in calls.items()
    }


def _options(planned: Plan) -> Mapping[str, tuple[str, ...]]:
    rules: dict[str, Rule | None] = {site.name: rule_for(site, planned.rules) for site in planned.rewritten}
    return {name: tuple(field.name for field in fields(rule) if field.name in CHEAPER) for name, rule in rules.items() if rule}


def _spent(call: SiteCall) -> dict[str, int | None]:
    """FLOPs of inference, and the most bytes that a training step holds."""
    x = random_input(call)
    layers: Sequence[nn.Module] = (moved_layer(call), plain_layer(call))
    flops = [call.calls * flops_of(lambda layer=layer: _inference(layer, x)) for layer in layers]
    held = [peak_memory(lambda layer=layer: _step(layer, x), x.device) for layer in layers]
    return dict(zip(SPENT, (*flops, *held), strict=True))


@torch.no_grad()
def _inference(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)


@torch.enable_grad()
def _step(layer: nn.Module, x: Tensor) -> Sequence[Tensor | None]:
    wanted = [x.detach().requires_grad_(), *layer.parameters()]
    out = layer(wanted[0])
    return torch.autograd.grad(out, wanted, torch.ones_like(out), allow_unused=True)
