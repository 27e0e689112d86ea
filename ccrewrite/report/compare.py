"""``compare``: two or more models measured against each other on the same inputs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from textwrap import shorten
from typing import Any, cast

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from ccrewrite.budget import Trade
from ccrewrite.capture import Inputs, Model, as_module
from ccrewrite.errors import InputError, ModelRunError
from ccrewrite.nn.sampling import Sampling
from ccrewrite.passes.scale_groups import scale_groups as find_scale_groups
from ccrewrite.passes.sizes import samplings_of
from ccrewrite.passes.verify import compare_outputs, leaves, outputs_of
from ccrewrite.preserve import preserved
from ccrewrite.report.comparison import COMPILED, INFERENCE, MOVED, ORIGINAL, REWRITTEN, SCHEMA, TRAINING, Comparison
from ccrewrite.report.cost import flops_of, parameters_of, peak_memory, training_step
from ccrewrite.report.environment import environment
from ccrewrite.report.latency import CONFIDENCE, MIN_ROUNDS, Case, Effort, time_cases
from ccrewrite.report.observe import built
from ccrewrite.report.pictures import receptive_field
from ccrewrite.report.sites import sites_of
from ccrewrite.report.variants import batch_of, variants_of

FULL, QUICK = Effort(60, (21, 201), 0.02), Effort(3, (MIN_ROUNDS, 21), 0.002)
SITES_FULL, SITES_QUICK = Effort(20, (MIN_ROUNDS, 51), 0.002), Effort(2, (MIN_ROUNDS, MIN_ROUNDS), 0.0)


def compare(
    original: Model,
    rewritten: Model,
    example_inputs: Any,
    *,
    variants: Mapping[str, Model] | Sequence[str] | None = None,
    quick: bool = False,
    compiled: bool | None = None,
    batches: Sequence[int] = (),
    scale_groups: bool | None = None,
    trade: Trade | None = None,
    seed: int = 0,
    command: str = "ccrewrite.compare",
    progress: bool | None = None,
) -> Comparison:
    """Parameters, FLOPs, latency, memory, errors and geometry of ``original`` and ``rewritten`` on ``example_inputs``.

    ``variants`` names further models to put beside them, or is a list of names in ``ccrewrite.report.variants.VARIANTS``
    ("folded", ...), made of ``rewritten``. All run in evaluation mode and are left as they were. ``quick`` takes seconds
    instead of minutes, with wider intervals.

    ``compiled``: time inference of every model by ``torch.compile``, too, which takes minutes for large ones. ``batches``: time
    inference at these batch sizes, too. ``scale_groups``: find which sites of ``rewritten`` change size together. None for
    either: unless ``quick``. ``trade``: what ``ccrewrite.trade`` gave, to be shown. ``command`` is recorded as what made the
    report; ``progress`` shows a bar on stderr, None: where that is a terminal.

    Raises ``InputError`` for models, names or inputs that can't be used, ``ModelRunError`` where a model raises on them.

    >>> import ccrewrite
    >>> model, x = nn.Conv2d(3, 8, 3, dilation=2), torch.randn(1, 3, 16, 16)
    >>> comparison = compare(model, ccrewrite.rewrite(model, x).model, x, quick=True)
    >>> comparison["rewritten"]["parameters"], comparison["rewritten"]["outputs"][0]["max_abs_error"]
    ({'total': 242, 'trainable': 242, 'added': 18}, 0.0)
    """
    inputs = Inputs.of(example_inputs)
    models = {ORIGINAL: as_module(original), REWRITTEN: as_module(rewritten)}
    models |= {n: as_module(m) for n, m in variants_of(models[REWRITTEN], example_inputs, variants).items()}
    compiled, scale_groups = (not quick if option is None else option for option in (compiled, scale_groups))
    device = _device(inputs, models.values())
    plain = {name: cast(nn.Module, getattr(m, "_orig_mod", m)) for name, m in models.items()}  # under torch.compile
    wanted = sys.stderr.isatty() if progress is None else progress
    with Progress(console=Console(stderr=True), transient=True, disable=not wanted) as bar:
        task = bar.add_task("running", total=len(models) + 2 + compiled + len(batches) + scale_groups)

        def next_is(what: str) -> None:
            bar.update(task, advance=1, description=what)

        outputs = {name: _outputs(model, inputs) for name, model in models.items()}
        entries: list[dict[str, Any]] = []
        for name, model in plain.items():
            next_is(f"counting {name}")
            entries.append({"name": name, **_counted(model, inputs, device)})
            entries[-1]["outputs"] = _errors(outputs[ORIGINAL], outputs[name])
        effort = QUICK if quick else FULL
        if compiled:
            next_is("compiling")
        more, failures = _compiled(models, inputs) if compiled else ({}, {})
        next_is("timing the models")
        timed = _timed(models, inputs, device, effort, seed, more)
        for entry in entries:
            entry |= {"latency": timed[entry["name"]], "notes": failures.get(entry["name"], [])}
        sweep: list[dict[str, Any]] = []
        for size in batches:
            next_is(f"batches of {size}")
            timed = _timed(models, batch_of(inputs, size), device, effort, seed, training=False)
            sweep.append({"batch": size, "latency": {name: times[INFERENCE] for name, times in timed.items()}})
        extras: dict[str, Any] = {"batches": sweep} if sweep else {}
        if scale_groups:
            next_is("scale groups")
            extras |= _scale_groups(plain[REWRITTEN], inputs)
        if trade is not None:
            extras["trade"] = json.loads(trade.to_json())
        next_is("timing the sites")
        sites = sites_of(plain, inputs, device, SITES_QUICK if quick else SITES_FULL, seed)
    return Comparison(
        {
            "schema": SCHEMA,
            "command": command,
            "environment": environment(device),
            "settings": {"quick": quick, "seed": seed, "confidence": CONFIDENCE},
            "model": type(plain[ORIGINAL]).__name__,
            "inputs": [{"shape": list(t.shape), "dtype": _dtype(t)} for t in inputs.tensors()],
            "variants": entries,
            "sites": sites,
            **extras,
        }
    )


@dataclass(frozen=True)
class Mode:
    """One way to run a model that is worth a number: ``run`` inside ``context()``."""

    name: str
    run: Callable[[], object]
    context: Callable[[], AbstractContextManager[Any]]


def modes_of(model: nn.Module, plain: nn.Module, inputs: Inputs) -> list[Mode]:
    """Inference as the model is; with every kernel built, where it would not be yet; forward and backward.

    ``plain`` is ``model`` without what ``torch.compile`` wraps around it.
    """
    inference = partial(_inference, model, inputs)
    found = [Mode(INFERENCE, inference, nullcontext)]
    with torch.no_grad():
        waiting = any(m.runs_plain() for m in plain.modules() if isinstance(m, Sampling))
    if waiting and model is plain:  # a compiled one builds them anyway
        found.append(Mode(MOVED, inference, partial(built, plain)))
    if training_step(model, inputs) is not None:
        found.append(Mode(TRAINING, partial(training_step, model, inputs), nullcontext))
    return found


def _inference(model: nn.Module, inputs: Inputs) -> object:
    with torch.no_grad():
        return inputs.run(model)


def _counted(model: nn.Module, inputs: Inputs, device: torch.device) -> dict[str, Any]:
    flops: dict[str, int] = {}
    memory: dict[str, int] = {}
    with evaluating([model], inputs):
        for mode in modes_of(model, model, inputs):
            with mode.context():
                flops[mode.name] = flops_of(mode.run)
                memory[mode.name] = peak_memory(mode.run, device)
    samplings = [m for m in model.modules() if isinstance(m, Sampling)]
    return {
        "samplings": len(samplings),
        "parameters": parameters_of(model),
        "flops": flops,
        "memory_bytes": memory,
        "receptive_field": receptive_field(model, inputs),
    }


def _compiled(models: Mapping[str, nn.Module], inputs: Inputs) -> tuple[dict[str, nn.Module], dict[str, list[str]]]:
    """(Name -> the model compiled and run once; name -> why there is none)."""
    found: dict[str, nn.Module] = {}
    failures: dict[str, list[str]] = {}
    for name, model in models.items():
        if hasattr(model, "_orig_mod"):
            continue
        candidate = cast(nn.Module, torch.compile(model))
        try:
            with evaluating([model], inputs), torch.no_grad():
                inputs.run(candidate)
        except ModelRunError as error:
            cause = error.__cause__ or error
            failures[name] = [f"torch.compile: {type(cause).__name__}: {shorten(str(cause), 200)}"]
        else:
            found[name] = candidate
    return found, failures


def _scale_groups(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """The scale groups as plain data; empty where the model has no CC site. A model that can't be followed: why."""
    if not samplings_of(model):
        return {}
    try:
        groups = find_scale_groups(model, inputs)
        found = [
            {
                "name": g.name,
                "sites": list(g.sites),
                "native": [list(size) for size in g.native],
                "relations": list(g.relations),
                "pins": [None if pin is None else str(pin.where) for pin in g.pins],
            }
            for g in groups
        ]
        return {"scale_groups": {"groups": found}}
    except ModelRunError as error:
        return {"scale_groups": {"groups": [], "note": str(error)}}


