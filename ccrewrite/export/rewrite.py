"""An .onnx file -> the same with learnable geometry: ``rewrite_onnx``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ccrewrite.errors import ExportError, InputError, SelectionError, SizeWarning
from ccrewrite.export.check import compared, run_file, runtime, session_of
from ccrewrite.export.files import require_packages, save
from ccrewrite.export.report import FileCheck, FileRun, OnnxSite, RewrittenFile, SizeTrial
from ccrewrite.export.sizes import SizeInput
from ccrewrite.families.onnx import OnnxForm
from ccrewrite.families.rule import Rule
from ccrewrite.ir.check import COMPILED, TOLERANCE
from ccrewrite.ir.geometry import Ints
from ccrewrite.ir.preserve import random_states_kept
from ccrewrite.ir.sites import Decision, Plan, Site
from ccrewrite.ir.threads import one_at_a_time
from ccrewrite.ir.written import replacing, writable
from ccrewrite.passes.decide import Patterns, Selection, decide
from ccrewrite.passes.rules import Rules, check_rules, rule_for

if TYPE_CHECKING:
    import onnx_ir

    from ccrewrite.export.convolutions import Convolution

OLDEST = 13
"""Operator set."""


def rewrite_onnx(
    path_in: str | os.PathLike[str],
    path_out: str | os.PathLike[str],
    *,
    rules: Rules = None,
    include: Patterns = None,
    exclude: Patterns = None,
    kinds: str | Sequence[str] | None = None,
    example_inputs: Mapping[str, Any] | None = None,
    tolerance: float = TOLERANCE[torch.float32],
) -> RewrittenFile:
    """Write the ONNX file ``path_in``, of any producer and operator set 13 or later, to ``path_out`` with its convolutions
    rewritten; what was done.

    - Strided and transposed ones get a new input, ``"<site>.size"``: int64, the output size for each axis, where 0 is the
      native one. ``result.trials`` say whether the rest of the file takes another size. What is right there the file can't
      tell: where a number in it may have been computed of a size that changed, ``SizeWarning`` names it.
    - Dilated ones become calls of a function in the file, ``ccrewrite::DclsConv``, whose taps are where the initializer
      ``"<site>.positions"`` says (axes, filters or 1, channels or 1, taps; in samples from the window's first): to be edited,
      and at the start exactly those of the dilated grid.
    - What rules of other families take becomes what their samplings' ``onnx_form`` says, one or the other of these, and is left
      alone where they have none.

    ``rules``, ``include``, ``exclude`` and ``kinds`` as ``ccrewrite.plan``'s. A site is called after its weight, or after its
    node. Both files are run in onnxruntime on ``example_inputs`` (arrays or tensors by name; None: drawn at random, where the
    file says all sizes) and compared, ``tolerance`` relative to each output's largest magnitude. The new one has its name only
    after that.

    Raises ``InputError`` for a file that can't be read (external data missing), of an older operator set, or with convolutions
    in control flow, for rules that are not exact, options that can't be used and where ``path_out`` can't be written,
    ``SelectionError`` where there is nothing to rewrite, ``ExportError`` where the new file differs. ``path_out`` is untouched
    then.

    >>> import ccrewrite, tempfile
    >>> x = torch.randn(1, 2, 16)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     _ = ccrewrite.export_onnx(torch.nn.Conv1d(2, 3, 3, stride=2), f"{directory}/theirs.onnx", x)
    ...     result = rewrite_onnx(f"{directory}/theirs.onnx", f"{directory}/ours.onnx")
    >>> [(site.kinds, site.decision.code) for site in result.plan], result.size_inputs[0].native
    ([(('strided',), 'strided-to-cc')], (7,))
    """
    require_packages()
    from ccrewrite.export.convolutions import convolutions
    from ccrewrite.export.follow import tried, unwatch_, watch_
    from ccrewrite.export.surgery import free_group_norms_

    source, target = Path(path_in), writable(Path(path_out))
    model = _load(source)
    found = convolutions(model)
    if not found:
        raise SelectionError(f"{source} has no convolution")
    checked_rules = check_rules(rules)
    for rule in checked_rules:
        if not rule.exact:
            raise InputError(f"rule {rule.name} is not exact ({rule}), and an ONNX file is rewritten exactly or not at all")
    sites = decide([c.site for c in found], checked_rules, Selection(include, exclude, kinds))
    additions = _additions(sites, checked_rules)
    plan = Plan(tuple(_decided(s, additions.get(s.name)) for s in sites), checked_rules, "onnx")
    if not plan.rewritten:
        raise SelectionError(f"nothing can be rewritten in {source}: {plan.summary()}")
    inputs = _inputs(model, example_inputs)
    free_group_norms_(model)
    watched = watch_(model, found)
    asked, learned = _rewrite_(model, [replace(c, site=s) for c, s in zip(found, plan.sites, strict=True)], additions)
    with replacing(target) as temporary:
        trials = tried(model, watched, temporary.parent, inputs, asked)
        unwatch_(model, watched)
        save(model, temporary, external=source.with_name(f"{source.name}.data").exists())
        run = _compared(source, temporary, inputs, asked, tolerance)
        if not run.ok:
            raise ExportError(f"the rewritten file computes something else than {source}: {run.note}. Nothing was written")
        size = sum(f.stat().st_size for f in temporary.parent.iterdir())
    written = tuple(
        OnnxSite(s.name, s.layer, s.code, s.message, a.window if (a := additions.get(s.name)) else (), learned.get(s.name, ()))
        for s in plan
    )
    opset = model.opset_imports[""]
    check = FileCheck.of([run], runtime())
    _warn_of_doubts(source, trials)
    return RewrittenFile(str(target), opset, size, written, check, tuple(asked), plan, trials)


@dataclass(frozen=True)
class _Addition:
    """What a rule adds to a convolution: its sampling's ``window`` and ``form``, and what kind that sampling is."""

    kind: str
    window: Ints
    form: OnnxForm | None


def _additions(sites: Sequence[Site], rules: Sequence[Rule]) -> dict[str, _Addition]:
    """For each site that a rule takes."""
    found: dict[str, _Addition] = {}
    with one_at_a_time(), random_states_kept():
        torch.manual_seed(0)
        for site in sites:
            rule = rule_for(site, rules)
            if site.decision.rewritten and rule is not None:
                sampling = rule.made(site, dtype=torch.float32, device="cpu")
                found[site.name] = _Addition(type(sampling).__name__, sampling.window, sampling.onnx_form())
    return found


def _decided(site: Site, addition: _Addition | None) -> Site:
    """``site``, left alone where what a rule adds to it can't be said in an ONNX file."""
    if addition is None or addition.form is not None:
        return site
    message = f"{site.decision.code} makes a {addition.kind} of it, which has no operator of its own in ONNX (onnx_form)"
    return replace(site, decision=Decision(False, "no-rule", message))


def _rewrite_(
    model: onnx_ir.Model, found: Sequence[Convolution], additions: Mapping[str, _Addition]
) -> tuple[list[SizeInput], dict[str, tuple[str, ...]]]:
    """Rewrite the sites whose decision says so, in place: the inputs that choose sizes, and by site what was learned."""
    from ccrewrite.export.functions import Functions
    from ccrewrite.export.surgery import call_, forget_sizes_, size_

    functions = Functions(model)
    asked: list[SizeInput] = []
    learned: dict[str, tuple[str, ...]] = {}
    for conv in found:
        name = conv.site.name
        form = additions[name].form if conv.site.decision.rewritten else None
        if form is not None and form.sized:
            asks, learned[name] = size_(model, conv, form)
            asked.append(asks)
        elif form is not None:
            learned[name] = call_(model, conv, form, functions)
    if asked:
        forget_sizes_(model)
    return asked, learned


def _warn_of_doubts(source: Path, trials: Sequence[SizeTrial]) -> None:
    doubts = dict.fromkeys(doubt for trial in trials for doubt in trial.doubts)
    if doubts:
        warnings.warn(
            f"{source} has numbers that are right at its native sizes, and at others only if its model doesn't compute them of "
            f"these: {', '.join(doubts)}. Compare with the model before you ask for other sizes (result.trials says which)",
            SizeWarning,
            stacklevel=3,
        )


def _load(path: Path) -> onnx_ir.Model:
    import onnx_ir

    try:
        model = onnx_ir.load(path)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise InputError(f"{path} can't be read as ONNX: {type(error).__name__}: {reason}") from error
    opset = model.opset_imports.get("", 0)
    if opset < OLDEST:
        raise InputError(
            f"{path} is of operator set {opset}, the oldest that is taken is {OLDEST}; onnx.version_converter makes it newer"
        )
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, onnx_ir.ExternalTensor):
            size = os.path.getsize(tensor.path) if os.path.exists(tensor.path) else -1
            if size < (tensor.offset or 0) + (tensor.length or 0):
                what = "is missing" if size < 0 else "is too short"
                raise InputError(f"{path} keeps {value.name} in {Path(tensor.path).name}, which {what}")
    return model


