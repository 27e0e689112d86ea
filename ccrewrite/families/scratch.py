"""Layers that are built from scratch, with their own constructor: ``ScratchConv``, the base of ``CCConv2d`` and the like."""

from __future__ import annotations

import inspect
from typing import ClassVar, Self, cast

from torch import nn

from ccrewrite.errors import InputError
from ccrewrite.families.adapters import ADAPTERS
from ccrewrite.families.adopt import RewrittenConv, has_own_forward
from ccrewrite.families.sampling import Sampling
from ccrewrite.families.subclass import change_class_, subclass
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.torch_private import ConvNd


class ScratchConv(RewrittenConv):
    """A layer whose class people name and build: ``class DclsConv2d(DclsConv, nn.Conv2d, replaces=nn.Conv2d)``. ``rewrite``
    makes classes of its own, on top of the user's, which are none of these."""

    sampling_class: ClassVar[type[Sampling]]
    torch_class: ClassVar[type[ConvNd]]

    def __init_subclass__(cls, *, replaces: type[ConvNd] | None = None, **options: object) -> None:
        super().__init_subclass__(**options)
        if replaces is not None:
            cls.torch_class = cls.ccrewrite_replaced = replaces

    @classmethod
    def from_conv(cls, conv: nn.Module, **options: object) -> Self:
        """This layer on ``conv``'s own parameters (shared, not copied), computing what ``conv`` computes.

        ``options`` are those of the sampling. Raises ``InputError`` where ``conv`` is no ``torch_class``, or has a forward of
        its own, or an attribute of the name of one of this class's.
        """
        if not isinstance(conv, cls.torch_class):
            raise InputError(f"{cls.__name__}.from_conv takes a torch.nn.{cls.torch_class.__name__}, found {_name(conv)}")
        if isinstance(conv, RewrittenConv):
            raise InputError(f"{cls.__name__}.from_conv takes a plain convolution, found {_name(conv)}: revert it first")
        if has_own_forward(type(conv)):
            raise InputError(f"{_name(conv)} has a forward of its own; ccrewrite.rewrite keeps it, from_conv would not")
        taken = [name for name in dir(cls) if hasattr(conv, name) and not hasattr(cls.torch_class, name)]
        if taken:
            raise InputError(f"{_name(conv)} has an attribute of its own called {taken[0]}; ccrewrite.rewrite keeps it")
        layer = conv.__new__(type(conv))
        for key, value in vars(conv).items():
            vars(layer)[key] = value.copy() if isinstance(value, dict) else value
        reference = next(conv.parameters())
        options = {"dtype": reference.dtype, "device": reference.device} | options
        sampling = cls.sampling_class.of(ConvGeometry.from_module(conv), **options)
        change_class_(layer, cls._made_of)
        layer.add_module("sampling", sampling.train(layer.training))
        return cast(Self, layer)

    @classmethod
    def _made_of(cls, replaced: type[ConvNd]) -> type[Self]:
        if replaced is cls.torch_class:
            return cls
        return subclass(f"{cls.__name__}_{replaced.__name__}", (replaced, cls), {"ccrewrite_replaced": replaced})


def refuse_adapters(layer: nn.Module) -> None:
    """Raise ``InputError`` where ``layer``'s constructor, which calls this, was called by an adapter of PEFT's: that builds its
    branches of the layer's own class."""
    frame = inspect.currentframe()
    while frame is not None and (first := frame.f_code.co_varnames[:1]) and frame.f_locals.get(first[0]) is layer:
        frame = frame.f_back
    if frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == "peft":
        raise InputError(f"PEFT builds a {type(layer).__name__} for an adapter, {ADAPTERS}")


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
