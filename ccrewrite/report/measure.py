"""``compare``: two or more models measured against each other on the same inputs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, cast

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from ccrewrite.errors import InputError, ModelRunError
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.capture import Inputs, Model, as_module
from ccrewrite.ir.json_types import JsonObject
from ccrewrite.ir.options import check_arguments
from ccrewrite.ir.preserve import unwatched
from ccrewrite.ir.progress import step
from ccrewrite.ir.spent import flops_of, peak_memory
from ccrewrite.ir.timing import CONFIDENCE, MIN_ROUNDS, Case, Effort, time_cases
from ccrewrite.ir.wrappers import unwrapped
from ccrewrite.passes.verify import compare_outputs, outputs_of
from ccrewrite.report.comparison import COMPILED, INFERENCE, MOVED, ORIGINAL, REWRITTEN, SCHEMA, Comparison
from ccrewrite.report.compiling import compile_all, room_for
from ccrewrite.report.cost import parameters_of
from ccrewrite.report.environment import environment
from ccrewrite.report.pictures import receptive_field
from ccrewrite.report.running import inference, modes_of
from ccrewrite.report.sites import sites_of
from ccrewrite.report.variants import batch_of, variants_of

if TYPE_CHECKING:
    from ccrewrite.forecasting.answer import Forecast
    from ccrewrite.report.budget import Trade

FULL, QUICK = Effort(60, (MIN_ROUNDS, 201), 0.02), Effort(3, (MIN_ROUNDS, 21), 0.002)
SITES_FULL, SITES_QUICK = Effort(20, (MIN_ROUNDS, 51), 0.002), Effort(2, (MIN_ROUNDS, MIN_ROUNDS), 0.0)


def compare(
    original: Model,
    rewritten: Model,
    example_inputs: object,
    *,
    variants: Mapping[str, Model] | Sequence[str] | None = None,
    quick: bool = False,
    compiled: bool | Collection[str] | None = None,
    batches: Sequence[int] = (),
    scale_groups: bool | None = None,
    trade: Trade | None = None,
    forecast: Forecast | None = None,
    seed: int = 0,
    command: str = "ccrewrite.compare",
    progress: bool | None = None,
) -> Comparison:
    """Parameters, FLOPs, latency, memory, errors and geometry of ``original`` and ``rewritten`` on ``example_inputs``.

    All models run in evaluation mode and are left as they were; further ones under ``torch.compile`` are not looked at site by
    site.

    Args:
        original: the model before, or any that is to be compared with.
        rewritten: the model after, or what ``rewrite`` returned.
        example_inputs: as ``plan``'s; costs are those at their sizes.
        variants: further models by name, or names in ``ccrewrite.report.variants.VARIANTS`` ("folded", ...), made of
            ``rewritten``.
        quick: seconds instead of minutes, with wider intervals.
        compiled: time inference by ``torch.compile``, too, of every model or of those named: minutes for large ones. None:
            unless ``quick``.
        batches: time inference at these batch sizes, too.
        scale_groups: find which sites of ``rewritten`` change size together. None: unless ``quick``.
        trade: what ``ccrewrite.report.budget.trade`` gave, to be shown.
        forecast: what ``ccrewrite.forecast`` gave, to be shown.
        seed: of the order of the rounds, and of the intervals.
        command: kept as what made the report.
        progress: a bar on stderr; None: where that is a terminal.

    Returns:
        The comparison, to be printed, saved as a page and read as data (seconds, bytes, FLOPs, samples).

    Raises:
        InputError: for models, names or inputs that can't be used.
        ModelRunError: where a model raises on the inputs.

    >>> import ccrewrite
    >>> model, x = nn.Conv2d(3, 8, 3, dilation=2), torch.randn(1, 3, 16, 16)
    >>> comparison = compare(model, ccrewrite.rewrite(model, x).model, x, quick=True)
    >>> comparison["rewritten"]["parameters"], comparison["rewritten"]["outputs"][0]["max_abs_error"]
    ({'total': 242, 'trainable': 242, 'added': 18}, 0.0)
    """
    check_arguments(compare, locals())
    inputs = Inputs.of(example_inputs)
    models = {ORIGINAL: as_module(original), REWRITTEN: as_module(rewritten)}
    scale_groups = not quick if scale_groups is None else scale_groups
    effort = QUICK if quick else FULL
    stages = len(models) + len(variants or ()) + len(batches) + scale_groups + 4
    with _Stages(stages, sys.stderr.isatty() if progress is None else progress) as stage:
        stage.next("making the variants")
        models |= {n: as_module(m) for n, m in variants_of(models[REWRITTEN], example_inputs, variants).items()}
        plain = {name: unwrapped(model) for name, model in models.items()}
        device = _device(inputs, models.values())
        to_compile = _to_compile(models, not quick if compiled is None else compiled)
        if to_compile or any(plain[name] is not model for name, model in models.items()):
            stage.enter_context(room_for(len(models)))
        outputs = {name: outputs_of(model, inputs) for name, model in models.items()}
        entries: list[JsonObject] = []
        for name, model in models.items():
            stage.next(f"counting {name}")
            entries.append({"name": name, **_counted(model, inputs, device)})
            entries[-1]["outputs"] = _errors(outputs[ORIGINAL], outputs[name])
        stage.next("compiling")
        more, failures = compile_all(to_compile, inputs, stage.part)
        stage.next("timing the models")
        timed = _timed(models, inputs, device, effort, seed, stage.part, more)
        for entry in entries:
            times = timed[entry["name"]]
            alone = [f"no {mode} is timed: the original has none" for mode in entry["memory_bytes"] if mode not in times]
            entry |= {"latency": times, "notes": failures.get(entry["name"], []) + alone}
        sweep: list[JsonObject] = []
        for size in batches:
            stage.next(f"batches of {size}")
            timed = _timed(models, batch_of(inputs, size), device, effort, seed, stage.part, training=False)
            sweep.append({"batch": size, "latency": {name: times[INFERENCE] for name, times in timed.items()}})
        extras: JsonObject = {"batches": sweep} if sweep else {}
        if scale_groups:
            stage.next("scale groups")
            extras |= _scale_groups(plain[REWRITTEN], inputs)
        if trade is not None:
            extras["trade"] = json.loads(trade.to_json())
        if forecast is not None:
            extras["forecast"] = forecast.for_report()
        stage.next("timing the sites")
        # The sites of a compiled model don't run by themselves; those of the first two models say what was rewritten.
        apart = {n: m for n, m in plain.items() if m is models[n] or n in (ORIGINAL, REWRITTEN)}
        sites = sites_of(apart, inputs, device, SITES_QUICK if quick else SITES_FULL, seed, stage.part)
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


class _Stages(ExitStack):
    """A bar on stderr, one stage after the other. What else is entered ends with it."""

    def __init__(self, stages: int, shown: bool) -> None:
        super().__init__()
        bar = Progress(console=Console(stderr=True), transient=True, disable=not shown)
        self.stages = stages
        self.bar, self.done = self.enter_context(bar), -1
        self.task = bar.add_task("", total=stages)

    def next(self, what: str) -> None:
        self.done += 1
        self.bar.update(self.task, completed=self.done, description=what)
        step("compare", what, self.done / self.stages)

    def part(self, share: float) -> None:
        """How much of the stage is done."""
        self.bar.update(self.task, completed=self.done + share)


def _to_compile(models: Mapping[str, nn.Module], wanted: bool | Collection[str]) -> dict[str, nn.Module]:
    names = (models if wanted else ()) if isinstance(wanted, bool) else wanted
    for name in names:
        if name not in models:
            raise InputError(f"compiled names {name!r}; the models are {', '.join(models)}")
    return {name: model for name, model in models.items() if name in names}


def _counted(model: nn.Module, inputs: Inputs, device: torch.device) -> JsonObject:
    """Of a compiled model, memory is that of the compiled run, and FLOPs are those of the operations that were compiled."""
    plain = unwrapped(model)
    flops: dict[str, int] = {}
    memory: dict[str, int] = {}
    with unwatched([model], inputs.tensors()):
        for mode in modes_of(plain, inputs):
            with mode.context():
                flops[mode.name] = flops_of(mode.run)
        for mode in modes_of(model, inputs):
            with mode.context():
                memory[mode.name] = peak_memory(mode.run, device)
    samplings = [m for m in plain.modules() if isinstance(m, Sampling)]
    return {
        "samplings": len(samplings),
        "parameters": parameters_of(plain),
        "flops": flops,
        "memory_bytes": memory,
        "receptive_field": receptive_field(plain, inputs),
    }


def _scale_groups(model: nn.Module, inputs: Inputs) -> JsonObject:
    """The scale groups as plain data; empty where no site can be resized. A model that can't be followed: why."""
    from ccrewrite.passes.scales.scale_groups import scale_groups as find_scale_groups  # Dynamo, which only those pay who ask
    from ccrewrite.passes.scales.sizes import samplings_of

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
    progress: Callable[[float], None],
    compiled: Mapping[str, nn.Module] | None = None,
    *,
    training: bool = True,
) -> dict[str, JsonObject]:
    """Variant -> mode -> ``Timing`` as plain data. Ratios are over the original in the same mode (kernels built: inference)."""
    cases: dict[str, Case] = {}
    owners: dict[str, tuple[str, str]] = {}
    with unwatched(models.values(), inputs.tensors()):
        for name, model in models.items():
            modes = modes_of(model, inputs) if training else [inference(INFERENCE, model, inputs)]
            if compiled and name in compiled:
                modes.append(inference(COMPILED, compiled[name], inputs))
            for mode in modes:
                key = f"{name}: {mode.name}"
                reference = f"{ORIGINAL}: {INFERENCE if mode.name == MOVED else mode.name}"
                if name == ORIGINAL or reference in cases:
                    owners[key] = name, mode.name
                    cases[key] = Case(mode.run, mode.context, key if name == ORIGINAL else reference)
        timings = time_cases(cases, effort, seed=seed, cuda=device.type == "cuda", progress=progress)
    found: dict[str, JsonObject] = {name: {} for name in models}
    for key, (name, mode_name) in owners.items():
        found[name][mode_name] = timings[key].data()
    return found


