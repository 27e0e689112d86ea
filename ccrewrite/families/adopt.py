"""Convolution layers with a ``Sampling``: how a torch layer becomes one of ours, and back.

A replacement layer is the torch layer itself with a ``sampling`` submodule and a class that uses it. The object, its
parameters, parametrizations, hooks and attributes stay; only the class changes. So every alias, optimizer and reference to
``model.conv`` keeps meaning what it meant.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.families.adapters import ADAPTERS
from ccrewrite.families.methods import Rerouted, rerouted, rerouted_methods
from ccrewrite.families.reroute import Route
from ccrewrite.families.sampling import Sampling
from ccrewrite.families.subclass import change_class_, subclass
from ccrewrite.ir.geometry import Ints
from ccrewrite.ir.torch_private import ConvNd, ConvTransposeNd, border_of, output_padding_of, parameters_of, submodules_of

TORCH_LAYERS: tuple[type[ConvNd], ...] = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
HOSTED = "ccrewrite"
"""Name of the submodule that holds the samplings of a module's functional convolutions."""


class Samplings(nn.ModuleDict):
    """The samplings of a module's functional convolutions, by key. An ``nn.Sequential`` that is given them runs them as one of
    its layers, so as a layer they do nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.suffixes: dict[str, str] = {}
        """Key -> what the name of the site adds to the module's path (``ccrewrite.families.sites``)."""

    def put(self, key: str, sampling: nn.Module, suffix: str) -> None:
        self[key], self.suffixes[key] = sampling.train(self.training), suffix

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        del self.suffixes[key]

    def forward(self, input: object) -> object:
        return input


class RewrittenConv(nn.Module):
    """Mixin for ``nn.ConvNd``: the convolution goes through ``self.sampling``; the rest of the layer is torch's own.

    It stands below a user's class, whose attributes may have any name. So it brings none of its own but ``sampling``.
    """

    sampling: Sampling
    ccrewrite_replaced: ClassVar[type[ConvNd]]
    """The class that the layer had before, and gets back: torch's own or a subclass of it."""

    def reset_parameters(self) -> None:
        """Draw weight and bias anew as torch does, and the geometry where its sampling has ``reset_parameters``."""
        super().reset_parameters()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
        sampling: Any = self._modules.get("sampling")
        if hasattr(sampling, "reset_parameters"):  # torch's own constructor calls this before there is one
            sampling.reset_parameters()

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer = cast(ConvNd, self)
        if isinstance(self, Rerouted):  # its forward's own convolution call is the one that the sampling takes
            return cast(ConvNd, super())._conv_forward(input, weight, bias)  # pyright: ignore[reportPrivateUsage]
        padding = layer.padding
        if layer.padding_mode != "zeros":
            input = F.pad(input, border_of(layer), mode=layer.padding_mode)
            padding = 0
        return self.sampling(input, weight, bias, layer.stride, padding, layer.dilation, layer.groups)


class RewrittenConvTranspose(RewrittenConv):
    """The same for ``nn.ConvTransposeNd``, whose forward takes an ``output_size``."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if isinstance(self, Rerouted):
            return super().forward(input, output_size)
        layer = cast(ConvTransposeNd, self)
        extra: Sequence[int] = layer.output_padding
        if output_size is not None:
            stride, padding, taps = (list(cast(Ints, v)) for v in (layer.stride, layer.padding, layer.kernel_size))
            extra = output_padding_of(layer, input, output_size, stride, padding, taps, len(taps), list(layer.dilation))
        arguments = layer.stride, layer.padding, extra, layer.groups, layer.dilation
        return self.sampling(input, layer.weight, layer.bias, *arguments)


MIXINS: dict[type[Sampling], tuple[type[RewrittenConv], type[RewrittenConv]]] = {
    Sampling: (RewrittenConv, RewrittenConvTranspose)
}
"""Sampling class -> what its layers are made with, a convolution's and a transposed one's; its subclasses' too."""


def adopt_(layer: ConvNd, sampling: Sampling, weight: str | None = "weight") -> RewrittenConv:
    """Make ``layer``, a torch convolution, one that uses ``sampling``. In place.

    A subclass with methods of its own keeps running them, its forward too. Which of the calls in them are the sampling's,
    their weight says: ``"weight"``, or None where the layer's forward computes it.

    Raises ``InputError`` where it is rewritten already.
    """
    if isinstance(layer, RewrittenConv):
        raise InputError(f"expected a plain convolution, found a {type(layer).__name__}, which is rewritten already: revert it")
    change_class_(layer, functools.partial(_adopted_class, type(sampling)))
    layer.add_module("sampling", sampling.train(layer.training))
    if rerouted_methods(cast(RewrittenConv, layer).ccrewrite_replaced):
        if not isinstance(layer, Rerouted):
            weight = "weight" if "weight" in parameters_of(layer) else None
        vars(layer)["ccrewrite_routes"] = (Route.of("sampling", weight, sampling.geometry, any_padding=True),)
    return cast(RewrittenConv, layer)


def release_(layer: RewrittenConv) -> ConvNd:
    """The layer that ``adopt_`` was given, with the weights that it has now. In place.

    Where they are few taps in a window, it gets the kernel that these make, without what reaches beyond the original extent.
    """
    weight = parameters_of(layer).get("weight")
    if weight is not None and layer.sampling.own_weight:
        extent = (slice(m, m + k) for m, k in zip(layer.sampling.margin, layer.sampling.kernel_size, strict=True))
        kernel = layer.sampling.kernel(weight).detach()[(..., *extent)]
        parameters_of(layer)["weight"] = nn.Parameter(kernel.contiguous(), requires_grad=weight.requires_grad)
    del submodules_of(layer)["sampling"]
    vars(layer).pop("ccrewrite_routes", None)
    change_class_(layer, lambda kind: kind.ccrewrite_replaced)
    return cast(ConvNd, layer)


