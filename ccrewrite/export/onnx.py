"""Rewritten model -> a verified ONNX file of standard operators: ``export_onnx``."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from glob import escape
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ccrewrite.errors import ExportError, InputError
from ccrewrite.export.check import arguments, at_other_sizes, checked, named_axes
from ccrewrite.export.files import replacing, require_packages, save, writable
from ccrewrite.export.report import ExportReport
from ccrewrite.export.sizes import SIZES, Mode, Sizes, without_sizes
from ccrewrite.export.translations import translations
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.sites import ROOT
from ccrewrite.passes.fold.fold import find, fold, sampling_at
from ccrewrite.passes.fold.sites import FoldedSite
from ccrewrite.passes.scales.sizes import samplings_of
from ccrewrite.passes.substitute import copied

NO_LIMIT = 2**40
"""For constant folding: the optimizer's own limits leave kernel constructions of a few channels in the graph."""

BFLOAT16_SINCE = 22
"""Operator set."""

Dynamic = Mapping[Any, Any] | None


@torch.no_grad()
def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any,
    *,
    dynamic: Dynamic = None,
    sizes: Mode = "fixed",
    functions: bool = False,
    opset: int = 20,
    check_inputs: Sequence[Any] = (),
    tolerance: float | None = None,
) -> ExportReport:
    """Write ``model``, folded, as an ONNX file that has proved to compute the same; what was found out about it.

    Rewritten layers are folded first (``ccrewrite.fold``), so that the file has plain convolutions, and all that is constant is
    computed. ``example_inputs`` as ``ccrewrite.rewrite``'s. ``dynamic`` names the axes whose size may vary, by argument:
    ``{"x": {0: "batch", 2: "height"}}``; for a single input, ``{0: "batch"}`` will do.

    ``sizes`` says what becomes of the sizes inside the model (``ccrewrite.scale_groups``):

    - "fixed": those that it has for the example inputs. Where nothing was resized, all layers are plain convolutions, which
      take inputs of any size.
    - "ratio": they follow the input's, at the ratios that ``ccrewrite.resize_`` or the layers' ``scale`` have set.
    - "input": the file has one more input for each scale group that is free, ``report.size_inputs``: int64, the output size of
      the group's first site. 0 leaves a size to the original's arithmetic.

    With ``functions``, DCLS layers whose interpolation is linear stay what they are, calls of a function in the file,
    ``ccrewrite::DclsConv``, with their positions as an initializer; so do CC layers of open sizes (``ccrewrite::CCConv``). Some
    runtimes take no functions.

    The file is checked (``onnx.checker``, shapes inferred) and run in onnxruntime against ``model`` itself in evaluation mode:
    on the example inputs, on ``check_inputs`` (more inputs of the same form), and with ``dynamic`` also at another size of
    every named axis, for a size may have been taken for a constant; with sizes="input" each of them at several internal sizes.
    It is written under a temporary name and moved to ``path`` when all of that went well. ``tolerance``: the largest difference
    allowed, relative to an output's largest magnitude; None: 1e-4, in float16 1e-2, in bfloat16 5e-2.

    onnxruntime's CPU has no convolutions of bfloat16 and float64: of such a model's file, which has its type, a copy in float32
    is run (``RunCheck.in_float32``). bfloat16 needs ``opset=22``; both need sizes="fixed" and no ``functions``.

    Raises ``InputError`` for arguments that can't be used, where a package is missing (extra ``onnx``) or the file can't be
    written, ``ExportError`` where torch can't export the model or the file failed a check. ``path`` is untouched then.

    >>> import ccrewrite, tempfile
    >>> model, x = nn.Conv1d(2, 3, 3, dilation=2), torch.randn(1, 2, 16)
    >>> rewritten = ccrewrite.rewrite(model, x).model
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     report = export_onnx(rewritten, f"{directory}/model.onnx", x, dynamic={0: "batch", 2: "length"})
    >>> [check.shapes["input"] for check in report.checks], report.ops_after
    ([(1, 2, 16), (2, 2, 24)], {'Conv': 1})
    """
    require_packages()
    if sizes not in get_args(Mode):
        raise InputError(f"sizes must be one of {', '.join(get_args(Mode))}, found {sizes!r}")
    target = writable(Path(path))
    inputs = Inputs.of(example_inputs)
    if any(t.is_meta for t in model.parameters()):
        raise InputError("the model is on the meta device: there are no weights to export")
    if opset < BFLOAT16_SINCE and any(t.dtype == torch.bfloat16 for t in model.parameters()):
        raise InputError(f"ONNX has convolutions of bfloat16 since operator set {BFLOAT16_SINCE}, found opset={opset}")
    open_sizes = Sizes.of(model, inputs, sizes) if sizes != "fixed" else None
    operators: dict[str, Any] = open_sizes.operators if open_sizes else {}
    exported, sites = _folded(model, inputs, open_sizes, operators if functions else None)
    runs = [inputs, *(Inputs.of(more) for more in check_inputs)]
    shapes = _dynamic_shapes(model, inputs, dynamic)
    if shapes is not None:
        runs.append(at_other_sizes(model, inputs, shapes))
    with _quiet():
        program = _export(exported, inputs, arguments(model, inputs), shapes, opset, open_sizes, operators, functions)
        file, before, after = _optimised(program, opset, sites)
    with replacing(target) as temporary:
        save(file, temporary)
        checks = checked(model, temporary, runs, open_sizes, tolerance)
        size = sum(f.stat().st_size for f in temporary.parent.iterdir())
    import onnxruntime

    runtime = f"onnxruntime {onnxruntime.__version__}"
    asked = open_sizes.inputs if open_sizes else ()
    return ExportReport(str(target), opset, size, runtime, checks, before, after, sites, asked)


