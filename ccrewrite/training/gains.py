"""Whether a fine-tuning run is long enough to gain by compiling its rewritten layers: a rough guess, from shapes alone."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from ccrewrite.errors import CcrewriteError
from ccrewrite.families.sites import rewritten_sites
from ccrewrite.ir.capture import Inputs
from ccrewrite.lowering.calls import site_calls
from ccrewrite.training.accelerating import Accelerated, sent, under_fsdp
from ccrewrite.training.batches import Batches, inputs_and_target
from ccrewrite.training.config import FinetuneConfig

SHORT = 200
"""Batches up to which no run gains: they take less time than compiling one layer."""
COMPILING = 10.0
"""Seconds to compile one kind of layer, forward and backward."""
ON_A_DEVICE = 5e-4
"""Seconds that one layer saves there, where launching its operators is what takes time. A guess: not measured."""


def gains(model: nn.Module, train: Batches, config: FinetuneConfig, accelerator: Accelerated) -> bool:
    """Whether what the layers save in all steps exceeds what compiling them takes. Runs the model once on the first batch,
    unless the run is short."""
    calls = config.epochs * len(train)
    known = rewritten_sites(model)
    if calls <= SHORT or not known or under_fsdp(accelerator):
        return False
    model.to(accelerator.device)
    inputs, _ = inputs_and_target(sent(next(train.epoch(0)).batch, accelerator))
    try:
        sites = site_calls(model, Inputs.of(inputs), {name: site.sampling for name, site in known.items()})
    except CcrewriteError as error:
        warnings.warn(f"the rewritten layers are not compiled: {error}", stacklevel=4)
        return False
    saved, kinds = 0.0, set[object]()
    for site in sites.values():
        form = site.sampling.form_alone(site.shapes, training=True)
        if form is not None:
            on_cpu = site.shapes.device.type == "cpu"
            each = site.sampling.saved_alone(site.shapes, training=True) / torch.get_num_threads()
            saved += each if on_cpu else ON_A_DEVICE
            kinds.add((type(site.sampling), form, site.sampling.geometry, site.inputs))
    return calls * saved > COMPILING * len(kinds)