def _inputs(model: onnx_ir.Model, given: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
    """Values for the original's inputs."""
    values = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    names = [str(v.name) for v in values]
    if given is not None:
        if set(given) != set(names):
            raise InputError(f"example_inputs must have {', '.join(names)}; found {', '.join(given) or 'none'}")
        return {n: v.detach().cpu().numpy() if isinstance(v, Tensor) else np.asarray(v) for n, v in given.items()}
    generator = np.random.default_rng(0)
    drawn: dict[str, np.ndarray] = {}
    for value in values:
        shape = [1 if i == 0 and not isinstance(n, int) else n for i, n in enumerate(value.shape or ())]
        known = [n for n in shape if isinstance(n, int)]
        if value.shape is None or value.dtype is None or len(known) < len(shape):
            raise InputError(f"the file leaves the shape of {value.name} open ({value.shape}): pass example_inputs")
        dtype = value.dtype.numpy()
        floats = value.dtype.is_floating_point()
        drawn[str(value.name)] = (generator.standard_normal(known) if floats else np.zeros(known)).astype(dtype)
    return drawn


def _compared(
    source: Path, target: Path, inputs: Mapping[str, np.ndarray], sizes: Sequence[SizeInput], tolerance: float
) -> FileRun:
    """Both files at the native sizes."""
    expected = run_file(session_of(source), inputs)
    zeros = {s.name: np.zeros(len(s.axes), np.int64) for s in sizes}
    found = run_file(session_of(target), {**inputs, **zeros})
    if any(t.dtype == torch.float16 for t in expected):
        tolerance = max(tolerance, COMPILED[torch.float16])
    outputs = compared(expected, found, tolerance)
    return FileRun({n: tuple(v.shape) for n, v in inputs.items()}, outputs, {s.name: (0,) * len(s.axes) for s in sizes})
