"""What ``benchmarks/speed/gpu.py`` measures: sections of named cases, each a function that returns plain data."""

from __future__ import annotations

import gc
import itertools
import statistics
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch._inductor.config
import torch.nn.functional as F
from lowering_cases import CONVNEXT, Case, Runs, compiled, depthwise, error, folded, formed, live, shared, spread, steps
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code

import ccrewrite
from ccrewrite.demo.network import segmenter
from ccrewrite.families.dcls.kernel import dcls_kernel
from ccrewrite.ir import timing

Named = Iterator[tuple[str, Callable[[], dict[str, Any]]]]

PRECISIONS = {"bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}
ALLOWED = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 5e-2}
"""Largest difference from float64, relative to the largest output (or gradient)."""


class Setting(NamedTuple):
    precision: str
    layout: str
    batch: int


SAMPLE_S = 3e-3
"""Faster calls are timed several at once."""


class Clock:
    """Milliseconds of calls, by the device's own clock; and their memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def in_turn(self, todo: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
        """Every variant's time in every round, after a warm-up."""
        cases = {name: timing.Case(run, nullcontext, name) for name, run in todo.items()}
        found = timing.samples(cases, timing.Effort(0.0, (rounds, rounds), SAMPLE_S), cuda=self.device.type == "cuda")
        return {name: [1e3 * seconds for seconds in times] for name, times in found.items()}

    def peak_megabytes(self, function: Callable[[], Any]) -> float | None:
        """Of memory above what is held before the call."""
        if self.device.type != "cuda":
            return None
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - held) / 1e6


def settings(quick: bool) -> list[Setting]:
    """The important ones first: time may be up before the last."""
    if quick:
        return [Setting("fp32", "contiguous", 1)]
    found = [Setting(p, c, b) for b, p, c in itertools.product((32, 1, 128), PRECISIONS, ("contiguous", "channels_last"))]
    return sorted(found, key=lambda s: (s.layout != "contiguous", s.batch != 32, s.precision != "bf16"))


def allow(precision: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"


class Autocast(nn.Module):
    """The reference's layer in bfloat16: its kernels come out in float32 whatever its parameters are."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.layer(x)


def put(case: Case, device: torch.device, setting: Setting) -> Case:
    """On the device, in a precision and memory format. Positions stay in float32."""
    dtype = PRECISIONS[setting.precision]
    form = torch.channels_last if setting.layout == "channels_last" else torch.contiguous_format
    case.ours.to(device)
    case.ours.weight.data = case.ours.weight.data.to(dtype)
    plain = case.plain.to(device, dtype, memory_format=form)  # pyright: ignore[reportCallIssue]
    reference = None if case.reference is None else case.reference.to(device)
    if reference is not None and dtype != torch.float32:
        reference = Autocast(reference)
    return case._replace(plain=plain, reference=reference, x=case.x.to(device, dtype, memory_format=form))


def work(case: Case, training: bool) -> tuple[float, float]:
    """(bytes that must move, operations that must be done): input and output once; the taps' multiplications and additions."""
    out, inner = case.ours.weight.shape[:2]
    samples = case.x.shape[0] * case.x.shape[2] * case.x.shape[3]
    one = case.x.element_size() * samples
    forward, backward = one * (case.x.shape[1] + out), one * (2 * case.x.shape[1] + out)
    operations = 2 * out * inner * case.ours.sampling.offset[0, 0, 0].numel() * samples
    return forward + training * backward, operations * (1 + 2 * training)


def ceilings(device: torch.device, clock: Clock, quick: bool) -> dict[str, float]:
    """The device's own rates: bytes per second of a copy (read and written), operations per second of a matrix product."""
    n = 256 if quick else 8192
    source = torch.randn(n * n if quick else 1 << 29, device=device)
    target = torch.empty_like(source)
    todo: dict[str, Callable[[], Any]] = {"copy": lambda: target.copy_(source)}
    for precision, dtype in PRECISIONS.items():
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))

        def product(a: torch.Tensor = a, b: torch.Tensor = b, precision: str = precision) -> None:
            allow(precision)
            torch.mm(a, b)

        todo[precision] = product
    found = {name: min(times) for name, times in clock.in_turn(todo, 3 if quick else 10).items()}
    amounts = {name: 2.0 * source.nbytes if name == "copy" else 2.0 * n**3 for name in found}
    return {name: amounts[name] / (1e-3 * ms) for name, ms in found.items()}


