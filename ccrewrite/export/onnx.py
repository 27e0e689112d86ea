"""Rewritten model -> a verified ONNX file of standard operators: ``export_onnx``."""

from __future__ import annotations

import inspect
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from ccrewrite.capture import Inputs
from ccrewrite.errors import CcrewriteError, InputError, ModelRunError
from ccrewrite.export.report import ExportReport, RunCheck
from ccrewrite.passes.fold import ROOT, find, fold
from ccrewrite.passes.fold_sites import FoldedSite
from ccrewrite.passes.substitute import copied
from ccrewrite.passes.verify import compare_outputs, outputs_of
from ccrewrite.preserve import preserved

PACKAGES = ("onnx", "onnx_ir", "onnxscript", "onnxruntime")
NO_LIMIT = 2**40
"""For constant folding: the optimizer's own limits leave kernel constructions of a few channels in the graph."""
EXTERNAL = 1_900_000_000
"""Bytes of weights from which they go to a file of their own: protobuf holds at most 2 GiB."""
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2}

Dynamic = Mapping[Any, Any] | None


class ExportError(CcrewriteError, RuntimeError):
    """The model can't be exported, or what was exported computes something else; no file was written."""


@torch.no_grad()
def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any,
    *,
    dynamic: Dynamic = None,
    opset: int = 20,
    check_inputs: Sequence[Any] = (),
    tolerance: float | None = None,
) -> ExportReport:
    """Write ``model``, folded, as an ONNX file that has proved to compute the same; what was found out about it.

    Rewritten layers are folded first (``ccrewrite.fold``), so that the file has plain convolutions, and all that is constant is
    computed. ``example_inputs`` as ``ccrewrite.rewrite``'s. ``dynamic`` names the axes whose size may vary, by argument:
    ``{"x": {0: "batch", 2: "height"}}``; for a single input, ``{0: "batch"}`` will do.

    The file is checked (``onnx.checker``, shapes inferred) and run in onnxruntime against ``model`` itself in evaluation mode:
    on the example inputs, on ``check_inputs`` (more inputs of the same form), and with ``dynamic`` also at another size of
    every named axis, for a size may have been taken for a constant. It is written under a temporary name and moved to ``path``
    when all of that went well. ``tolerance``: the largest difference allowed, relative to an output's largest magnitude; None:
    1e-4, in float16 1e-2.

    Raises ``InputError`` for arguments that can't be used, where a package is missing (extra ``onnx``) or the file can't be
    written, ``ExportError`` where torch can't export the model or the file failed a check. ``path`` is untouched then.

    >>> import ccrewrite
    >>> model, x = nn.Conv1d(2, 3, 3, dilation=2), torch.randn(1, 2, 16)
    >>> rewritten = ccrewrite.rewrite(model, x).model
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     report = export_onnx(rewritten, f"{directory}/model.onnx", x, dynamic={0: "batch", 2: "length"})
    >>> [check.shapes["input"] for check in report.checks], report.ops_after
    ([(1, 2, 16), (2, 2, 24)], {'Conv': 1})
    """
    _require_packages()
    target = _writable(Path(path))
    inputs = Inputs.of(example_inputs)
    folded, sites = model, cast("tuple[FoldedSite, ...]", ())
    if find(model):
        result = fold(model, inputs)
        if not result.check.ok:
            raise ExportError(f"the folded model differs from the rewritten one:\n{result}")
        folded, sites = result.model, result.sites
    elif any(t.is_meta for t in model.parameters()):
        raise InputError("the model is on the meta device: there are no weights to export")
    runs = [inputs, *(Inputs.of(more) for more in check_inputs)]
    shapes = _dynamic_shapes(model, inputs, dynamic)
    if shapes is not None:
        runs.append(_other_sizes(model, inputs, shapes))
    exported = copied(folded).eval()
    with _quiet():
        program = _export(exported, inputs, shapes, opset)
        file, before, after = _optimised(program, opset, sites)
    with _temporary(target) as temporary:
        _save(file, temporary)
        checks = tuple(_check(model, temporary, run, tolerance) for run in runs)
        failed = next((c for c in checks if not c.ok), None)
        if failed:
            shown = ", ".join(f"{n} {s}" for n, s in failed.shapes.items())
            raise ExportError(
                f"the file computes something else than the model on inputs of shape {shown}: {failed.note}. Where the shape "
                "is not that of the example inputs, a size computed in the model's Python code may have become a constant. "
                "Nothing was written"
            )
        size = sum(f.stat().st_size for f in temporary.parent.iterdir())
        for name in sorted(os.listdir(temporary.parent), reverse=True):  # the weights before the file that names them
            os.replace(temporary.parent / name, target.parent / name)
    import onnxruntime

    runtime = f"onnxruntime {onnxruntime.__version__}"
    return ExportReport(str(target), opset, size, runtime, checks, before, after, sites)