def _folded(
    model: nn.Module, inputs: Inputs, sizes: Sizes | None, called: dict[str, Any] | None
) -> tuple[nn.Module, tuple[FoldedSite, ...]]:
    """A copy of ``model`` in evaluation mode, and what became of each site: folded, but for those whose sizes stay open and
    those that are to be ``called``, which gets what they compute."""
    if not find(model):
        return copied(model).eval(), ()
    kept: dict[str, tuple[str, str]] = {}
    if sizes:
        model = without_sizes(model) if sizes.groups else model
        known = {id(s) for n, s in samplings_of(model).items() if n in sizes.sites}
        follows = ("size-input", "its output size is an input, or follows one")
        answer = follows if sizes.inputs else ("size-ratio", "its output size follows the input's")
        kept |= {n: answer for n, place in find(model).items() if id(sampling_at(model, place)) in known}
    if called is not None:
        from ccrewrite.export.called import callable_as_function

        places = find(model).items()
        kept |= {n: ("function", "DclsConv") for n, p in places if callable_as_function(sampling_at(model, p))}
    sites: dict[str, FoldedSite] = {}
    if len(kept) < len(find(model)):
        result = fold(model, inputs, exclude=[escape(n) for n in kept])
        if not result.check.ok:
            raise ExportError(f"the folded model differs from the rewritten one:\n{result}")
        model, sites = result.model, {s.name: s for s in result.sites}
    for name, (code, message) in kept.items():
        place = find(model)[name]
        layer = type(model.get_submodule(place.module)).__name__.removeprefix("Parametrized")
        sites[name] = FoldedSite(name, layer, sampling_at(model, place).window, code, message)
    model = copied(model).eval()
    if sizes:
        from ccrewrite.export.sized import size_

        size_(model, sizes)
    if called is not None:
        from ccrewrite.export.called import call_

        call_(model, called)
    return model, tuple(sites.values())


