"""Times the forms of a site as torch.compile runs them, and remembers the choices on disk."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import tempfile
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ccrewrite.families.adopt import RewrittenConv
from ccrewrite.families.dcls.sampling import DclsSampling
from ccrewrite.ir.timing import MIN_ROUNDS, Case, Effort, time_cases
from ccrewrite.lowering import inductor
from ccrewrite.lowering.calls import SiteCall
from ccrewrite.passes.fold.layers import fold_layer_
from ccrewrite.passes.substitute import copied

EFFORT = Effort(0, (MIN_ROUNDS, MIN_ROUNDS), 0.03)
"""A third of a second for each form."""


def measure(site: SiteCall, forms: Sequence[str]) -> dict[str, float]:
    """Seconds of one compiled call and its backward in each of ``forms``, on random data of the site's shapes, with positions
    off the grid. Leaves the site's own sampling alone."""
    generator = torch.Generator(site.device).manual_seed(0)
    factory: dict[str, Any] = {"device": site.device, "dtype": site.dtype}
    input = torch.randn(site.input, generator=generator, **factory).requires_grad_()
    weight = nn.Parameter(torch.randn(site.weight, generator=generator, **factory))
    bias = nn.Parameter(torch.randn(site.weight[0], generator=generator, **factory)) if site.bias else None

    def step(form: str) -> Callable[[], object]:
        sampling, run = _moved(site.sampling, form), _compiled()
        wanted = [t for t in (input, weight, bias, *sampling.parameters()) if t is not None]

        def both() -> None:
            out = run(sampling, (input, weight, bias), site.call)
            torch.autograd.grad(out, wanted, torch.ones_like(out))

        return both

    return _times({form: step(form) for form in forms}, site.device)


def measure_folded(layer: RewrittenConv, shape: Sequence[int], forms: Sequence[str]) -> dict[str, float]:
    """Seconds of one compiled call of ``layer`` folded to each of ``forms``, on random data of this shape."""
    like = next(layer.parameters())
    generator = torch.Generator(like.device).manual_seed(0)
    input = torch.randn(tuple(shape), generator=generator, device=like.device, dtype=like.dtype)

    def inference(form: str) -> Callable[[], object]:
        folded, run = copied(layer), _compiled()
        fold_layer_(cast(RewrittenConv, folded), keep=False, form=form)
        folded.eval()

        @torch.no_grad()
        def forward() -> None:
            run(folded, (input,), {})

        return forward

    return _times({form: inference(form) for form in forms}, like.device)


def _times(runs: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    cases = {form: Case(run, nullcontext, form) for form, run in runs.items()}
    return {form: timing.median_s for form, timing in time_cases(cases, EFFORT, cuda=device.type == "cuda").items()}


def _moved(sampling: DclsSampling, form: str) -> DclsSampling:
    sampling = copy.deepcopy(sampling).requires_grad_()
    sampling.form = form
    with torch.no_grad():
        sampling.offset.add_(0.3)
    return sampling


def _call(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    return module(*arguments, **named)


def _compiled() -> Callable[..., Tensor]:
    # torch.compile counts recompilations by code object, and gives up after eight.
    function = types.FunctionType(_call.__code__.replace(), _call.__globals__)
    return torch.compile(function, fullgraph=True, dynamic=False, options=inductor.options())


def cache_file() -> Path:
    """Where choices are kept: ``$CCREWRITE_CACHE``, or the user's cache folder."""
    folder = os.environ.get("CCREWRITE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ccrewrite"
    return Path(folder) / "forms.json"


def cache_key(device: torch.device, mode: str, *what: Any) -> str:
    """Equal for what may be expected to take equally long: ``what`` (shapes and options), on this device and these versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    where = (name, torch.get_num_threads(), torch.__version__, inductor.code_hash())
    return hashlib.sha256(repr((where, mode, what)).encode()).hexdigest()[:32]


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
