"""An .onnx file -> the same with learnable geometry: ``rewrite_onnx``."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ccrewrite.errors import InputError, SelectionError, SizeWarning
from ccrewrite.export.files import require_packages, save
from ccrewrite.export.memory import MEMORY, require_memory
from ccrewrite.export.report import OnnxSite, RewrittenFile, SizeTrial
from ccrewrite.families.onnx import OnnxForm
from ccrewrite.families.rule import Rule
from ccrewrite.ir.geometry import Ints
from ccrewrite.ir.options import check_arguments
from ccrewrite.ir.preserve import random_states_kept
from ccrewrite.ir.progress import step
from ccrewrite.ir.sites import Decision, Plan, Site
from ccrewrite.ir.threads import one_at_a_time
from ccrewrite.ir.typed import manual_seed
from ccrewrite.ir.written import replacing, writable
from ccrewrite.passes.decide import Patterns, Selection, decide
from ccrewrite.passes.rules import Rules, check_rules, rule_for

if TYPE_CHECKING:
    import onnx
    import onnx_ir


def rewrite_onnx(
    model: str | os.PathLike[str] | onnx.ModelProto | onnx_ir.Model,
    path_out: str | os.PathLike[str],
    *,
    rules: Rules = None,
    include: Patterns = None,
    exclude: Patterns = None,
    kinds: str | Sequence[str] | None = None,
    example_inputs: Mapping[str, object] | None = None,
    tolerance: float | None = None,
    latency: bool = True,
    memory: int = MEMORY,
) -> RewrittenFile:
    """Write an ONNX file with the convolutions of another one rewritten.

    - Strided and transposed ones get a new input, ``"<site>.size"``: int64, the output size for each axis. It may be left out;
      0 is the native one. Where all are native, the file computes the graph that it was (one ``If`` around it).
      ``result.trials`` say whether the rest of the file takes another size. What is right there the file can't tell: where a
      number in it may have been computed of a size that changed, ``SizeWarning`` names it.
    - Dilated ones become calls of a function in the file, ``ccrewrite::DclsConv``, whose taps are where the initializer
      ``"<site>.positions"`` says (axes, filters or 1, channels or 1, taps; in samples from the window's first): to be edited.
      At the start they are those of the dilated grid, and as long as they are, the function is the plain convolution.
    - What rules of other families take becomes what their samplings' ``onnx_form`` says, one or the other of these, and is left
      alone where they have none.

    The original and the new file are run in onnxruntime and compared, and so is a copy in which every site computes as it does
    once it moved. The new file has its name only after that.

    Args:
        model: a file or a model in memory, of any producer and of operator set 7 or later; older ones than 13 are converted to
            that.
        path_out: the file to write. Untouched where this raises.
        rules: as ``plan``'s. A site is called after its weight, or after its node.
        include: as ``plan``'s.
        exclude: as ``plan``'s.
        kinds: as ``plan``'s.
        example_inputs: arrays or tensors by the names of the file's inputs. None: drawn at random, where the file says all
            sizes.
        tolerance: the largest difference allowed, relative to each output's largest magnitude. None: 1e-5 (1e-2 in float16);
            or, where each site by itself is as exact as that, what rounding changes in the original (``result.check.note``).
        latency: time both files in onnxruntime, which takes a few tenths of a second (``result.latency``).
        memory: bytes that a site with a size input may take when the file runs it at another size, as estimated at those of
            the example inputs. None is written that takes more.

    Returns:
        What was done: the plan, the new inputs, what was compared.

    Raises:
        InputError: for a file that can't be read or converted (external data missing), for rules that are not exact, options
            that can't be used, and where ``path_out`` can't be written.
        SelectionError: where there is nothing to rewrite.
        ExportError: where a site takes more than ``memory``, or the new file differs.

    >>> import ccrewrite, tempfile
    >>> x = torch.randn(1, 2, 16)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     _ = ccrewrite.export_onnx(torch.nn.Conv1d(2, 3, 3, stride=2), f"{directory}/theirs.onnx", x)
    ...     result = rewrite_onnx(f"{directory}/theirs.onnx", f"{directory}/ours.onnx")
    >>> [(site.kinds, site.decision.code) for site in result.plan], result.size_inputs[0].native
    ([(('strided',), 'strided-to-cc')], (7,))
    """
    check_arguments(rewrite_onnx, locals())
    require_packages()
    from ccrewrite.export.convolutions import convolutions
    from ccrewrite.export.latency import latency_against
    from ccrewrite.export.pads import explicit_pads_
    from ccrewrite.export.proof import Proof
    from ccrewrite.export.source import read, unseed_
    from ccrewrite.export.variants import Variants

    target, source = writable(Path(path_out)), read(model)
    explicit_pads_(source.model)
    found = convolutions(source.model)
    if not found:
        raise SelectionError(f"{source.name} has no convolution")
    checked_rules = check_rules(rules)
    for rule in checked_rules:
        if not rule.exact:
            raise InputError(f"rule {rule.name} is not exact ({rule}), and an ONNX file is rewritten exactly or not at all")
    sites = decide([c.site for c in found], checked_rules, Selection(include, exclude, kinds))
    additions = _additions(sites, checked_rules)
    plan = Plan(tuple(_decided(s, additions.get(s.name)) for s in sites), checked_rules, "onnx")
    if not plan.rewritten:
        raise SelectionError(f"nothing can be rewritten in {source.name}: {plan.summary()}{_because(plan)}")
    step("rewrite_onnx", f"rewriting {len(plan.rewritten)} sites", 0.1)
    inputs = _inputs(source.given, example_inputs)
    forms = {s.name: form for s in plan.rewritten if (form := additions[s.name].form) is not None}
    variants = Variants(source.model, plan.sites, forms)
    with replacing(target) as temporary, tempfile.TemporaryDirectory(dir=temporary.parent) as scratch:
        proof = Proof(source, variants, inputs, tolerance, Path(scratch))
        require_memory(proof.needs(), memory, "leave the site out with exclude=")
        step("rewrite_onnx", "trying other sizes", 0.3)
        trials = proof.trials()
        file = variants.file()
        native = {trial.input: trial.native for trial in trials}
        asked = tuple(replace(x, native=native[x.name]) for x in file.asked)
        save(file.model, temporary, external=source.external)
        step("rewrite_onnx", "running both files, and comparing outputs", 0.8)
        check = proof.check(temporary, asked, native)
        took = latency_against(proof.original, temporary, inputs) if latency else None
        if source.random:
            unseed_(file.model)
            save(file.model, temporary, external=source.external)
        size = sum(f.stat().st_size for f in temporary.parent.iterdir() if f.is_file())
    windows = {name: addition.window for name, addition in additions.items()}
    written = tuple(
        OnnxSite(s.name, s.layer, s.code, s.message, windows.get(s.name, ()), file.learned.get(s.name, ())) for s in plan
    )
    _warn_of_doubts(source.name, trials)
    return RewrittenFile(str(target), source.model.opset_imports[""], size, written, check, asked, took, plan, trials)


def _because(plan: Plan) -> str:
    """Why sites were left alone that a rule might have taken."""
    said = dict.fromkeys(f"; {s.name}: {s.message}" for s in plan if s.code in ("no-rule", "control-flow", "refused"))
    return "".join(list(said)[:3])


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
        manual_seed(0)
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


def _warn_of_doubts(source: str, trials: Sequence[SizeTrial]) -> None:
    doubts = dict.fromkeys(doubt for trial in trials for doubt in trial.doubts)
    if doubts:
        warnings.warn(
            f"{source} has numbers that are right at its native sizes, and at others only if its model doesn't compute them of "
            f"these: {', '.join(doubts)}. Compare with the model before you ask for other sizes (result.trials says which)",
            SizeWarning,
            stacklevel=3,
        )


def _inputs(model: onnx_ir.Model, given: Mapping[str, object] | None) -> dict[str, np.ndarray]:
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
