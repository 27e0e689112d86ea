"""Site by site: what changed in each convolution of a run, what that costs, and how far it carries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from ccrewrite.families.family import title_of
from ccrewrite.ir.capture import Inputs, capture
from ccrewrite.ir.geometry import ConvGeometry, Ints
from ccrewrite.ir.json_types import JsonObject
from ccrewrite.ir.sites import Site
from ccrewrite.ir.spent import flops_of
from ccrewrite.ir.timing import Case, Effort, time_cases
from ccrewrite.passes.detect import detect
from ccrewrite.report.comparison import INFERENCE as AS_IS
from ccrewrite.report.comparison import MOVED as BUILT
from ccrewrite.report.comparison import ORIGINAL
from ccrewrite.report.observe import ConvRun, built, convolutions_of
from ccrewrite.report.pictures import geometry_of


def sites_of(
    models: Mapping[str, nn.Module],
    inputs: Inputs,
    device: torch.device,
    effort: Effort,
    seed: int,
    progress: Callable[[float], None],
) -> list[JsonObject]:
    """One entry for each site of the original that runs, with one entry in its ``variants`` for each model.

    A site of another model is the one at the same place in the run, or where the runs differ, in the same module.
    """
    sites = detect(models[ORIGINAL], capture(models[ORIGINAL], inputs, "observe"))
    runs = {name: convolutions_of(model, inputs) for name, model in models.items()}
    first = runs[ORIGINAL]
    matched = {name: _matched(first, others) for name, others in runs.items()}
    entries: list[JsonObject] = []
    cases: dict[str, Case] = {}
    for site in sites:
        mine = [i for i, run in enumerate(first) if _belongs(run, site)]
        if not mine:
            continue
        found: JsonObject = {}
        for name, model in models.items():
            pairs = [(first[i], other) for i in mine if (other := matched[name].get(i)) is not None]
            if not pairs:
                continue
            found[name] = _measured(pairs, site.geometry, model)
            for mode in found[name]["flops"]:
                run = _replay(pairs)
                context = partial(built, model) if mode == BUILT else nullcontext
                cases[f"{site.name}|{name}|{mode}"] = Case(run, context, f"{site.name}|{ORIGINAL}|{AS_IS}")
        entries.append(_described(site) | {"variants": found})
    timings = time_cases(cases, effort, seed=seed, cuda=device.type == "cuda", progress=progress) if cases else {}
    for entry in entries:
        for name, variant in entry["variants"].items():
            variant["latency"] = {mode: timings[f"{entry['name']}|{name}|{mode}"].data() for mode in variant["flops"]}
    return entries


def _described(site: Site) -> JsonObject:
    g: JsonObject = asdict(site.geometry)
    return {
        "name": site.name,
        "layer": site.layer,
        "form": site.written_form,
        "kinds": list(site.kinds),
        "geometry": {k: list(cast("Ints", v)) if isinstance(v, tuple) else v for k, v in g.items()},
        "described": site.geometry.describe(),
        "calls": site.calls,
        "input_shapes": [list(s) for s in site.input_shapes],
        "output_shapes": [list(s) for s in site.output_shapes],
    }


def _belongs(run: ConvRun, site: Site) -> bool:
    if run.site is not None:
        return run.site == site.name
    if run.module != site.module or not site.functional:
        return run.module == site.module
    return (run.weight_name, run.geometry) == (site.weight, site.geometry)


def _matched(original: Sequence[ConvRun], other: Sequence[ConvRun]) -> dict[int, ConvRun]:
    """Index of a run of the original -> the other model's."""
    if [r.output.shape for r in original] == [r.output.shape for r in other]:
        return dict(enumerate(other))
    left = list(other)
    found: dict[int, ConvRun] = {}
    for i, run in enumerate(original):
        twin = next((r for r in left if r.module == run.module and r.output.shape == run.output.shape), None)
        if twin is not None:
            found[i] = twin
            left.remove(twin)
    return found


def _measured(pairs: Sequence[tuple[ConvRun, ConvRun]], geometry: ConvGeometry, model: nn.Module) -> JsonObject:
    """Of one site in one model: parameters, FLOPs, errors, learnt geometry. ``pairs`` are its calls, the original's first."""
    sampling = pairs[0][1].sampling
    run, before = _replay(pairs), [one.output for one, _ in pairs]
    alike = all(_feed(*pair) is pair[0].input for pair in pairs)
    with torch.no_grad():
        flops = {AS_IS: flops_of(run)}
        entry: JsonObject = {
            "sampling": None if sampling is None else title_of(sampling),
            "weight_parameters": pairs[0][1].weight.numel(),
            "added_parameters": 0 if sampling is None else sum(p.numel() for p in sampling.parameters()),
            "error": {
                "local": _error(before, run()) if alike else None,
                "propagated": _error(before, [other.output for _, other in pairs]),
            },
        }
        if sampling is not None:
            if sampling.runs_plain():
                with built(model):
                    flops[BUILT] = flops_of(run)
                    entry["error"]["local, kernels built"] = _error(before, run()) if alike else None
            entry["learnt"] = geometry_of(sampling, pairs[0][1].weight, geometry)
    return entry | {"flops": flops}


def _replay(pairs: Sequence[tuple[ConvRun, ConvRun]]) -> Callable[[], list[Tensor]]:
    """The second model's calls on the first one's inputs."""

    def run() -> list[Tensor]:
        with torch.no_grad():
            return [other.again(_feed(one, other)) for one, other in pairs]

    return run


def _feed(one: ConvRun, other: ConvRun) -> Tensor:
    """The input that the original gives the call; its own where that has another shape (a layer that pads by itself)."""
    return one.input if one.input.shape == other.input.shape else other.input


def _error(before: Sequence[Tensor], after: Sequence[Tensor]) -> dict[str, float] | None:
    """Largest and mean difference over all calls, and the largest over the largest magnitude. None where shapes differ."""
    if any(b.shape != a.shape for b, a in zip(before, after, strict=True)):
        return None
    one, other = (torch.cat([t.flatten().to(_wide(t)) for t in tensors]) for tensors in (before, after))
    difference = (one - other).abs()
    largest, scale = float(difference.max()), float(one.abs().max())
    found = {
        "max_abs_error": largest,
        "mean_abs_error": float(difference.mean()),
        "max_rel_error": largest / scale if scale else largest,
    }
    return {name: float(f"{value:.7g}") for name, value in found.items()}


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.complex128 if tensor.is_complex() else torch.float64