def _errors(original: Mapping[str, object], other: Mapping[str, object]) -> list[JsonObject]:
    """One entry for each output; errors that are not finite (another shape, another type) are None."""
    found: list[JsonObject] = []
    for check in compare_outputs(original, other):
        entry = asdict(check) | {"shape": list(check.shape), "mean_abs_error": None}
        if check.max_abs_error == float("inf"):
            entry |= {"max_abs_error": None, "max_rel_error": None}
        elif isinstance(before := original[check.path], Tensor):
            entry["mean_abs_error"] = mean_error(before, cast(Tensor, other[check.path]))
        found.append(entry)
    return found


def mean_error(before: Tensor, after: Tensor) -> float:
    wide = torch.complex128 if before.is_complex() else torch.float64
    same = (before == after) | (before.isnan() & after.isnan())
    difference = (before.to(wide) - after.to(wide)).abs().masked_fill(same, 0)
    return float(difference.mean()) if difference.numel() else 0.0


def _device(inputs: Inputs, models: Iterable[nn.Module]) -> torch.device:
    tensors = [*inputs.tensors(), *(t for m in models for t in (*m.parameters(), *m.buffers()))]
    if any(t.is_meta for t in tensors):
        raise InputError("models are compared by running them, which the meta device can't: load weights and inputs first")
    devices = {t.device for t in tensors}
    return next((d for d in devices if d.type == "cuda"), torch.device("cpu"))


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