def variants(case: Case, training: bool, quick: bool) -> Runs:
    forms = [f for f in case.ours.sampling.forms if f in ("taps", "products", "shifts")]
    if case.ours.groups > 1 or not forms:
        forms = [*forms, "window"]
    runs: Runs = {"plain": (case.plain, case.plain), **live(case, forms[:1] if quick else forms)}
    if not training and not quick:
        runs |= folded(case)
    if case.reference is not None:
        runs["dcls"] = case.reference, case.reference
    return runs


def measure(case: Case, precision: str, training: bool, clock: Clock, rates: dict[str, float], quick: bool) -> dict[str, Any]:
    allow(precision)
    runs = variants(case, training, quick)
    todo = steps(case, runs, training)
    taken = clock.in_turn(todo, 3 if quick else 15)
    wrong = error(case, runs, set(runs) - {"plain", "dcls"})
    moved, done = work(case, training)
    floor = 1e3 * max(moved / rates["copy"], done / rates[precision])
    return {
        "floor_ms": floor,
        "largest_relative_error": wrong,
        "exact": wrong <= ALLOWED[precision],
        "variants": {
            name: {
                "ms": spread(times),
                "peak_mb": clock.peak_megabytes(todo[name]),
                "times_floor": statistics.median(times) / floor,
                "ratios": {
                    b: spread([t / r for t, r in zip(times, taken[b], strict=True)])
                    for b in ("plain", "dcls")
                    if b in taken and b != name
                },
            }
            for name, times in taken.items()
        },
    }


def layers(section: str, batch: int, quick: bool) -> Iterator[tuple[str, Callable[[], Case]]]:
    """A section's cases; built when their turn comes."""
    if section == "depthwise":
        for channels, size in ((8, 8),) if quick else CONVNEXT:
            sizes = (channels, size, batch, 5, 5) if quick else (channels, size, batch)
            yield f"{channels}@{size}", lambda sizes=sizes: depthwise(*sizes)
        return
    for inner, out, dilation, size, sharing in (
        [(4, 4, 2, 9, "tap")]
        if quick
        else [(256, 256, d, h, s) for h in (33, 65) for d in (6, 12, 2, 18) for s in ("tap", "out")]
        + [(2048, 256, 12, 33, "tap")]
    ):
        name = f"{inner}->{out}, dilation {dilation}, {size}x{size}, per {sharing}"
        yield name, lambda a=(inner, out, dilation, size, batch, sharing): shared(*a)


def timed(section: str, device: torch.device, clock: Clock, quick: bool, rates: dict[str, float]) -> Named:
    """Layers of one kind in every setting, forward and backward and forward alone."""
    for setting in settings(quick):
        for name, make in layers(section, setting.batch, quick):
            for training in (True, False):

                def result(make: Callable[[], Case] = make, setting: Setting = setting, training: bool = training) -> Any:
                    torch.manual_seed(0)
                    case = put(make(), device, setting)
                    found = measure(case, setting.precision, training, clock, rates, quick)
                    return {**setting._asdict(), "training": training, **found}

                way = "forward and backward" if training else "forward"
                yield f"{name}, batch {setting.batch}, {setting.precision}, {setting.layout}, {way}", result


