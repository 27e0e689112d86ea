"""What stands around a model and runs it: torch.compile, DataParallel, DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from ccrewrite.errors import InputError
from ccrewrite.ir.torch_private import submodules_of


def wrappers(model: nn.Module) -> Iterator[nn.Module]:
    """``model``, and what is inside it as long as that is wrapped; the model itself comes last."""
    yield model
    while (inside := _inside(model)) is not None:
        yield (model := inside)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside: wrappers put a prefix before every name, and take no attribute of their model's.

    >>> inside = nn.Linear(2, 2)
    >>> unwrapped(DataParallel(inside)) is inside
    True
    """
    *_, inside = wrappers(model)
    return inside


def uncompiled(model: nn.Module) -> nn.Module:
    """``model`` without torch.compile around it, but with whatever else is."""
    return model if _is_parallel(model) else _inside(model) or model


def require_bare(model: nn.Module, what: str) -> nn.Module:
    """``model``. Raises ``InputError`` where it is wrapped, for ``what`` changes it in place."""
    if unwrapped(model) is not model:
        raise InputError(
            f"{what} changes layers in place, and the {type(model).__name__} around them would not know it: "
            "give it the model inside, and wrap or compile that afterwards"
        )
    return model


def require_trainable(model: nn.Module, what: str) -> None:
    """Raises ``InputError`` where ``model`` was made inside ``torch.inference_mode``: ``what`` keeps its weights, which can't
    be trained."""
    name = next(
        (name for name, parameter in model.named_parameters() if not is_lazy(parameter) and parameter.is_inference()), None
    )
    if name is not None:
        raise InputError(
            f"{name} was made inside torch.inference_mode, so it can't be trained, and {what} would keep it: "
            "build or copy the model outside, or use torch.no_grad"
        )


def _is_parallel(model: nn.Module) -> bool:
    return isinstance(model, (DataParallel, DistributedDataParallel))


def _inside(model: nn.Module) -> nn.Module | None:
    if _is_parallel(model):
        return cast(nn.Module, model.module)
    # What torch.compile returns. Asking for its class would import all of dynamo.
    return submodules_of(model).get("_orig_mod") if type(model).__name__ == "OptimizedModule" else None
