"""An .onnx file -> the same with learnable geometry: ``rewrite_onnx``."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor

from ccrewrite.errors import ExportError, InputError, SelectionError, SizeWarning
from ccrewrite.export.check import compared, run_file, session_of
from ccrewrite.export.files import replacing, require_packages, save, writable
from ccrewrite.export.report import RunCheck, SizeTrial, times
from ccrewrite.export.sizes import SizeInput
from ccrewrite.families.cc.rule import StridedToCC
from ccrewrite.families.dcls.rule import DilatedToDcls
from ccrewrite.families.rule import Rule
from ccrewrite.ir.check import COMPILED, TOLERANCE
from ccrewrite.ir.sites import Plan
from ccrewrite.passes.decide import Patterns, Selection, decide
from ccrewrite.passes.rules import LeaveAlone, Rules, check_rules, rule_for

if TYPE_CHECKING:
    import onnx_ir

OLDEST = 13
"""Operator set."""


@dataclass(frozen=True)
class OnnxResult:
    """What ``rewrite_onnx`` did: the plan as carried out, the inputs that choose sizes, the initializers that hold positions,
    the runs of the new file against the old one, and its runs at other sizes."""

    path: str
    plan: Plan
    size_inputs: tuple[SizeInput, ...]
    positions: dict[str, str]
    """Site -> the initializer's name."""
    checks: tuple[RunCheck, ...]
    trials: tuple[SizeTrial, ...]

    @property
    def max_rel_error(self) -> float:
        return max((c.max_rel_error for c in self.checks), default=0.0)

    def to_json(self) -> str:
        return json.dumps(
            {
                "path": self.path,
                "plan": json.loads(self.plan.to_json()),
                "size_inputs": [asdict(s) for s in self.size_inputs],
                "positions": self.positions,
                "checks": [asdict(c) for c in self.checks],
                "trials": [asdict(t) for t in self.trials],
            },
            indent=2,
        )

    def __str__(self) -> str:
        rows = [(t.input, times(t.native), times(t.size), t.others, str(t)) for t in self.trials]
        return "\n".join(
            filter(
                None,
                (
                    str(self.plan),
                    tabulate(rows, headers=("size input (0: native)", "native", "tried", "others", "the rest of the file"))
                    if rows
                    else "",
                    f"positions: {', '.join(self.positions.values())}" if self.positions else "",
                    f"{self.path}: at native sizes {self.max_rel_error:.1e} from the original, relative",
                ),
            )
        )


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
) -> OnnxResult:
    """Write the ONNX file ``path_in``, of any producer and operator set 13 or later, to ``path_out`` with its convolutions
    rewritten; what was done.

    - Strided and transposed ones get a new input, ``"<site>.size"``: int64, the output size for each axis, where 0 is the
      native one. ``result.trials`` say whether the rest of the file takes another size. What is right there the file can't
      tell: where a number in it may have been computed of a size that changed, ``SizeWarning`` names it.
    - Dilated ones become calls of a function in the file, ``ccrewrite::DclsConv``, whose taps are where the initializer
      ``"<site>.positions"`` says (axes, filters or 1, channels or 1, taps; in samples from the window's first): to be edited,
      and at the start exactly those of the dilated grid.

    ``rules``, ``include``, ``exclude`` and ``kinds`` as ``ccrewrite.plan``'s. A site is called after its weight, or after its
    node. Both files are run in onnxruntime on ``example_inputs`` (arrays or tensors by name; None: drawn at random, where the
    file says all sizes) and compared, ``tolerance`` relative to each output's largest magnitude. The new one has its name only
    after that.

    Raises ``InputError`` for a file that can't be read (external data missing), of an older operator set, or with convolutions
    in control flow, for options that can't be used and where ``path_out`` can't be written, ``SelectionError`` where there
    is nothing to rewrite, ``ExportError`` where the new file differs. ``path_out`` is untouched then.

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
        if not (isinstance(rule, (DilatedToDcls, LeaveAlone)) or (isinstance(rule, StridedToCC) and rule.exact)):
            raise InputError(
                f"rule {rule.name}: an ONNX file takes dilated-to-dcls, strided-to-cc and transposed-to-cc, exact ones"
            )
    sites = decide([c.site for c in found], checked_rules, Selection(include, exclude, kinds))
    plan = Plan(sites, checked_rules, "onnx")
    if not plan.rewritten:
        raise SelectionError(f"nothing can be rewritten in {source}: {plan.summary()}")
    inputs = _inputs(model, example_inputs)
    free_group_norms_(model)
    watched = watch_(model, found)
    sizes, positions = _rewrite_(model, [replace(c, site=s) for c, s in zip(found, sites, strict=True)], checked_rules)
    with replacing(target) as temporary:
        trials = tried(model, watched, temporary.parent, inputs, sizes)
        unwatch_(model, watched)
        save(model, temporary, external=source.with_name(f"{source.name}.data").exists())
        check = _compared(source, temporary, inputs, sizes, tolerance)
        if not check.ok:
            raise ExportError(f"the rewritten file computes something else than {source}: {check.note}. Nothing was written")
    result = OnnxResult(str(target), plan, tuple(sizes), positions, (check,), trials)
    doubts = dict.fromkeys(doubt for trial in trials for doubt in trial.doubts)
    if doubts:
        warnings.warn(
            f"{source} has numbers that are right at its native sizes, and at others only if its model doesn't compute them of "
            f"these: {', '.join(doubts)}. Compare with the model before you ask for other sizes (result.trials says which)",
            SizeWarning,
            stacklevel=2,
        )
    return result


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


def _rewrite_(model: onnx_ir.Model, found: Sequence[Any], rules: Sequence[Rule]) -> tuple[list[SizeInput], dict[str, str]]:
    from ccrewrite.export import surgery

    sizes: list[SizeInput] = []
    positions: dict[str, str] = {}
    known: dict[Any, str] = {}
    for conv in found:
        if not conv.site.decision.rewritten:
            continue
        rule = rule_for(conv.site, rules)
        if isinstance(rule, DilatedToDcls):
            positions[conv.site.name] = surgery.to_dcls_(model, conv, rule, known)
        else:
            sizes.append(surgery.to_cc_(model, conv, cast(StridedToCC, rule)))
    if sizes:
        surgery.forget_sizes_(model)
    return sizes, positions


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
) -> RunCheck:
    expected = run_file(session_of(source), inputs)
    zeros = {s.name: np.zeros(len(s.axes), np.int64) for s in sizes}
    found = run_file(session_of(target), {**inputs, **zeros})
    shapes = {n: tuple(v.shape) for n, v in inputs.items()}
    if any(t.dtype == torch.float16 for t in expected):
        tolerance = max(tolerance, COMPILED[torch.float16])
    return compared(expected, found, shapes, {s.name: (0,) * len(s.axes) for s in sizes}, tolerance)
