"""Rewritten against original, output by output: ``compare_outputs`` and the search for sites that change them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from ccrewrite.families.rule import Rule
from ccrewrite.ir.calls import CONV, CONV_TRANSPOSE, FUNCTIONS
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.check import TOLERANCE, OutputCheck
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.observe import watched
from ccrewrite.ir.preserve import preserved, random_states_kept, trainable_made, unwatched
from ccrewrite.ir.sites import Site
from ccrewrite.ir.threads import one_at_a_time
from ccrewrite.ir.typed import manual_seed
from ccrewrite.ir.wrappers import unwrapped


def outputs_of(model: nn.Module, inputs: Inputs) -> dict[str, object]:
    """The leaves of ``model``'s output by path, run in evaluation mode on one random state; the model is left as it was."""
    compiled = unwrapped(model) is not model
    left_alone = unwatched([model], inputs.tensors()) if compiled else preserved(model, inputs.tensors())
    with left_alone, torch.no_grad():
        manual_seed(0)
        # Copies: an output may be (a view of) an input or a buffer that `preserved` puts back.
        return {p: v.clone() if isinstance(v, Tensor) else v for p, v in leaves(inputs.run(model), "output")}


@contextmanager
def called(modules: Mapping[str, nn.Module]) -> Generator[Counter[str]]:
    """How often each of ``modules`` is called inside, by name."""
    seen: Counter[str] = Counter()
    with watched(modules, lambda name, args, kwargs: seen.update([name])):
        yield seen


def leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    """Tensors and plain values in nested tuples, lists, mappings, dataclasses and objects, with their paths."""
    yield from _leaves(value, path, set())


def _leaves(value: object, path: str, above: set[int]) -> Iterator[tuple[str, object]]:
    if value is None or isinstance(value, (Tensor, bool, int, float, complex, str, bytes)):
        yield path, value
        return
    if id(value) in above:
        return
    above = above | {id(value)}
    if isinstance(value, Mapping):
        parts = [(f"[{k!r}]", v) for k, v in cast("Mapping[object, object]", value).items()]
    elif isinstance(value, (tuple, list)):
        sequence = cast("Sequence[object]", value)
        names = getattr(sequence, "_fields", None)
        parts = [(f".{names[i]}" if names else f"[{i}]", v) for i, v in enumerate(sequence)]
    elif is_dataclass(value):
        parts = [(f".{f.name}", getattr(value, f.name)) for f in fields(value)]
    else:
        parts = [(f".{k}", v) for k, v in getattr(value, "__dict__", {}).items()]
    for name, part in parts:
        yield from _leaves(part, path + name, above)


def compare_outputs(
    original: Mapping[str, object], rewritten: Mapping[str, object], tolerance: Mapping[torch.dtype, float] = TOLERANCE
) -> tuple[OutputCheck, ...]:
    """One ``OutputCheck`` for each tensor or value that either has."""
    paths = [*original, *(p for p in rewritten if p not in original)]
    return tuple(c for p in paths if (c := _compare(p, original.get(p), rewritten.get(p), tolerance)) is not None)


def _compare(path: str, before: object, after: object, tolerance: Mapping[torch.dtype, float]) -> OutputCheck | None:
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        if type(before) is type(after) and before == after:
            return None
        return OutputCheck(
            path, type(before).__name__, (), float("inf"), float("inf"), 1, False, f"{before!r} became {after!r}"
        )
    shape, dtype = tuple(before.shape), str(before.dtype).removeprefix("torch.")
    if shape != tuple(after.shape) or before.dtype != after.dtype:
        note = f"{shape} {before.dtype} became {tuple(after.shape)} {after.dtype}"
        return OutputCheck(path, dtype, shape, float("inf"), float("inf"), before.numel(), False, note)
    if not before.numel():
        return OutputCheck(path, dtype, shape, 0.0, 0.0, 0, True)
    if not before.dtype.is_floating_point and not before.dtype.is_complex:
        flips = int((before != after).sum())
        largest = float((before.double() - after.double()).abs().max())
        note = f"{flips} of {before.numel()} values flipped: rounding upstream of a discrete choice" if flips else ""
        return OutputCheck(path, dtype, shape, largest, float(flips > 0), flips, not flips, note)
    largest, scale = _largest(before, after)
    relative = largest / scale if scale else largest
    base = torch.zeros((), dtype=before.dtype).abs().dtype
    return OutputCheck(path, dtype, shape, largest, relative, 0, relative <= tolerance.get(base, tolerance[torch.float32]))