def _timed(
    models: Mapping[str, nn.Module],
    inputs: Inputs,
    device: torch.device,
    effort: Effort,
    seed: int,
    compiled: Mapping[str, nn.Module] | None = None,
    *,
    training: bool = True,
) -> dict[str, dict[str, Any]]:
    """Variant -> mode -> ``Timing`` as plain data. Ratios are over the original in the same mode (kernels built: inference)."""
    cases: dict[str, Case] = {}
    owners: dict[str, tuple[str, str]] = {}
    with evaluating(models.values(), inputs):
        for name, model in models.items():
            modes = modes_of(model, cast(nn.Module, getattr(model, "_orig_mod", model)), inputs) if training else []
            modes = modes or [Mode(INFERENCE, partial(_inference, model, inputs), nullcontext)]
            if compiled and name in compiled:
                modes.append(Mode(COMPILED, partial(_inference, compiled[name], inputs), nullcontext))
            for mode in modes:
                key = f"{name}: {mode.name}"
                reference = f"{ORIGINAL}: {INFERENCE if mode.name == MOVED else mode.name}"
                owners[key] = name, mode.name
                cases[key] = Case(mode.run, mode.context, reference if reference in cases else key)
        timings = time_cases(cases, effort, seed=seed, cuda=device.type == "cuda")
    found: dict[str, dict[str, Any]] = {name: {} for name in models}
    for key, (name, mode_name) in owners.items():
        found[name][mode_name] = asdict(timings[key])
    return found


