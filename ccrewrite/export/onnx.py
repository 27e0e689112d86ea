"""Rewritten model -> a verified ONNX file of standard operators: ``export_onnx``."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ccrewrite.errors import InputError, TargetWarning
from ccrewrite.export.check import checked, inputs_of_file, session_of
from ccrewrite.export.examples import at_other_sizes, without_ones
from ccrewrite.export.files import require_packages, save, write
from ccrewrite.export.latency import latency_against
from ccrewrite.export.memory import MEMORY, require_memory
from ccrewrite.export.prepare import FUNCTION, Prepared, prepared
from ccrewrite.export.report import ExportedFile, OnnxSite, times
from ccrewrite.export.sizes import Mode, SizePlan, plan_sizes, without_sizes
from ccrewrite.export.trace import Dynamic, dynamic_shapes, optimised, quiet_exporter, traced
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.options import check_arguments
from ccrewrite.ir.outcome import GivenModel, model_of
from ccrewrite.ir.progress import step
from ccrewrite.ir.written import replacing, writable
from ccrewrite.passes.scales.resize import without_wrapper
from ccrewrite.passes.substitute import revert_
from ccrewrite.passes.targets import ANY, Target, for_files

BFLOAT16_SINCE = 22
"""Operator set."""


@torch.no_grad()
def export_onnx(
    model: GivenModel,
    path: str | os.PathLike[str],
    example_inputs: object,
    *,
    dynamic: Dynamic = None,
    sizes: Mode = "fixed",
    functions: bool = False,
    opset: int = 20,
    check_inputs: Sequence[object] = (),
    tolerance: float | None = None,
    target: str | Target | None = None,
    latency: bool = False,
    memory: int = MEMORY,
) -> ExportedFile:
    """Write a model, folded, as an ONNX file that has proved to compute the same.

    Rewritten layers are folded first (``ccrewrite.fold``), so that the file has plain convolutions, and all that is constant is
    computed. The file is checked (``onnx.checker``, shapes inferred) and run in onnxruntime against the model itself in
    evaluation mode: on the example inputs, on ``check_inputs``, and with ``dynamic`` also at another size of every named axis,
    for a size may have been taken for a constant; with sizes="input" each of them at several internal sizes. It is written
    under a temporary name and moved to ``path`` when all of that went well.

    onnxruntime's CPU has no convolutions of bfloat16 and float64: of such a model's file, which has its type, a copy in float32
    is run (``FileRun.in_float32``). bfloat16 needs ``opset=22``; both need sizes="fixed" and no ``functions``.

    Args:
        model: any model, or what a pass returned. Stays as it is.
        path: the file to write. Untouched where this raises.
        example_inputs: as ``plan``'s.
        dynamic: the axes whose size may vary, by argument: ``{"x": {0: "batch", 2: "height"}}``; for a single input,
            ``{0: "batch"}`` will do. None: none.
        sizes: what becomes of the sizes inside the model (``ccrewrite.scale_groups``). "fixed": those that it has for the
            example inputs; where nothing was resized, all layers are plain convolutions, which take inputs of any size.
            "ratio": they follow the input's, at the ratios that ``ccrewrite.resize_`` or the layers' ``scale`` have set.
            "input": the file has one more input for each scale group that is free, ``file.size_inputs``: int64, the output size
            of the group's first site. 0 leaves a size to the original's arithmetic, and so does leaving it out; where all are
            0, the file computes the graph that "fixed" writes (one ``If`` around it).
        functions: layers that can be said as one operator stay what they are, calls of a function in the file, with what they
            learned beside them as initializers ``<site>.<name>``: DCLS layers whose interpolation is linear
            (``ccrewrite::DclsConv``, ``<site>.positions``), and CC layers of open sizes (``ccrewrite::CCConv``). Others are
            folded all the same. Some runtimes take no functions.
        opset: ONNX's operator set.
        check_inputs: more inputs of the form of ``example_inputs``, to compare on.
        tolerance: the largest difference allowed, relative to an output's largest magnitude. None: 1e-4, in float16 1e-2, in
            bfloat16 5e-2.
        target: the runtime that the file is for, a name of ``ccrewrite.passes.targets.TARGETS`` or one of your own: layers are
            folded to forms that it takes (``ccrewrite.fold``), pads that it doesn't take become crops, and what else it doesn't
            take is said in a ``TargetWarning`` before the file is written, and in ``file.not_taken``.
        latency: also time the file in onnxruntime next to the original's, which is exported for that (``file.latency``).
        memory: bytes that a layer of an open size may take when the file runs it, as estimated at the sizes of the example
            inputs. None is written that takes more.

    Returns:
        What is in the file, and what was compared.

    Raises:
        InputError: for arguments that can't be used (a ``target`` that reads no ONNX files, or none of this ``opset``), where a
            package is missing (extra ``onnx``), a layer can't have an open size in ONNX or the file can't be written.
        ExportError: where torch can't export the model, a layer takes more than ``memory``, or the file failed a check.

    >>> import ccrewrite, tempfile
    >>> model, x = nn.Conv1d(2, 3, 3, dilation=2), torch.randn(1, 2, 16)
    >>> rewritten = ccrewrite.rewrite(model, x).model
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     file = export_onnx(rewritten, f"{directory}/model.onnx", x, dynamic={0: "batch", 2: "length"})
    >>> [run.shapes["input"] for run in file.check.runs], file.ops_after
    ([(1, 2, 16), (2, 2, 24)], {'Conv': 1})
    """
    check_arguments(export_onnx, {**locals(), "dynamic": None})  # which says more of what it takes
    require_packages()
    aim = None if target is None else for_files(target, opset)
    module, destination = without_wrapper(model_of(model, "what export_onnx writes")), writable(Path(path))
    inputs = Inputs.of(example_inputs)
    _require_weights(module, opset)
    plan = plan_sizes(module, inputs, sizes)
    ready = prepared(module, inputs, plan, functions=functions, target=aim)
    runs = [inputs, *(Inputs.of(more) for more in check_inputs)]
    shapes = dynamic_shapes(module, inputs, dynamic)
    if shapes is not None:
        runs.append(at_other_sizes(module, inputs, shapes))
    example = inputs if shapes is None else without_ones(module, inputs, shapes)
    from ccrewrite.export.branch import branched
    from ccrewrite.export.functions import expand_, name_tensors_
    from ccrewrite.export.graph import histogram
    from ccrewrite.export.metadata import Origin, annotate_
    from ccrewrite.export.taken import not_taken

    def written(ready: Prepared, plan: SizePlan | None) -> tuple[Any, dict[str, str], dict[str, int]]:
        """The graph, its initializers that were learned (and whose they are), its operators before constants were folded."""
        graph = traced(ready.model, example, shapes, opset, plan)
        require_memory((call.need for call in ready.calls.values()), memory, "export with sizes='fixed'")
        expand_(graph, ready.calls, functions=functions)
        learned = name_tensors_(graph, ready.tensors)
        before = histogram(graph)
        step("export_onnx", "optimising the graph", 0.6)
        gathered, uneven = any(s.code == "gathered" for s in ready.sites), ANY if aim is None else aim.transposed.uneven
        file = optimised(graph, opset, learned=learned, gathered=gathered, uneven=uneven)
        origins = {site.name: Origin(site.name, _words(site)) for site in ready.sites}
        annotate_(file, {path: origins[name] for path, name in ready.modules.items()})
        return file, {name: site for name, site in learned.items() if name in file.graph.initializers}, before

    asked = plan.inputs if plan else ()
    with quiet_exporter():
        step("export_onnx", "tracing the model", 0.2)
        file, learned, before = written(ready, plan)
        if asked:
            native, *_ = written(prepared(module, inputs, None, functions=False, target=aim), None)
            file = branched(native, file, [x.name for x in asked], learned)
    refused = not_taken(file, aim) if aim is not None else ()
    if refused:
        warnings.warn("\n".join(["not taken:", *map(str, refused)]), TargetWarning, stacklevel=2)
    with replacing(destination) as temporary:
        save(file, temporary)
        step("export_onnx", "running the file in onnxruntime, and comparing outputs", 0.8)
        check = checked(module, temporary, runs, plan, tolerance)
        took = None
        if latency and not any(run.in_float32 for run in check.runs):
            step("export_onnx", "timing the file and the original in onnxruntime", 0.9)
            with tempfile.TemporaryDirectory(dir=temporary.parent) as directory, quiet_exporter():
                original = without_sizes(module)
                revert_(original)
                ready_original = prepared(original, inputs, None, functions=False)
                write(written(ready_original, None)[0], Path(directory, "original.onnx"))
                fed = inputs_of_file(session_of(temporary), module, inputs)
                took = latency_against(Path(directory, "original.onnx"), temporary, fed)
        size = sum(f.stat().st_size for f in temporary.parent.iterdir())
    sites, after = _written(ready, learned), histogram(file)
    return ExportedFile(str(destination), opset, size, sites, check, asked, took, before, after, refused)


def _require_weights(model: nn.Module, opset: int) -> None:
    if any(t.is_meta for t in model.parameters()):
        raise InputError("the model is on the meta device: there are no weights to export")
    if opset < BFLOAT16_SINCE and any(t.dtype == torch.bfloat16 for t in model.parameters()):
        raise InputError(f"ONNX has convolutions of bfloat16 since operator set {BFLOAT16_SINCE}, found opset={opset}")


def _words(site: OnnxSite) -> str:
    """What a file's metadata say of a site."""
    return f"{site.layer}, window {times(site.window)}: {site.code}"


def _written(ready: Prepared, learned: Mapping[str, str]) -> tuple[OnnxSite, ...]:
    """The sites, with what the file has of them. ``learned``: initializer -> site."""
    found: list[OnnxSite] = []
    for site in ready.sites:
        called = dict.fromkeys(call.operator.name for call in ready.calls.values() if call.site == site.name)
        message = ", ".join(called) if called and site.code == FUNCTION else site.message
        initializers = tuple(name for name, owner in learned.items() if owner == site.name)
        found.append(replace(site, message=message, initializers=initializers))
    return tuple(found)