def checks(device: torch.device, quick: bool, folder: Path) -> Named:
    """Every form's output and gradients against the effective kernel in float64; and its code, kept in ``folder``."""
    cases: dict[str, Callable[[], Case]] = {
        "depthwise": lambda: depthwise(8, 7, 2, 5, 5) if quick else depthwise(96, 28, 2),
        "shared": lambda: shared(4, 6, 2, 9, 2, "tap") if quick else shared(64, 96, 6, 33, 2, "tap"),
        "shared per output channel": lambda: shared(4, 6, 2, 9, 2, "out") if quick else shared(64, 96, 6, 33, 2, "out"),
    }
    for (name, make), precision in itertools.product(cases.items(), ("fp32",) if quick else PRECISIONS):
        for form in (f for f in make().ours.sampling.forms if f != "slices"):  # which wait for a device

            def result(name: str = name, make: Any = make, form: str = form, precision: str = precision) -> dict[str, Any]:
                torch.manual_seed(0)
                case = put(make(), device, Setting(precision, "contiguous", 2))
                allow(precision)
                layer = formed(case.ours, form)
                given = [case.x.clone().requires_grad_(), layer.weight, layer.sampling.offset]

                def step(layer: Any = layer, given: list[Any] = given) -> list[Tensor]:
                    y = compiled(layer)(given[0])
                    return [y, *torch.autograd.grad(y.float().sin().sum(), given)]

                with torch._inductor.config.patch(force_disable_caches=True):
                    found, codes = run_and_get_code(step)
                wrong = [relative(f, e) for f, e in zip(found, definition(case), strict=True)]
                kept: list[str] = []
                for way, code in zip(("forward", "backward"), codes if precision != "tf32" else (), strict=False):
                    kept.append(f"{name.replace(' ', '_')}_{form}_{way}_{precision}.py")
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / kept[-1]).write_text(code)
                code = "".join(codes)
                return {
                    "form": form,
                    "precision": precision,
                    "relative_errors": dict(zip(("output", "input", "weight", "offset"), wrong, strict=True)),
                    "exact": max(wrong) <= ALLOWED[precision],
                    "kernels": code.count("@triton.jit"),
                    "atomics": code.count("tl.atomic_"),
                    "source": kept,
                }

            yield f"{name}, {form}, {precision}", result


def definition(case: Case) -> list[Tensor]:
    """Output and gradients of the effective kernel in float64, from the values that the case has in its own precision."""
    sampling = case.ours.sampling
    given = [t.detach().double().requires_grad_() for t in (case.x, case.ours.weight, sampling.offset)]
    x, weight, offset = given
    kernel = dcls_kernel(weight, offset, None, sampling.grid)
    y = F.conv2d(x, kernel, padding=case.ours.padding, groups=case.ours.groups)
    return [y, *torch.autograd.grad(y.sin().sum(), given)]


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).detach().abs().max() / expected.detach().abs().max())


def models(device: torch.device, clock: Clock, quick: bool) -> Named:
    """The demo's network: compiled as it is; rewritten and lowered, unmoved; and with moved positions."""
    for batch in (1,) if quick else (32, 1, 128):

        def result(batch: int = batch) -> dict[str, Any]:
            allow("tf32")
            x = torch.randn(batch, 1, 32, 32, device=device) if quick else torch.randn(batch, 1, 256, 256, device=device)
            original = segmenter(pretrained=False).to(device)
            rewritten = ccrewrite.rewrite(original, x).model
            moved = ccrewrite.rewrite(original, x).model
            with torch.no_grad():
                for name, parameter in moved.named_parameters():
                    if name.endswith("sampling.offset"):
                        parameter.uniform_(-0.5, 0.5)
            todo: dict[str, Callable[[], Any]] = {"plain": forward(torch.compile(original), x)}
            for name, model in (("unmoved", rewritten), ("moved", moved)):
                todo[name] = forward(ccrewrite.lower(model, x, mode="inference").model, x)
            taken = clock.in_turn(todo, 3 if quick else 15)
            return {
                "variants": {
                    name: {
                        "ms": spread(times),
                        "peak_mb": clock.peak_megabytes(todo[name]),
                        "ratios": {"plain": spread([t / r for t, r in zip(times, taken["plain"], strict=True)])},
                    }
                    for name, times in taken.items()
                }
            }

        yield f"demo network, inference, batch {batch}, tf32", result


def forward(model: Any, x: Tensor) -> Callable[[], Any]:
    def run() -> Any:
        with torch.no_grad():
            return model(x)

    return run