def _require_packages() -> None:
    from importlib.util import find_spec

    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(f"exporting to ONNX needs {', '.join(missing)}: pip install 'ccrewrite[onnx]'")


def _writable(path: Path) -> Path:
    if path.is_dir():
        raise InputError(f"path must be a file, found the directory {path}")
    if not path.parent.is_dir():
        raise InputError(f"there is no directory {path.parent} to write {path.name} to")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise InputError(f"{path} can't be written: no permission")
    return path


@contextmanager
def _temporary(target: Path) -> Generator[Path]:
    """The target's name in a directory of its own beside it; gone afterwards, with what is left in it."""
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".ccrewrite-") as directory:
            yield Path(directory, target.name)
    except OSError as error:
        raise InputError(f"{target} can't be written: {error}") from error


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


def _arguments(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """The arguments by the names that ``model.forward`` has for them."""
    try:
        return dict(inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs).arguments)
    except TypeError as error:
        raise InputError(f"{type(model).__name__} can't be called with the example inputs: {error}") from error


def _dynamic_shapes(model: nn.Module, inputs: Inputs, dynamic: Dynamic) -> dict[str, Any] | None:
    if not dynamic:
        return None
    arguments = _arguments(model, inputs)
    named = dict(dynamic)
    if all(isinstance(axis, int) for axis in named):
        first = next((n for n, v in arguments.items() if isinstance(v, Tensor)), None)
        if first is None:
            raise InputError(f"dynamic={dynamic!r} names no argument, and none of {', '.join(arguments)} is a tensor")
        named = {first: named}
    for name, axes in named.items():
        value = arguments.get(name)
        if not isinstance(value, Tensor):
            raise InputError(f"dynamic names {name!r}, which is no tensor argument; the arguments are {', '.join(arguments)}")
        for axis, label in axes.items():
            if axis not in range(value.dim()) or not (isinstance(label, str) and label.isidentifier()):
                raise InputError(f"dynamic[{name!r}] must map axes 0 to {value.dim() - 1} to names, found {axis!r}: {label!r}")
    return {name: dict(named[name]) if name in named else tree_map(lambda _: None, value) for name, value in arguments.items()}


