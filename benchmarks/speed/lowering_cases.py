"""What the speed tables of lowering measure, on any device: layers, what they are compared with, and every form of them."""

from __future__ import annotations

import copy
import statistics
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ccrewrite
from ccrewrite.lowering.inductor import options
from ccrewrite.nn import DclsConv2d

Run = Callable[[Tensor], Tensor]
Runs = dict[str, tuple[nn.Module, Run]]
"""Name -> (what holds the parameters, what to run)."""
CONVNEXT = ((96, 56), (192, 28), (384, 14), (768, 7))
"""Channels and size of ConvNeXt-T's four stages."""


class Case(NamedTuple):
    """One layer and its input; all layers of a case without bias."""

    name: str
    ours: DclsConv2d
    plain: nn.Conv2d
    x: Tensor
    reference: nn.Module | None
    """PyPI ``dcls``'s layer, where that package is installed and has one."""


def depthwise(channels: int, size: int, batch: int, elements: int = 34, window: int = 17) -> Case:
    """ConvNeXt-dcls's layer; the plain one is the 7x7 that it replaces."""
    name = f"{channels}@{size}, batch {batch}"
    ours = DclsConv2d(
        channels,
        channels,
        padding=window // 2,
        groups=channels,
        bias=False,
        elements=elements,
        window=window,
        sharing="full",
        position_init="uniform",
    )
    plain = nn.Conv2d(channels, channels, 7, padding=3, groups=channels, bias=False)
    theirs = _reference("v0", channels, channels, elements, dilated_kernel_size=window, padding=window // 2, groups=channels)
    return Case(name, ours, plain, torch.randn(batch, channels, size, size), theirs)


def shared(inner: int, out: int, dilation: int, size: int, batch: int, sharing: str) -> Case:
    """A dilated 3x3 convolution whose positions the input channels share ("tap", or "out": per output channel)."""
    per = {"tap": "tap", "out": "output channel"}[sharing]
    name = f"{inner}->{out}, dilation {dilation}, {size}x{size}, batch {batch}, per {per}"
    return Case(name, *_dilated(inner, out, dilation, sharing), torch.randn(batch, inner, size, size), None)


def unshared(channels: int, dilation: int, size: int, version: str) -> Case:
    """A dilated 3x3 convolution with a position for each weight, against the reference's ``version``."""
    kind = {"v1": "linear", "gauss": "gaussian"}[version]
    ours, plain = _dilated(channels, channels, dilation, "full", interpolation=kind)
    theirs = _reference(version, channels, channels, 9, dilated_kernel_size=2 * dilation + 1, padding=dilation)
    name = f"{channels}->{channels}, dilation {dilation}, {size}x{size}, {version}"
    return Case(name, ours, plain, torch.randn(1, channels, size, size), theirs)


def _dilated(inner: int, out: int, dilation: int, sharing: str, **more: Any) -> tuple[DclsConv2d, nn.Conv2d]:
    plain = nn.Conv2d(inner, out, 3, padding=dilation, dilation=dilation, bias=False)
    ours = DclsConv2d(inner, out, 3, padding=dilation, dilation=dilation, bias=False, sharing=sharing, **more)
    with torch.no_grad():
        ours.weight.copy_(plain.weight)
        nn.init.uniform_(ours.sampling.offset, -0.9, 0.9)
    return ours, plain


def _reference(version: str, *arguments: Any, **options: Any) -> nn.Module | None:
    try:
        import DCLS.construct.modules as modules  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return modules.Dcls2d(*arguments, **options, bias=False, version=version)


def own(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with a code object of its own: torch.compile counts recompilations by that, and gives up after eight."""
    return types.FunctionType(
        function.__code__.replace(), function.__globals__, None, function.__defaults__, function.__closure__
    )


def compiled(module: nn.Module) -> Run:
    def run(x: Tensor) -> Tensor:
        return module(x)

    return torch.compile(own(run), dynamic=False, options=options())


def formed(layer: DclsConv2d, form: str) -> DclsConv2d:
    """A copy of ``layer`` in ``form``."""
    layer = copy.deepcopy(layer)
    layer.sampling.form = form
    return layer


def live(case: Case, forms: Sequence[str]) -> Runs:
    """``forms`` with learnable geometry, compiled."""
    found: Runs = {}
    for form in forms:
        layer = formed(case.ours, form)
        found[form] = layer, compiled(layer)
    return found


def dense(case: Case) -> tuple[nn.Module, Run]:
    """The effective kernel, built once, as an eager convolution."""
    ours = case.ours
    shape = ours.in_channels, ours.out_channels, ours.sampling.window
    layer = nn.Conv2d(*shape, padding=ours.padding, groups=ours.groups, bias=False, device=case.x.device, dtype=case.x.dtype)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        layer.weight.copy_(ours.sampling.kernel(ours.weight))
    return layer, layer


def folded(case: Case, forms: Sequence[str] = ()) -> Runs:
    """Without learnable geometry: as ``ccrewrite.lower`` makes it for inference, and in each of ``forms``."""
    lowered = ccrewrite.lower(nn.Sequential(case.ours), case.x, dynamic=False).model
    found: Runs = {"folded": (lowered, lowered)}
    for form in forms:
        model = ccrewrite.fold(nn.Sequential(case.ours), case.x, forms={"0": form}).model
        found[f"folded, {form}"] = model, compiled(model)
    return found


def step(run: Run, x: Tensor, parameters: list[nn.Parameter], gradient: Tensor | None) -> Callable[[], Any]:
    """A forward, or with ``gradient`` (the output's) a forward and backward, for all parameters and the input."""
    if gradient is None:
        x = x.detach()

        def forward() -> Any:
            with torch.no_grad():
                return run(x)

        return forward
    x = x.detach().requires_grad_()
    return lambda: torch.autograd.grad(run(x), [x, *parameters], gradient)


def steps(case: Case, runs: Runs, training: bool) -> dict[str, Callable[[], Any]]:
    with torch.no_grad():
        gradient = torch.randn_like(case.plain(case.x)) if training else None
    return {name: step(run, case.x, list(module.parameters()), gradient) for name, (module, run) in runs.items()}


def error(case: Case, runs: Runs, names: set[str]) -> float:
    """Largest relative difference of the outputs of ``names`` from the definition in float64."""
    with torch.no_grad():
        expected = _defined(case)
        found = [runs[name][1](case.x).double() for name in names]
    return max(float((y - expected).abs().max() / expected.abs().max()) for y in found)


def _defined(case: Case) -> Tensor:
    """The layer's output in float64: for few channels by its effective kernel, else tap by tap (the kernel of 2048 channels has
    gigabytes, and torch's convolution in float64 copies the input for each of its cells)."""
    sampling, weight, x = case.ours.sampling, case.ours.weight.double(), case.x.double()
    if case.ours.groups > 1 or sampling.sharing not in ("tap", "out"):
        return F.conv2d(x, sampling.kernel(weight), padding=case.ours.padding, groups=case.ours.groups)
    padding = case.ours.padding
    size = [n + 2 * p - w + 1 for n, p, w in zip(x.shape[2:], padding, sampling.window, strict=True)]  # pyright: ignore[reportOperatorIssue]
    x = F.pad(x, (padding[1], padding[1] + 1, padding[0], padding[0] + 1))  # one more: to the right of the last sample  # pyright: ignore[reportArgumentType, reportOperatorIssue]
    rows, columns = (along[:, 0] for along in sampling.cells())
    out = x.new_zeros(len(x), len(weight), *size)
    for tap, mixing in enumerate(weight.flatten(2).unbind(2)):
        mixed = torch.einsum("oi,nihw->nohw", mixing, x)
        for row, column in {*zip(rows[:, tap].tolist(), columns[:, tap].tolist(), strict=True)}:
            here = (rows[:, tap] == row) & (columns[:, tap] == column)
            those = mixed if here.all() else mixed[:, here.expand(len(weight))]
            value = _between(_between(those, 2, row, size[0]), 3, column, size[1])
            out[:, here.expand(len(weight))] += value
    return out


def _between(x: Tensor, axis: int, position: float, size: int) -> Tensor:
    """``size`` samples of ``x`` along ``axis`` from ``position`` on, linearly interpolated."""
    low = int(position)
    return torch.lerp(x.narrow(axis, low, size), x.narrow(axis, low + 1, size), position - low)


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "q1": low, "q3": high}
