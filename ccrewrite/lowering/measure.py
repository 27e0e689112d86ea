"""Times the forms of a site as torch.compile runs them, and remembers the choices on disk."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import tempfile
import types
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from ccrewrite.lowering import inductor
from ccrewrite.lowering.calls import SiteCall
from ccrewrite.nn.dcls import DclsSampling

ROUNDS = 3
SECONDS = 0.1
"""Shortest time of one of the rounds that each form gets, one after the other; the fastest counts."""


def measure(site: SiteCall, forms: Sequence[str], training: bool) -> dict[str, float]:
    """Seconds of one compiled call (with its backward, in ``training``) in each of ``forms``, on random data of the site's
    shapes and with positions off the grid. Leaves the site's own sampling alone."""
    generator = torch.Generator(site.device).manual_seed(0)
    factory: dict[str, Any] = {"device": site.device, "dtype": site.dtype}
    input = torch.randn(site.input, generator=generator, **factory).requires_grad_(training)
    weight = nn.Parameter(torch.randn(site.weight, generator=generator, **factory), requires_grad=training)
    bias = (
        nn.Parameter(torch.randn(site.weight[0], generator=generator, **factory), requires_grad=training) if site.bias else None
    )
    timers: dict[str, Timer] = {}
    for form in forms:
        sampling = _moved(site.sampling, form, training)
        run = torch.compile(_function_of_its_own(), fullgraph=True, dynamic=False, options=inductor.options())
        step = {"step": _step, "run": run, "arguments": (sampling, input, weight, bias, site.call), "training": training}
        timers[form] = Timer("step(run, arguments, training)", globals=step)
        timers[form].timeit(2)  # compiles
    rounds = [
        {form: timer.blocked_autorange(min_run_time=SECONDS).median for form, timer in timers.items()} for _ in range(ROUNDS)
    ]
    return {form: min(r[form] for r in rounds) for form in forms}


def _moved(sampling: DclsSampling, form: str, training: bool) -> DclsSampling:
    sampling = copy.deepcopy(sampling).requires_grad_(training)
    sampling.form = form
    with torch.no_grad():
        sampling.offset.add_(0.3)
    return sampling


def _call(sampling: nn.Module, input: Tensor, weight: Tensor, bias: Tensor | None, call: dict[str, Any]) -> Tensor:
    return sampling(input, weight, bias, **call)


def _function_of_its_own() -> Any:
    # torch.compile counts recompilations by code object, and gives up after eight.
    return types.FunctionType(_call.__code__.replace(), _call.__globals__)


def _step(run: Any, arguments: tuple[Any, ...], training: bool) -> None:
    if not training:
        with torch.no_grad():
            run(*arguments)
        return
    out = run(*arguments)
    wanted = [t for t in (*arguments[1:4], *arguments[0].parameters()) if isinstance(t, Tensor)]
    torch.autograd.grad(out, wanted, torch.ones_like(out))


def cache_file() -> Path:
    """Where choices are kept: ``$CCREWRITE_CACHE``, or the user's cache folder."""
    folder = os.environ.get("CCREWRITE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ccrewrite"
    return Path(folder) / "forms.json"


def cache_key(site: SiteCall, training: bool) -> str:
    """Equal for what may be expected to take equally long: device, threads, versions, shapes, mode."""
    device = torch.cuda.get_device_name(site.device) if site.device.type == "cuda" else site.device.type
    where = (device, torch.get_num_threads(), torch.__version__, inductor.code_hash())
    return hashlib.sha256(repr((where, training, site.key())).encode()).hexdigest()[:32]


def load_times() -> dict[str, dict[str, float]]:
    """All measurements that are known; a file that can't be read is none, and said so."""
    file = cache_file()
    if not file.exists():
        return {}
    try:
        return cast(dict[str, dict[str, float]], json.loads(file.read_text()))
    except (OSError, ValueError) as error:
        warnings.warn(f"{file} can't be read ({error}): forms are measured anew", stacklevel=2)
        return {}


def save_times(times: dict[str, dict[str, float]]) -> None:
    """Add measurements to the file."""
    file = cache_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as temporary:
            json.dump(load_times() | times, temporary, indent=1)
        Path(temporary.name).replace(file)
    except OSError as error:
        warnings.warn(f"{file} can't be written ({error}): the forms' times will be measured again next time", stacklevel=2)
