"""PEFT's LoRA on rewritten convolutions: ``register_lora``.

PEFT's own layer for convolutions runs two more of them beside the layer, on the plain grid. Here what the adapter learns is
added to the weight before the layer is called, so that it is read where the geometry says. Merging is then the same sum.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ccrewrite.errors import InputError
from ccrewrite.families.adopt import RewrittenConv
from ccrewrite.families.methods import Rerouted
from ccrewrite.ir.torch_private import parameters_of

Config = TypeVar("Config")
PLAIN = (True, False, "gaussian")
"""The ways of drawing the factors that don't change the layer's own weight."""


def register_lora(config: Config) -> Config:
    """A ``peft.LoraConfig`` that now knows rewritten layers: give it to ``get_peft_model``.

    The adapter is of rank ``r`` in the weight as a matrix, its first dimension by all the others, for any number of groups and
    transposed convolutions too. Its sum with the weight goes through the layer's geometry, and ``merge_and_unload`` puts that
    sum in the weight's place: the same outputs within rounding. PEFT freezes all but its adapters; set ``requires_grad`` of the
    geometry to train it as well. A loaded adapter's config has to be registered again:
    ``PeftModel.from_pretrained(model, folder, config=register_lora(LoraConfig.from_pretrained(folder)))``.

    PEFT's ``get_peft_model`` then raises ``InputError`` for options that a weight's sum can't have: ``lora_bias``, values of
    ``init_lora_weights`` but True, False and "gaussian", layers whose weight is computed (a parametrization), ``lora_dropout``
    on layers with a forward of their own. PEFT itself refuses DoRA and other variants.

    Args:
        config: a ``peft.LoraConfig``, changed in place.

    Returns:
        ``config``.

    >>> from peft import LoraConfig, get_peft_model  # doctest: +SKIP
    >>> adapted = get_peft_model(rewritten, register_lora(LoraConfig(target_modules=["context"], r=4)))  # doctest: +SKIP
    >>> merged = adapted.merge_and_unload()  # once it is trained  # doctest: +SKIP
    """
    cast(Any, config)._register_custom_module({RewrittenConv: _lora_conv()})
    return config


class AdaptedConv:
    """A rewritten convolution and its adapters. Stands before ``nn.Module`` and PEFT's ``LoraLayer``, whose names these are."""

    base_layer: nn.Module
    lora_A: nn.ModuleDict  # noqa: N815 (PEFT's names)
    lora_B: nn.ModuleDict  # noqa: N815
    lora_dropout: nn.ModuleDict
    scaling: dict[str, float]
    merged_adapters: list[str]
    active_adapters: list[str]
    disable_adapters: bool
    merged: bool

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: Any, r: int, lora_alpha: int, **_: Any) -> None:
        nn.Module.__init__(cast(nn.Module, self))
        _peft().LoraLayer.__init__(self, base_layer)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config)

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: Any, **named: Any) -> None:
        """One more adapter."""
        layer = self._layer()
        name = f"{layer.sampling.site or type(layer).__name__}: LoRA"
        if "weight" not in parameters_of(layer):
            raise InputError(f"{name} needs a parameter as its weight, found one that is computed: remove its parametrization")
        if config.lora_bias:
            raise InputError(f"{name} with lora_bias=True would train the layer's bias: train that itself (bias='lora_only')")
        if config.init_lora_weights not in PLAIN:
            raise InputError(f"{name} takes init_lora_weights=True, False or 'gaussian', found {config.init_lora_weights!r}")
        if config.lora_dropout and isinstance(layer, Rerouted):
            raise InputError(f"{name} with lora_dropout can't be on a layer with a forward of its own: set it to 0")
        cast(Any, super()).update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **named)

    def forward(self, x: Tensor, *args: Any, adapter_names: object = None, **named: Any) -> Tensor:
        """As the layer's own."""
        if adapter_names is not None:
            raise InputError("a rewritten convolution can't take another adapter for each sample: run one adapter at a time")
        if self.disable_adapters and self.merged:
            self.unmerge()
        active = [] if self.disable_adapters or self.merged else [a for a in self.active_adapters if a in self.lora_A]
        dropped = [a for a in active if self._drops(a)]
        weight = cast(Tensor, self._layer().weight)
        added = [self.get_delta_weight(a) for a in active if a not in dropped]
        out = self._with_weight(sum(added, weight), x, *args, **named) if added else self._layer()(x, *args, **named)
        for adapter in dropped:
            partly = self.lora_dropout[adapter](x)
            out = out + self._with_weight(self.get_delta_weight(adapter), partly, *args, alone=True, **named)
        return out

    def _with_weight(self, weight: Tensor, x: Tensor, *args: Any, alone: bool = False, **named: Any) -> Tensor:
        """What the layer makes of ``x`` with another weight; ``alone``: without its bias."""
        layer = self._layer()
        changed = {"weight": weight}
        if alone and layer.bias is not None:
            changed["bias"] = torch.zeros_like(layer.bias)
        return functional_call(layer, changed, (x, *args), named)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What ``adapter`` adds to the weight, in its shape and dtype."""
        a, b, weight = self.lora_A[adapter].weight, self.lora_B[adapter].weight, cast(Tensor, self._layer().weight)
        product = cast(Tensor, b) @ cast(Tensor, a)
        return (product * self.scaling[adapter]).view_as(weight).to(weight.dtype)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put the sum in the weight's place. ``safe_merge``: raise ``ValueError`` where it is not finite."""
        for adapter in _peft_utils().check_adapters_to_merge(self, adapter_names):
            if adapter in self.lora_A:
                weight = cast(Tensor, self._layer().weight)
                found = weight + self.get_delta_weight(adapter)
                if safe_merge and not bool(found.isfinite().all()):
                    raise ValueError(f"the weights merged with the adapter {adapter} are not finite")
                weight.copy_(found)
                self.merged_adapters.append(adapter)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take it out again; equal but for rounding."""
        while self.merged_adapters:
            cast(Tensor, self._layer().weight).sub_(self.get_delta_weight(self.merged_adapters.pop()))

    def _layer(self) -> Any:
        return cast(Any, self).get_base_layer()

    def _drops(self, adapter: str) -> bool:
        dropout = self.lora_dropout[adapter]
        return dropout.training and not isinstance(dropout, nn.Identity)

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        weight = cast(Tensor, module.weight)
        return weight[0].numel(), weight.shape[0]

    def __repr__(self) -> str:
        return "lora." + nn.Module.__repr__(cast(nn.Module, self))


@functools.cache
def _lora_conv() -> type[nn.Module]:
    """``LoraConv``: made when it is first asked for, since PEFT is not among what the package needs."""
    return type("LoraConv", (AdaptedConv, nn.Module, _peft().LoraLayer), {"__module__": __name__})


def _peft() -> Any:
    return importlib.import_module("peft.tuners.lora.layer")


def _peft_utils() -> Any:
    return importlib.import_module("peft.tuners.tuners_utils")


def __getattr__(name: str) -> Any:
    """For unpickling."""
    if name == "LoraConv":
        return _lora_conv()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