@contextmanager
def evaluating(models: Sequence[nn.Module] | Any, inputs: Inputs) -> Generator[None]:
    """Models in evaluation mode; afterwards they, their buffers, the inputs and the random states are as before.

    Like ``preserved`` for all of them, but without its guard over every operator, which would be timed too.
    """
    tensors = [*inputs.tensors(), *(b for m in models for b in m.buffers())]
    saved = [(t, t.detach().clone()) for t in tensors]
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(preserved(model, None))
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, values in saved:
                    if not torch.equal(tensor, values):
                        tensor.copy_(values)


def _outputs(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    if not hasattr(model, "_orig_mod"):
        return outputs_of(model, inputs)
    with evaluating([model], inputs), torch.no_grad():  # under the guard of `outputs_of`, torch.compile would not compile
        torch.manual_seed(0)
        return {p: v.clone() if isinstance(v, Tensor) else v for p, v in leaves(inputs.run(model), "output")}


def _errors(original: Mapping[str, Any], other: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry for each output; errors that are not finite (another shape, another type) are None."""
    found: list[dict[str, Any]] = []
    for check in compare_outputs(original, other):
        entry = asdict(check) | {"shape": list(check.shape), "mean_abs_error": None}
        if check.max_abs_error == float("inf"):
            entry |= {"max_abs_error": None, "max_rel_error": None}
        elif isinstance(original[check.path], Tensor):
            entry["mean_abs_error"] = mean_error(original[check.path], other[check.path])
        found.append(entry)
    return found


def mean_error(before: Tensor, after: Tensor) -> float:
    wide = torch.complex128 if before.is_complex() else torch.float64
    same = (before == after) | (before.isnan() & after.isnan())
    difference = (before.to(wide) - after.to(wide)).abs().masked_fill(same, 0)
    return float(difference.mean()) if difference.numel() else 0.0


def _device(inputs: Inputs, models: Any) -> torch.device:
    tensors = [*inputs.tensors(), *(t for m in models for t in (*m.parameters(), *m.buffers()))]
    if any(t.is_meta for t in tensors):
        raise InputError("models are compared by running them, which the meta device can't: load weights and inputs first")
    devices = {t.device for t in tensors}
    return next((d for d in devices if d.type == "cuda"), torch.device("cpu"))


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
