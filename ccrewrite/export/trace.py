"""A model through torch's exporter, and what makes the graph that comes out small: ``traced``, ``optimised``."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ccrewrite.errors import ExportError, InputError
from ccrewrite.export.examples import arguments, named_axes
from ccrewrite.export.sizes import SizePlan
from ccrewrite.export.traced_sizes import SIZES
from ccrewrite.export.translations import translations
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.threads import quiet
from ccrewrite.passes.targets import ANY

NO_LIMIT = 2**40
"""For constant folding: the optimizer's own limits leave kernel constructions of a few channels in the graph."""

Dynamic = Mapping[Any, Any] | None
Shapes = dict[str, Any]
"""By argument, the names of its open axes, as ``torch.export`` takes them."""


def dynamic_shapes(model: nn.Module, inputs: Inputs, dynamic: Dynamic) -> Shapes | None:
    """``dynamic`` as ``export_onnx`` takes it, for all arguments; None where nothing is open. Raises ``InputError`` where it
    names no argument or no axis."""
    if not dynamic:
        return None
    if not isinstance(dynamic, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"dynamic must map axes to names, or arguments to such mappings; found {dynamic!r}")
    found = arguments(model, inputs)
    named = dict(dynamic)
    if all(isinstance(axis, int) for axis in named):
        first = next((n for n, v in found.items() if isinstance(v, Tensor)), None)
        if first is None:
            raise InputError(f"dynamic={dynamic!r} names no argument, and none of {', '.join(found)} is a tensor")
        named = {first: named}
    for name, axes in named.items():
        value = found.get(name)
        if not isinstance(value, Tensor):
            raise InputError(f"dynamic names {name!r}, which is no tensor argument; the arguments are {', '.join(found)}")
        if not isinstance(axes, Mapping):
            raise InputError(f"dynamic[{name!r}] must map axes 0 to {value.dim() - 1} to names, found {axes!r}")
        for axis, label in cast("Mapping[object, object]", axes).items():
            if axis not in range(value.dim()) or not (isinstance(label, str) and label.isidentifier()):
                raise InputError(f"dynamic[{name!r}] must map axes 0 to {value.dim() - 1} to names, found {axis!r}: {label!r}")
    return {name: dict(named[name]) if name in named else tree_map(_closed, value) for name, value in found.items()}


def _closed(_: object) -> None:
    """No axis of a tensor is open."""


def traced(model: nn.Module, inputs: Inputs, shapes: Shapes | None, opset: int, sizes: SizePlan | None) -> Any:
    """``model``, which takes the sizes that ``sizes`` has as inputs, as a graph of onnx_ir. Raises ``ExportError`` where torch
    can't."""
    if sizes is None or not sizes.inputs:
        return _exported(model, inputs, inputs.kwargs, shapes, opset)
    from ccrewrite.export.inputs import ask_for_sizes_, name_axes_

    # torch takes names of axes only where all that is open is an axis: the names are put in afterwards.
    given = arguments(model, Inputs(inputs.args, {**inputs.kwargs, SIZES: dict[str, int]()}))
    del given[SIZES]
    named = {n: named_axes(shapes[n]) if shapes else {} for n in given}
    hint, example = torch.export.Dim.DYNAMIC, sizes.examples()
    shapes = {n: dict.fromkeys(named[n], hint) if named[n] else tree_map(_closed, v) for n, v in given.items()}
    shapes[SIZES] = dict.fromkeys(example, hint)
    graph = _exported(model, inputs, inputs.kwargs | {SIZES: example}, shapes, opset)
    name_axes_(graph, [named[n] for n, v in given.items() for t in tree_leaves(v) if isinstance(t, Tensor)])
    ask_for_sizes_(graph, sizes.inputs)
    return graph


def _exported(model: nn.Module, inputs: Inputs, kwargs: Mapping[str, object], shapes: Shapes | None, opset: int) -> Any:
    try:
        program: Any = torch.onnx.export(  # pyright: ignore[reportUnknownMemberType]
            model, inputs.args, kwargs=dict(kwargs), dynamo=True, verbose=False, opset_version=opset, optimize=False,
            dynamic_shapes=shapes, custom_translation_table=translations(),
        )  # fmt: skip
    except Exception as error:
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:300]
        name = type(model).__name__
        raise ExportError(f"torch can't export {name} to ONNX: {type(cause).__name__}: {reason}") from error
    return program.model


def optimised(model: Any, opset: int, *, learned: Iterable[str], gathered: bool, uneven: tuple[int, ...] = ANY) -> Any:
    """The same graph with all that is constant computed, in forms that every runtime takes. ``learned``: initializers that stay
    apart, though their values may be equal. ``gathered``: it gathers products, and then large indices stay as they are.
    ``uneven``: the numbers of axes for which the pads of a transposed convolution may differ from side to side. Raises
    ``ExportError`` where it is of another operator set than ``opset``."""
    from onnx_ir.passes.common import LiftConstantsToInitializersPass
    from onnxscript import optimizer

    from ccrewrite.export.graph import crop_transposed_, unify_types_, unwrap_pads_

    limits: Any = {"input_size_limit": NO_LIMIT, "output_size_limit": NO_LIMIT}
    # First what is constant, for the optimizer's patterns take time by the square of the number of nodes.
    optimizer.fold_constants(model, **limits, should_fold=_worth_keeping)  # pyright: ignore[reportUnknownMemberType]
    optimizer.remove_unused_nodes(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    if gathered:
        limits = {"output_size_limit": 1024}  # by size alone: the optimizer asks nobody
    limits["inline"] = not model.functions
    # The optimizer makes one of equal initializers, except where they are inputs as well.
    apart = [model.graph.initializers[name] for name in learned if name in model.graph.initializers]
    model.graph.inputs.extend(apart)
    file = optimizer.optimize(model, **limits)
    if unwrap_pads_(file) + crop_transposed_(file, uneven):
        file = optimizer.optimize(file, **limits)
    for value in apart:
        file.graph.inputs.remove(value)
    unify_types_(file)
    written = file.opset_imports.get("")
    if written != opset:
        raise ExportError(f"opset {opset} was asked for, but torch wrote opset {written}; ask for that one")
    return file


def _worth_keeping(node: Any) -> bool | None:
    """Not where products are gathered, an index for every output: large, and quickly computed of what makes it."""
    ahead = [node]
    for _ in range(3):  # Add, Reshape or Cast, Expand
        ahead = [user for n in ahead for output in n.outputs for user, _ in output.uses()]
        if any(user.op_type == "GatherElements" for user in ahead):
            return False
    return None


@contextmanager
def quiet_exporter() -> Generator[None]:
    """Without what torch's exporter logs and prints about itself, and the optimizer of initializers that stay apart."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir")]
    levels = [log.level for log in logs]
    with quiet():
        for log in logs:
            log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for log, level in zip(logs, levels, strict=True):
                log.setLevel(level)