def _other_sizes(model: nn.Module, inputs: Inputs, shapes: Mapping[str, Any]) -> Inputs:
    """The example inputs at another size of every named axis, one that ``model`` runs at. Values are repeated or cut."""
    arguments = _arguments(model, inputs)
    sizes = {label: arguments[name].shape[axis] for name, axes in shapes.items() for axis, label in _named(axes).items()}
    error: Exception | None = None
    # Networks want multiples of powers of two, or sizes that differ from them by as much as the example does.
    for grow in (lambda n: n + max(1, n // 2), lambda n: n + 32, lambda n: 2 * n, lambda n: 2 * n - 1, lambda n: n + 1):
        wanted = {label: grow(n) for label, n in sizes.items()}
        changed = {n: _resized(v, _named(shapes[n]), wanted) for n, v in arguments.items()}
        args = tuple(changed[n] for n in list(arguments)[: len(inputs.args)])
        candidate = Inputs(args, {n: changed[n] for n in inputs.kwargs})
        try:
            outputs_of(model, candidate)
        except ModelRunError as raised:
            error = raised
        else:
            return candidate
    raise InputError(
        f"the model ran at no other size of {', '.join(sizes)} that was tried; pass check_inputs, or leave them out of dynamic"
    ) from error


def _named(axes: Any) -> dict[int, str]:
    return cast("dict[int, str]", axes) if isinstance(axes, dict) and all(isinstance(v, str) for v in axes.values()) else {}


def _resized(value: Any, axes: Mapping[int, str], sizes: Mapping[str, int]) -> Any:
    for axis, label in axes.items():
        value = value.index_select(axis, torch.arange(sizes[label], device=value.device) % value.shape[axis])
    return value


def _export(model: nn.Module, inputs: Inputs, shapes: dict[str, Any] | None, opset: int) -> Any:
    try:
        return torch.onnx.export(
            model, inputs.args, kwargs=inputs.kwargs, dynamo=True, verbose=False, opset_version=opset, optimize=False,
            dynamic_shapes=shapes,
        )  # fmt: skip
    except Exception as error:
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:300]
        raise ExportError(f"torch can't export {type(model).__name__} to ONNX: {type(cause).__name__}: {reason}") from error


def _optimised(program: Any, opset: int, sites: Sequence[FoldedSite]) -> tuple[Any, dict[str, int], dict[str, int]]:
    from onnxscript import optimizer

    from ccrewrite.export import graph

    before = graph.histogram(program.model)
    file = optimizer.optimize(program.model, input_size_limit=NO_LIMIT, output_size_limit=NO_LIMIT)
    graph.unwrap_pads_(file)
    graph.crop_transposed_(file)
    file = optimizer.optimize(file, input_size_limit=NO_LIMIT, output_size_limit=NO_LIMIT)
    written = file.opset_imports.get("")
    if written != opset:
        raise ExportError(f"opset {opset} was asked for, but torch wrote opset {written}; ask for that one")
    origins = {"" if s.name == ROOT else s.name: f"{s.layer}, window {'x'.join(map(str, s.window))}: {s.code}" for s in sites}
    graph.annotate_(file, origins)
    return file, before, graph.histogram(file)


def _save(file: Any, path: Path) -> None:
    import onnx
    import onnx_ir

    weights = sum(v.const_value.nbytes for v in file.graph.initializers.values() if v.const_value is not None)
    onnx_ir.save(file, path, external_data=f"{path.name}.data" if weights > EXTERNAL else None)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise ExportError(f"onnx.checker refuses the file: {error}") from error


def _check(model: nn.Module, path: Path, inputs: Inputs, tolerance: float | None) -> RunCheck:
    import onnxruntime

    expected = [t for t in tree_leaves(_run(model, inputs)) if isinstance(t, Tensor)]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    tensors = dict(_named_tensors(model, inputs))
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        fed = _feed(session, tensors)
        found = [torch.from_numpy(v) for v in session.run(None, fed)]
    except CcrewriteError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise ExportError(f"onnxruntime can't run the file, so it was not verified: {first}") from error
    if len(found) != len(expected):
        raise ExportError(f"the file has {len(found)} outputs, the model has {len(expected)}")
    pairs = {f"output {i}": t for i, t in enumerate(expected)}
    outputs = compare_outputs(pairs, {f"output {i}": t for i, t in enumerate(found)})
    limits = [tolerance or TOLERANCE.get(t.dtype, 1e-4) if t.is_floating_point() else 0.0 for t in expected]
    worse = [o for o, limit in zip(outputs, limits, strict=True) if not o.max_rel_error <= limit]
    return RunCheck(
        {name: tuple(t.shape) for name, t in tensors.items()},
        max((o.max_abs_error for o in outputs), default=0.0),
        max((o.max_rel_error for o in outputs), default=0.0),
        sum(o.flips for o in outputs if o.note),
        not worse,
        f"{worse[0].path} {worse[0].note or f'is off by {worse[0].max_rel_error:.1e} of its largest magnitude'}"
        if worse
        else "",
    )


def _run(model: nn.Module, inputs: Inputs) -> Any:
    """The output with the structure that export flattens."""
    with preserved(model, inputs.tensors()):
        torch.manual_seed(0)
        return tree_map_only(Tensor, lambda t: t.clone(), inputs.run(model))


def _named_tensors(model: nn.Module, inputs: Inputs) -> list[tuple[str, Tensor]]:
    named: list[tuple[str, Tensor]] = []
    for name, value in _arguments(model, inputs).items():
        leaves = [t for t in tree_leaves(value) if isinstance(t, Tensor)]
        named += [(name if len(leaves) == 1 else f"{name}[{i}]", t) for i, t in enumerate(leaves)]
    return named


def _feed(session: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    names = [i.name for i in session.get_inputs()]
    if set(names) <= tensors.keys():
        return {n: tensors[n].detach().cpu().numpy() for n in names}
    if len(names) != len(tensors):
        raise ExportError(f"the file has the inputs {', '.join(names)}, the model was called with {', '.join(tensors)}")
    return {n: t.detach().cpu().numpy() for n, t in zip(names, tensors.values(), strict=True)}
