"""Functions that torch.compile takes as one operator, ``ccrewrite::region``, so that calls that are alike are compiled once.

What a layer's geometry becomes (positions, factors, kernels) is dozens of small operations, and the same ones in every layer.
Traced one by one they make torch.compile take half a second more for each layer. As operators they are opaque to it until
``ccrewrite.lowering.inductor`` puts their code in place, one subgraph for all calls with the same shapes and constants;
without that they run their code eagerly. The backward computes the forward's values again: they are small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from ccrewrite.ir.torch_private import transformed
from ccrewrite.ir.typed import Batch, Context, differentiated_, fake_of, mapped_over

Tensors = Sequence[Tensor]


class Region(NamedTuple):
    code: Callable[..., Tensor]
    """``(tensors, constants, numbers)`` -> the result, differentiable."""
    like: Callable[..., Tensor]
    """The same arguments -> an empty tensor of the result's shape and dtype."""


REGIONS: dict[str, Region] = {}


def called(opaque: bool) -> bool:
    """Whether what is traced now is to call operators: by torch.compile for itself, not for an export, where ``opaque`` says so
    or a transform (vmap) is around, inside which torch.compile takes no autograd function."""
    if not torch.compiler.is_dynamo_compiling() or torch.compiler.is_exporting():
        return False
    return opaque or transformed()


def traced() -> bool:
    """Whether torch.compile traces a call, outside of transforms: operators of whole convolutions don't know them."""
    return called(opaque=True) and not transformed()


def region(name: str, tensors: Tensors, constants: str, numbers: Sequence[int] = ()) -> Tensor:
    """``REGIONS[name]`` of ``tensors`` and of what else it takes. Differentiable once."""
    # Where autograd looks, torch.library takes an empty list for one of tensors.
    return torch.ops.ccrewrite.region(list(tensors), name, constants, list(numbers) or [0])


def region_of(tensors: Tensors, name: str, constants: str, numbers: Sequence[int]) -> Tensor:
    """What ``ccrewrite::region`` is made of."""
    return REGIONS[name].code(tensors, constants, numbers).contiguous()


def region_backward_of(
    gradient: Tensor,
    tensors: Tensors,
    name: str,
    constants: str,
    numbers: Sequence[int],
    wants: Sequence[bool],
) -> list[Tensor]:
    """What ``ccrewrite::region_backward`` is made of: the gradients of the tensors that ``wants`` names, in their order."""
    given = list(tensors)
    wanted = [i for i, want in enumerate(wants) if want]

    def code(*some: Tensor) -> Tensor:
        for i, tensor in zip(wanted, some, strict=True):
            given[i] = tensor
        return region_of(given, name, constants, numbers)

    # torch.func, for inside an operator autograd is off.
    gradients = torch.func.vjp(code, *(tensors[i] for i in wanted))[1]
    return [found.contiguous() for found in gradients(gradient)]


@torch.library.custom_op(
    "ccrewrite::region", mutates_args=(), schema="(Tensor[] tensors, str name, str constants, int[] numbers) -> Tensor"
)
def _region(tensors: Tensors, name: str, constants: str, numbers: Sequence[int]) -> Tensor:
    return region_of(tensors, name, constants, numbers).clone()


@torch.library.custom_op(
    "ccrewrite::region_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor[] tensors, str name, str constants, int[] numbers, bool[] wants) -> Tensor[]",
)
def _region_backward(
    gradient: Tensor,
    tensors: Tensors,
    name: str,
    constants: str,
    numbers: Sequence[int],
    wants: Sequence[bool],
) -> list[Tensor]:
    return [found.clone() for found in region_backward_of(gradient, tensors, name, constants, numbers, wants)]


@fake_of(_region)
def _(tensors: Tensors, name: str, constants: str, numbers: Sequence[int]) -> Tensor:
    return REGIONS[name].like(tensors, constants, numbers)


@fake_of(_region_backward)
def _(
    gradient: Tensor,
    tensors: Tensors,
    name: str,
    constants: str,
    numbers: Sequence[int],
    wants: Sequence[bool],
) -> list[Tensor]:
    wanted = [t for t, want in zip(tensors, wants, strict=True) if want]
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in wanted]


class _Kept(Context, Protocol):
    name: str
    constants: str
    numbers: Sequence[int]


def _setup_context(ctx: _Kept, inputs: tuple[Tensors, str, str, Sequence[int]], output: Tensor) -> None:
    tensors, ctx.name, ctx.constants, ctx.numbers = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: _Kept, gradient: Tensor) -> tuple[list[Tensor | None], None, None, None]:
    wants = list(cast("tuple[bool, ...]", ctx.needs_input_grad[0]))  # of a list of tensors, one answer for each
    saved = list(ctx.saved_tensors)
    found = iter(torch.ops.ccrewrite.region_backward(gradient, saved, ctx.name, ctx.constants, ctx.numbers, wants))
    return [next(found) if want else None for want in wants], None, None, None


differentiated_(_region, _differentiate, _setup_context)

Dims = Sequence[int | None]
"""Along which axis of each tensor the examples lie; None: it is of all of them."""


@mapped_over(_region)
def _(
    info: Batch, dims: Sequence[Dims], tensors: Tensors, name: str, constants: str, numbers: Sequence[int]
) -> tuple[Tensor, int]:
    each = (_one(tensors, dims[0], i) for i in range(info.batch_size))
    return torch.stack([torch.ops.ccrewrite.region(some, name, constants, numbers) for some in each]), 0


@mapped_over(_region_backward)
def _(
    info: Batch, dims: tuple[int | None, Dims, *tuple[None, ...]], gradient: Tensor, tensors: Tensors, *rest: object
) -> tuple[list[Tensor], list[int]]:
    each = (_one([gradient, *tensors], [dims[0], *dims[1]], i) for i in range(info.batch_size))
    found = [torch.ops.ccrewrite.region_backward(some[0], some[1:], *rest) for some in each]
    gradients = [torch.stack(alike) for alike in zip(*found, strict=True)]
    return gradients, [0] * len(gradients)


def _one(tensors: Tensors, dims: Sequence[int | None], index: int) -> list[Tensor]:
    """Those of the example at ``index`` of a batch that lies along ``dims``."""
    return [t if dim is None else t.select(dim, index) for t, dim in zip(tensors, dims, strict=True)]


EXPANSIONS: dict[object, Callable[..., object]] = {
    torch.ops.ccrewrite.region.default: region_of,
    torch.ops.ccrewrite.region_backward.default: region_backward_of,
}
"""Operator -> the code that stands in its place once Inductor compiles. A family adds its own operators here."""
