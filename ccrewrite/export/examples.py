"""Example inputs at other sizes of their open axes: to trace a model with, and to check its file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from ccrewrite.errors import InputError, ModelRunError
from ccrewrite.ir.capture import Inputs
from ccrewrite.passes.verify import outputs_of

OTHER_SIZES: tuple[Callable[[int], int], ...] = (
    lambda n: n + max(1, n // 2),
    lambda n: n + 32,
    lambda n: 2 * n,
    lambda n: 2 * n - 1,
    lambda n: n + 1,
)
"""To try in place of an example's: networks want multiples of powers of two, or sizes that differ from them by as much."""


def arguments(model: nn.Module, inputs: Inputs) -> dict[str, object]:
    """The arguments by the names that ``model.forward`` has for them."""
    try:
        return dict(inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs).arguments)
    except TypeError as error:
        raise InputError(f"{type(model).__name__} can't be called with the example inputs: {error}") from error


def named_axes(axes: object) -> dict[int, str]:
    """The names of an argument's open axes; none where ``axes`` says nothing of them."""
    named = cast("dict[int, str]", axes) if isinstance(axes, dict) else {}
    return named if all(isinstance(label, str) for label in named.values()) else {}  # pyright: ignore[reportUnnecessaryIsInstance]


def at_other_sizes(model: nn.Module, inputs: Inputs, shapes: Mapping[str, object]) -> Inputs:
    """The example inputs at another size of every named axis, one that ``model`` runs at. Values are repeated or cut."""
    sizes, error = _open_sizes(model, inputs, shapes), None
    for grow in OTHER_SIZES:
        if any(grow(n) == n for n in sizes.values()):
            continue
        candidate = _at(model, inputs, shapes, {label: grow(n) for label, n in sizes.items()})
        try:
            outputs_of(model, candidate)
        except ModelRunError as raised:
            error = raised
        else:
            return candidate
    raise InputError(
        f"the model ran at no other size of {', '.join(sizes)} that was tried; pass check_inputs, or leave them out of dynamic"
    ) from error


def without_ones(model: nn.Module, inputs: Inputs, shapes: Mapping[str, object]) -> Inputs:
    """The example inputs with 2 in place of 1 along named axes, where ``model`` runs so: where an axis is 1, torch's tracer
    takes some products of matrices, ``w @ x`` with a constant ``w``, for proof that it is always 1."""
    sizes = _open_sizes(model, inputs, shapes)
    if 1 not in sizes.values():
        return inputs
    candidate = _at(model, inputs, shapes, {label: max(n, 2) for label, n in sizes.items()})
    try:
        outputs_of(model, candidate)
    except ModelRunError:
        return inputs
    return candidate


def _open_sizes(model: nn.Module, inputs: Inputs, shapes: Mapping[str, object]) -> dict[str, int]:
    """By the names of the open axes."""
    found = arguments(model, inputs)
    named = {name: named_axes(axes) for name, axes in shapes.items()}
    return {label: cast(Tensor, found[n]).shape[axis] for n, axes in named.items() for axis, label in axes.items()}


def _at(model: nn.Module, inputs: Inputs, shapes: Mapping[str, object], sizes: Mapping[str, int]) -> Inputs:
    found = arguments(model, inputs)
    changed = {n: _resized(v, named_axes(shapes[n]), sizes) for n, v in found.items()}
    args = tuple(changed[n] for n in list(found)[: len(inputs.args)])
    return Inputs(args, {n: changed[n] for n in inputs.kwargs})


def _resized(value: object, axes: Mapping[int, str], sizes: Mapping[str, int]) -> object:
    for axis, label in axes.items():
        tensor = cast(Tensor, value)
        value = tensor.index_select(axis, torch.arange(sizes[label], device=tensor.device) % tensor.shape[axis])
    return value