def hosted_by(module: nn.Module) -> Samplings | None:
    """The samplings of ``module``'s functional convolutions; None where it has none."""
    inside = submodules_of(module)
    found = inside[HOSTED] if HOSTED in inside else None  # noqa: SIM401 (ScriptModule's have no get)
    return found if isinstance(found, Samplings) else None


def host_(module: nn.Module, key: str, sampling: nn.Module, route: Route, suffix: str) -> None:
    """Send the functional convolutions that ``route`` takes, while ``module``'s forward runs, to ``sampling``. In place.

    ``suffix``: what the name of the site adds to the path of ``module`` (``ccrewrite.families.sites``)."""
    if hosted_by(module) is None:
        module.add_module(HOSTED, Samplings().train(module.training))
        vars(module)["ccrewrite_routes"] = ()
        change_class_(module, _hosting_class)
    cast(Samplings, hosted_by(module)).put(key, sampling, suffix)
    vars(module)["ccrewrite_routes"] += (route,)


def unhost_(module: nn.Module, key: str | None = None) -> None:
    """Undo ``host_``, of one key or of all. In place."""
    samplings = cast(Samplings, hosted_by(module))
    for name in list(samplings) if key is None else [key]:
        del samplings[name]
        kept = (r for r in vars(module)["ccrewrite_routes"] if r.sampling != f"{HOSTED}.{name}")
        vars(module)["ccrewrite_routes"] = tuple(kept)
    if not samplings:
        del submodules_of(module)[HOSTED]
        del vars(module)["ccrewrite_routes"]
        change_class_(module, lambda kind: kind.ccrewrite_replaced)


def torch_layer(kind: type) -> type[ConvNd] | None:
    """The ``nn.ConvNd`` or ``nn.ConvTransposeNd`` that ``kind`` is or descends from; None for other classes."""
    return next((layer for layer in TORCH_LAYERS if issubclass(kind, layer)), None)


def _name_of(sampling_class: type[Sampling], replaced: type[ConvNd]) -> str:
    """Of the class: ``CCConv2d``, ``DclsConv2d_WSConv2d``; of ``TurnedSampling``: ``TurnedConv2d``."""
    name = sampling_class.__name__.removesuffix("Sampling") + cast(type[ConvNd], torch_layer(replaced)).__name__
    return name if replaced in TORCH_LAYERS else f"{name}_{replaced.__name__}"


@functools.cache
def _adopted_class(sampling_class: type[Sampling], replaced: type[ConvNd]) -> type[ConvNd]:
    transposed = issubclass(replaced, ConvTransposeNd)
    mixin = next(MIXINS[kind] for kind in sampling_class.__mro__ if kind in MIXINS)[transposed]
    names: dict[str, Any] = {"ccrewrite_replaced": replaced, "__init__": _refuse, "__reduce__": _reduce, "__module__": __name__}
    if replaced in TORCH_LAYERS:
        return subclass(_name_of(sampling_class, replaced), (mixin, replaced), names | {"__setattr__": _set_attribute})
    # The mixin goes below the user's class: above torch's, whose methods it stands for.
    below = subclass(mixin.__name__, (mixin, cast(type[ConvNd], torch_layer(replaced))), {"__module__": __name__})
    bases = (replaced, below)
    if has_own_forward(replaced):
        bases, names["forward"] = (Rerouted, *bases), rerouted(replaced.forward)
    return subclass(_name_of(sampling_class, replaced), bases, names | rerouted_methods(replaced))


@functools.cache
def _hosting_class(base: type[nn.Module]) -> type[nn.Module]:
    # The name stays: frameworks look layers up by it (sharding and checkpoint lists, `architectures` in a saved config).
    names = {a: getattr(base, a) for a in ("__module__", "__qualname__", "__doc__")}
    names |= {"forward": rerouted(base.forward), **rerouted_methods(base)}
    names |= {"ccrewrite_replaced": base, "__reduce__": _reduce}
    return subclass(base.__name__, (Rerouted, base), names)


def _refuse(self: RewrittenConv, *arguments: Any, **named: Any) -> None:
    raise InputError(
        f"{type(self).__name__} is what ccrewrite made of a {type(self).ccrewrite_replaced.__name__}, and can't be built from "
        f"its class. An adapter (LoRA) does that, {ADAPTERS}"
    )


def _set_attribute(self: RewrittenConv, name: str, value: Any) -> None:
    sampling = vars(self).get("_modules", {}).get("sampling")
    if isinstance(sampling, Sampling) and not hasattr(self, name) and name in sampling.settable():
        raise InputError(f"{name} of a rewritten layer is its sampling's: set layer.sampling.{name}; found {name} = {value!r}")
    nn.Module.__setattr__(self, name, value)


def _reduce(self: Any) -> tuple[Any, ...]:
    base = self.ccrewrite_replaced
    return _revive, (type(self.sampling) if isinstance(self, RewrittenConv) else None, base), self.__getstate__()


def _revive(sampling_class: type[Sampling] | None, base: type[Any]) -> nn.Module:
    kind = _hosting_class(base) if sampling_class is None else _adopted_class(sampling_class, base)
    return kind.__new__(kind)


def has_own_forward(kind: type) -> bool:
    """Whether a convolution class runs code of its own around the convolution (weight standardisation, masks, padding)."""
    above = kind.__mro__[: kind.__mro__.index(cast(type, torch_layer(kind)))]
    return any(vars(c).keys() & {"forward", "_conv_forward"} for c in above)