@contextmanager
def _quiet() -> Generator[None]:
    """What torch's exporter logs and prints about itself."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)


def _dynamic_shapes(model: nn.Module, inputs: Inputs, dynamic: Dynamic) -> dict[str, Any] | None:
    if not dynamic:
        return None
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
        for axis, label in axes.items():
            if axis not in range(value.dim()) or not (isinstance(label, str) and label.isidentifier()):
                raise InputError(f"dynamic[{name!r}] must map axes 0 to {value.dim() - 1} to names, found {axis!r}: {label!r}")
    return {name: dict(named[name]) if name in named else tree_map(lambda _: None, value) for name, value in found.items()}


def _export(
    model: nn.Module,
    inputs: Inputs,
    given: Mapping[str, Any],
    shapes: dict[str, Any] | None,
    opset: int,
    sizes: Sizes | None,
    operators: Mapping[str, Any],
    functions: bool,
) -> Any:
    """``given``: the arguments by their names. ``operators``: what nodes of our own compute."""
    kwargs = inputs.kwargs
    axes: list[dict[int, str]] = []
    if sizes and sizes.inputs:
        # torch takes names of axes only where all that is open is an axis: the names are put in afterwards.
        named = {n: named_axes(shapes[n]) if shapes else {} for n in given}
        axes = [named[n] for n, v in given.items() for t in tree_leaves(v) if isinstance(t, Tensor)]
        hint = torch.export.Dim.DYNAMIC
        shapes = {n: dict.fromkeys(named[n], hint) if named[n] else tree_map(lambda _: None, v) for n, v in given.items()}
        example = sizes.examples()
        shapes[SIZES], kwargs = dict.fromkeys(example, hint), kwargs | {SIZES: example}
    try:
        program: Any = torch.onnx.export(
            model, inputs.args, kwargs=kwargs, dynamo=True, verbose=False, opset_version=opset, optimize=False,
            dynamic_shapes=shapes, custom_translation_table=translations(),
        )  # fmt: skip
    except Exception as error:
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:300]
        name = type(model).__name__
        raise ExportError(f"torch can't export {name} to ONNX: {type(cause).__name__}: {reason}") from error
    if operators:
        from ccrewrite.export.functions import expand_

        expand_(program.model, operators, functions=functions)
    if sizes and sizes.inputs:
        from ccrewrite.export.inputs import ask_for_sizes_, name_axes_

        name_axes_(program.model, axes)
        ask_for_sizes_(program.model, sizes.inputs)
    return program


def _worth_keeping(node: Any) -> bool | None:
    """Not where products are gathered, an index for every output: large, and quickly computed of what makes it."""
    ahead = [node]
    for _ in range(3):  # Add, Reshape or Cast, Expand
        ahead = [user for n in ahead for output in n.outputs for user, _ in output.uses()]
        if any(user.op_type == "GatherElements" for user in ahead):
            return False
    return None


def _optimised(program: Any, opset: int, sites: Sequence[FoldedSite]) -> tuple[Any, dict[str, int], dict[str, int]]:
    from onnx_ir.passes.common import LiftConstantsToInitializersPass
    from onnxscript import optimizer

    from ccrewrite.export import graph

    before = graph.histogram(program.model)
    limits: Any = {"input_size_limit": NO_LIMIT, "output_size_limit": NO_LIMIT}
    # First what is constant, for the optimizer's patterns take time by the square of the number of nodes.
    optimizer.fold_constants(program.model, **limits, should_fold=_worth_keeping)
    optimizer.remove_unused_nodes(program.model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(program.model)
    if any(s.code == "gathered" for s in sites):
        limits = {}  # the optimizer's own: it asks nobody
    limits["inline"] = not program.model.functions
    file = optimizer.optimize(program.model, **limits)
    if graph.unwrap_pads_(file) + graph.crop_transposed_(file):
        file = optimizer.optimize(file, **limits)
    graph.unify_types_(file)
    written = file.opset_imports.get("")
    if written != opset:
        raise ExportError(f"opset {opset} was asked for, but torch wrote opset {written}; ask for that one")
    origins = {"" if s.name == ROOT else s.name: f"{s.layer}, window {'x'.join(map(str, s.window))}: {s.code}" for s in sites}
    graph.annotate_(file, origins)
    return file, before, graph.histogram(file)