def _largest(before: Tensor, after: Tensor) -> tuple[float, float]:
    """The largest difference, and the largest finite magnitude of ``before``. Infinities that agree and NaNs that agree count
    as equal; any other difference that isn't finite stays visible."""
    enough = torch.promote_types(before.dtype, torch.float32) if before.dtype.itemsize > 1 else torch.float32
    a, b = before.to(enough), after.to(enough)
    largest, scale = _magnitude(a - b), _magnitude(a)
    if math.isfinite(largest) and math.isfinite(scale):
        return largest, scale
    wide = torch.complex128 if before.dtype.is_complex else torch.float64
    same = (before == after) | (before.isnan() & after.isnan())
    difference = (before.to(wide) - after.to(wide)).abs().masked_fill(same, 0)
    finite = before.to(wide).abs().masked_fill(~before.isfinite(), 0)
    return float(difference.max()), float(finite.max())


def _magnitude(tensor: Tensor) -> float:
    """The largest one; not finite where one of the values isn't."""
    if tensor.is_complex():
        return float(tensor.abs().max())
    low, high = tensor.aminmax()  # in one pass, with nothing written
    return float(torch.maximum(low.abs(), high.abs()))


@trainable_made()
def built_error(site: Site, rule: Rule) -> float:
    """Largest difference between the plain convolution and the rule's sampling with its kernel built, relative to the largest
    output, in float64, for the site's geometry with few channels and a small input. Raises ``InputError`` where the sampling
    raises."""
    geometry = _with_few_channels(site.geometry)
    with one_at_a_time(), random_states_kept():
        manual_seed(0)
        with rule.asked_about(site):
            sampling = rule.made(replace(site, geometry=geometry), dtype=torch.float64, device="cpu")
        g = geometry
        weight = torch.randn(*g.weight_channels, *g.kernel_size, dtype=torch.float64, device="cpu")
        axes = zip(g.extent, g.stride, g.pads, strict=True)
        # Large enough that an output is left: padding takes from a transposed convolution's output, not from its input.
        size = [sum(pads) // s + 4 if g.transposed else e + 2 * s for e, s, pads in axes]
        input = torch.randn(2, g.in_channels, *size, dtype=torch.float64, device="cpu")
    arguments: dict[str, object] = {n: getattr(g, n) for n in (CONV_TRANSPOSE if g.transposed else CONV)}
    with torch.enable_grad(), rule.asked_about(site):
        built = sampling(input, weight, None, **arguments).detach()
    plain: Tensor = FUNCTIONS[g.transposed, g.ndim](input, weight, None, **arguments)
    return float((built - plain).abs().max() / plain.abs().max())


def _with_few_channels(geometry: ConvGeometry) -> ConvGeometry:
    """The same geometry with at most two groups, and few channels in each."""
    g = geometry
    groups, inputs, outputs = min(g.groups, 2), min(g.in_channels // g.groups, 2), min(g.out_channels // g.groups, 3)
    return replace(g, in_channels=groups * inputs, out_channels=groups * outputs, groups=groups)


def culprits(names: Sequence[str], passes: Callable[[Sequence[str]], bool]) -> list[str]:
    """The sites that must be put back, found by halving: ``passes(some)`` tells whether rewriting just ``some`` is right."""
    if not names or passes(names):
        return []
    if len(names) == 1:
        return list(names)
    middle = len(names) // 2
    return culprits(names[:middle], passes) + culprits(names[middle:], passes)
