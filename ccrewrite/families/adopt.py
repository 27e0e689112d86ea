"""Convolution layers with a ``Sampling``: how a torch layer becomes one of ours, and back.

A replacement layer is the torch layer itself with a ``sampling`` submodule and a class that uses it. The object, its
parameters, parametrizations, hooks and attributes stay; only the class changes. So every alias, optimizer and reference to
``model.conv`` keeps meaning what it meant.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar, Self, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from ccrewrite.errors import InputError
from ccrewrite.families.reroute import Rerouted, Route, rerouted_forward
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.geometry import ConvGeometry, Ints

TORCH_LAYERS: tuple[type[_ConvNd], ...] = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
HOSTED = "ccrewrite"
"""Name of the submodule that holds the samplings of a module's functional convolutions."""
LAYERS: dict[tuple[type[Sampling], type[_ConvNd]], type[RewrittenConv]] = {}
"""(sampling class, torch layer) -> our layer; filled as the layers are defined."""


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

    def forward(self, input: Any) -> Any:
        return input


class RewrittenConv(nn.Module):
    """Mixin for ``nn.ConvNd``: the convolution goes through ``self.sampling``; the rest of the layer is torch's own."""

    sampling: Sampling
    sampling_class: ClassVar[type[Sampling]]
    torch_class: ClassVar[type[_ConvNd]]
    replaced_class: ClassVar[type[_ConvNd]]
    """The class that the layer had before, and gets back: ``torch_class`` or a subclass of it."""

    def __init_subclass__(cls, *, replaces: type[_ConvNd] | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if replaces is not None:
            cls.torch_class = cls.replaced_class = replaces
            LAYERS[cls.sampling_class, replaces] = cls

    @classmethod
    def from_conv(cls, conv: nn.Module, **options: Any) -> Self:
        """This layer on ``conv``'s own parameters (shared, not copied), computing what ``conv`` computes.

        ``options`` are those of the sampling. Raises ``InputError`` where ``conv`` is no ``torch_class``.
        """
        if not isinstance(conv, cls.torch_class):
            raise InputError(f"{cls.__name__}.from_conv takes a torch.nn.{cls.torch_class.__name__}, found {_name(conv)}")
        if isinstance(conv, RewrittenConv):
            raise InputError(f"{cls.__name__}.from_conv takes a plain convolution, found {_name(conv)}: revert it first")
        if has_own_forward(type(conv)):
            raise InputError(f"{_name(conv)} has a forward of its own; ccrewrite.rewrite keeps it, from_conv would not")
        layer = conv.__new__(type(conv))
        for key, value in vars(conv).items():
            vars(layer)[key] = value.copy() if isinstance(value, dict) else value
        reference = next(conv.parameters())
        options = {"dtype": reference.dtype, "device": reference.device} | options
        return cast(Self, adopt_(layer, cls.sampling_class.of(ConvGeometry.from_module(conv), **options)))

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer = cast(_ConvNd, self)
        if isinstance(self, Rerouted):  # its forward's own convolution call is the one that the sampling takes
            return super()._conv_forward(input, weight, bias)  # pyright: ignore[reportAttributeAccessIssue]
        padding = layer.padding
        if layer.padding_mode != "zeros":
            input = F.pad(input, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
            padding = 0
        return self.sampling(input, weight, bias, layer.stride, padding, layer.dilation, layer.groups)


class RewrittenConvTranspose(RewrittenConv):
    """The same for ``nn.ConvTransposeNd``, whose forward takes an ``output_size``."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if isinstance(self, Rerouted):
            return super().forward(input, output_size)
        layer = cast(_ConvTransposeNd, self)
        extra: Any = layer.output_padding
        if output_size is not None:
            stride, padding, taps = (list(cast(Ints, v)) for v in (layer.stride, layer.padding, layer.kernel_size))
            extra = layer._output_padding(input, output_size, stride, padding, taps, len(taps), list(layer.dilation))
        arguments = layer.stride, layer.padding, extra, layer.groups, layer.dilation
        return self.sampling(input, layer.weight, layer.bias, *arguments)


MIXINS: dict[type[Sampling], tuple[type[RewrittenConv], type[RewrittenConv]]] = {
    Sampling: (RewrittenConv, RewrittenConvTranspose)
}
"""Sampling class -> what its layers are made with, a convolution's and a transposed one's; its subclasses' too."""


def adopt_(layer: _ConvNd, sampling: Sampling, routes: tuple[Route, ...] = ()) -> RewrittenConv:
    """Make ``layer``, a torch convolution, one that uses ``sampling``. In place.

    A subclass with its own forward keeps running it; ``routes`` says which of the calls in it is the sampling's.
    """
    _change_class_(layer, functools.partial(_adopted_class, type(sampling)))
    layer.add_module("sampling", sampling.train(layer.training))
    if isinstance(layer, Rerouted):
        vars(layer)["ccrewrite_routes"] = routes
    return cast(RewrittenConv, layer)


def release_(layer: RewrittenConv) -> _ConvNd:
    """The layer that ``adopt_`` was given, with the weights that it has now. In place.

    Where they are few taps in a window, it gets the kernel that these make, without what reaches beyond the original extent.
    """
    weight = layer._parameters.get("weight")
    if weight is not None and layer.sampling.own_weight:
        extent = (slice(m, m + k) for m, k in zip(layer.sampling.margin, layer.sampling.kernel_size, strict=True))
        kernel = layer.sampling.kernel(weight).detach()[(..., *extent)]
        layer._parameters["weight"] = nn.Parameter(kernel.contiguous(), requires_grad=weight.requires_grad)
    del layer._modules["sampling"]
    vars(layer).pop("ccrewrite_routes", None)
    _change_class_(layer, lambda _: layer.replaced_class)
    return cast(_ConvNd, layer)


def hosted_by(module: nn.Module) -> Samplings | None:
    """The samplings of ``module``'s functional convolutions; None where it has none."""
    found = module._modules[HOSTED] if HOSTED in module._modules else None  # noqa: SIM401 (ScriptModule's have no get)
    return found if isinstance(found, Samplings) else None


def host_(module: nn.Module, key: str, sampling: nn.Module, route: Route, suffix: str) -> None:
    """Send the functional convolutions that ``route`` takes, while ``module``'s forward runs, to ``sampling``. In place.

    ``suffix``: what the name of the site adds to the path of ``module`` (``ccrewrite.families.sites``)."""
    if HOSTED not in module._modules:
        _change_class_(module, _hosting_class)
        module.add_module(HOSTED, Samplings().train(module.training))
        vars(module)["ccrewrite_routes"] = ()
    cast(Samplings, module._modules[HOSTED]).put(key, sampling, suffix)
    vars(module)["ccrewrite_routes"] += (route,)


def unhost_(module: nn.Module, key: str | None = None) -> None:
    """Undo ``host_``, of one key or of all. In place."""
    samplings = cast(Samplings, module._modules[HOSTED])
    for name in list(samplings) if key is None else [key]:
        del samplings[name]
        kept = (r for r in vars(module)["ccrewrite_routes"] if r.sampling != f"{HOSTED}.{name}")
        vars(module)["ccrewrite_routes"] = tuple(kept)
    if not samplings:
        del module._modules[HOSTED]
        del vars(module)["ccrewrite_routes"]
        _change_class_(module, lambda hosting: hosting.__bases__[1])


def torch_layer(kind: type) -> type[_ConvNd] | None:
    """The ``nn.ConvNd`` or ``nn.ConvTransposeNd`` that ``kind`` is or descends from; None for other classes."""
    return next((layer for layer in TORCH_LAYERS if issubclass(kind, layer)), None)


def _layer_class(sampling_class: type[Sampling], torch_class: type[_ConvNd]) -> type[RewrittenConv]:
    """The family's own layer where it defines one, else one made of its sampling (of ``TurnedSampling``: ``TurnedConv2d``)."""
    known = LAYERS.get((sampling_class, torch_class))
    if known is not None:
        return known
    name = sampling_class.__name__.removesuffix("Sampling") + torch_class.__name__
    mixins = next(MIXINS[kind] for kind in sampling_class.__mro__ if kind in MIXINS)
    mixin = mixins[issubclass(torch_class, _ConvTransposeNd)]
    names = {"sampling_class": sampling_class, "__module__": sampling_class.__module__}
    return type(name, (mixin, torch_class), names, replaces=torch_class)  # pyright: ignore[reportCallIssue]


@functools.cache
def _adopted_class(sampling_class: type[Sampling], replaced: type[_ConvNd]) -> type[_ConvNd]:
    ours = _layer_class(sampling_class, cast(type[_ConvNd], torch_layer(replaced)))
    if replaced is ours.torch_class:
        return ours  # pyright: ignore[reportReturnType]
    names = {"replaced_class": replaced, "__reduce__": _reduce, "__module__": __name__}
    own = has_own_forward(replaced)
    if own:
        names["forward"] = rerouted_forward(replaced)
    bases = (Rerouted, replaced, ours) if own else (replaced, ours)
    return type(f"{ours.__name__}_{replaced.__name__}", bases, names)  # pyright: ignore[reportReturnType]


@functools.cache
def _hosting_class(base: type[nn.Module]) -> type[nn.Module]:
    # The name stays: frameworks look layers up by it (sharding and checkpoint lists, `architectures` in a saved config).
    names = {a: getattr(base, a) for a in ("__module__", "__qualname__", "__doc__")}
    return type(base.__name__, (Rerouted, base), {**names, "forward": rerouted_forward(base), "__reduce__": _reduce})


def _change_class_(module: nn.Module, change: Callable[[type[Any]], type[Any]]) -> None:
    """Give ``module`` the class ``change(its class)``, below the one that ``torch.nn.utils.parametrize`` puts on top."""
    if not parametrize.is_parametrized(module):
        module.__class__ = change(type(module))
        return
    base = change(type(module).__bases__[0])
    names = {k: v for k, v in vars(type(module)).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = cast(type[nn.Module], type(f"Parametrized{base.__name__}", (base,), names))


def _reduce(self: nn.Module) -> tuple[Any, ...]:
    if isinstance(self, RewrittenConv):
        return _revive, (type(self.sampling), self.replaced_class), self.__getstate__()
    return _revive, (None, type(self).__bases__[1]), self.__getstate__()


def _revive(sampling_class: type[Sampling] | None, base: type[Any]) -> nn.Module:
    kind = _hosting_class(base) if sampling_class is None else _adopted_class(sampling_class, base)
    return kind.__new__(kind)


def has_own_forward(kind: type) -> bool:
    """Whether a convolution class runs code of its own around the convolution (weight standardisation, masks, padding)."""
    above = kind.__mro__[: kind.__mro__.index(cast(type, torch_layer(kind)))]
    return any(vars(c).keys() & {"forward", "_conv_forward"} for c in above)


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
