"""PEFT's adapters on rewritten layers. A tuner of PEFT's wraps a layer, ``tuner.base_layer``. It adds the convolution of a
weight of its own, a torch function called with the layer's stride, padding and dilation, and when it is merged it adds that
weight to the layer's. The layer would then sample it where its geometry is, and the branch did not.

So the branch's convolution is the layer's own, with another weight: what is linear in the weight stays the same when it is
merged. PEFT asks nothing of a layer that it wraps, so torch's hook for registered submodules tells of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.modules.module import register_module_module_registration_hook
from torch.overrides import TorchFunctionMode

from ccrewrite.errors import InputError
from ccrewrite.families.methods import Rerouted
from ccrewrite.families.sampling import Sampling
from ccrewrite.families.subclass import change_class_, subclass
from ccrewrite.ir.calls import as_call
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.names import paths
from ccrewrite.ir.torch_private import ConvNd, submodules_of

if TYPE_CHECKING:
    from ccrewrite.families.sites import RewrittenSite

ADAPTERS = (
    "to be merged into the weight later, but its branch would not have this layer's geometry: put adapters on the original and "
    "merge them before rewriting, or on what ccrewrite.fold returns. LoRA can be here: ccrewrite.training.register_lora(config)"
)
BRANCHES = ("adalora", "boft", "hira", "hra", "loha", "lokr")
"""Tuners that convolve with a weight of the layer's shape: with its change, or with the changed weight."""
SCALES = ("ia3",)
"""Tuners that scale channels before or after the layer: right on any geometry."""


def is_tuner(module: nn.Module) -> bool:
    """Whether ``module`` is a layer of PEFT's around another one."""
    return any(kind.__name__ == "BaseTunerLayer" for kind in type(module).__mro__)


def tuner_around(model: nn.Module, path: str) -> str | None:
    """Path of the outermost tuner that is, or holds, the module at ``path``, and doesn't scale channels alone; None where there
    is none."""
    around = ((p, nn.Module.get_submodule(model, p)) for p in paths(path))
    return next((p for p, module in around if is_tuner(module) and _method(module) not in SCALES), None)


def require_merged(model: nn.Module, sites: Iterable[RewrittenSite], what: str) -> None:
    """Raises ``InputError`` where one of ``sites`` is inside a tuner, whose branch ``what`` would lose."""
    for site in sites:
        if (tuner := tuner_around(model, site.path)) is not None:
            raise InputError(
                f"{tuner} is an adapter on the site {site.name}, whose branch needs its geometry: merge it first "
                f"(merge_and_unload), then {what}"
            )


def _method(tuner: nn.Module) -> str:
    """The method of PEFT's that ``tuner``, or what its class is made of, belongs to; empty: none."""
    kinds = (kind.__module__.split(".") for kind in type(tuner).__mro__)
    return next((parts[2] for parts in kinds if parts[:2] == ["peft", "tuners"] and len(parts) > 3), "")


def _routed(tuner: nn.Module) -> bool:
    return hasattr(tuner, "ccrewrite_replaced")


def _base(tuner: nn.Module) -> nn.Module:
    """The layer that ``tuner`` is about, below further tuners."""
    layer = tuner
    while is_tuner(layer):
        layer = cast(nn.Module, layer.base_layer)
    return layer


def _rewritten(layer: nn.Module) -> bool:
    return isinstance(layer, ConvNd) and isinstance(submodules_of(layer).get("sampling"), Sampling)


class _Branches(TorchFunctionMode):
    """While a tuner's forward runs: convolutions with a weight of the layer's shape are the layer's, with that weight."""

    def __init__(self, tuner: nn.Module) -> None:
        super().__init__()
        self.tuner, self.layer = tuner, _base(tuner)

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        call = None if issubclass(type(func), OpOverload) else as_call(func, args, kwargs)
        layer = cast(ConvNd, self.layer)
        # Folded or reverted, the layer is a plain one; a sampling's own operators are none of the tuner's.
        if call is None or not _rewritten(layer) or call.weight.shape != layer.weight.shape:
            return func(*args, **(kwargs or {}))
        made, own = call.geometry(call.weight.shape), replace(ConvGeometry.from_module(layer), padding_mode="zeros")
        if made != own:
            raise InputError(
                f"the adapter {type(self.tuner).__module__} convolves {made.describe()} on a {type(layer).__name__} of "
                f"{own.describe()}, so it could not be merged: put it on the original and merge it before rewriting"
            )
        return layer._conv_forward(call.input, call.weight, call.bias)  # pyright: ignore[reportPrivateUsage]


@functools.cache
def _branching_class(base: type[nn.Module]) -> type[nn.Module]:
    plain = cast(Callable[..., Tensor], base.forward)

    @functools.wraps(plain)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        with _Branches(self):
            return plain(self, *args, **kwargs)

    names = {a: getattr(base, a) for a in ("__module__", "__qualname__", "__doc__")}
    return subclass(base.__name__, (base,), {**names, "forward": forward, "__reduce__": _reduce, "ccrewrite_replaced": base})


def _reduce(self: Any) -> tuple[Any, ...]:
    return _revive, (self.ccrewrite_replaced,), self.__getstate__()


def _revive(base: type[nn.Module]) -> nn.Module:
    kind = _branching_class(base)
    return kind.__new__(kind)


def _wrapped(tuner: nn.Module, name: str, layer: nn.Module | None) -> None:
    """Told of every submodule that any module is given."""
    if name != "base_layer" or layer is None or not is_tuner(tuner) or not _rewritten(inner := _base(layer)):
        return
    method, conv = _method(tuner), cast(ConvNd, inner)
    if method in BRANCHES and not isinstance(inner, Rerouted) and conv.weight.shape[2:] == conv.kernel_size:
        if not _routed(tuner):
            change_class_(tuner, _branching_class)
    elif method not in SCALES and type(tuner).__module__.startswith("peft."):
        raise InputError(f"PEFT puts an adapter on a {type(inner).__name__}, {ADAPTERS}")


register_module_module_registration_hook(_wrapped)
