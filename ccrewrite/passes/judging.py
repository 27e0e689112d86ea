"""Sites of a model that another program computes (compiled, or a file), judged one by one on the inputs that they get there.

Where a model amplifies rounding its outputs can't tell a wrong site. So the program gives the inputs and outputs of its sites,
and each output is compared with what the site makes of that input in the model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ccrewrite.families.sites import rewritten_sites
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.check import COMPILED
from ccrewrite.ir.preserve import preserved
from ccrewrite.ir.torch_private import BatchNorm
from ccrewrite.ir.typed import manual_seed
from ccrewrite.passes.noise import JUDGED, ROUNDINGS
from ccrewrite.passes.verify import compare_outputs

Seen = Mapping[str, Sequence[tuple[Sequence[Tensor], Tensor]]]
"""By site, what goes into each of its calls, in order, and what comes out: the input, and where the weight is computed that
too, one or the other first."""


@dataclass(frozen=True)
class Verdict:
    """``faults``: what is wrong with sites. ``unknown``: those that could not be judged."""

    faults: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def roundings(self) -> float:
        """How many times the noise outputs may differ."""
        return ROUNDINGS if self.unknown else JUDGED


@dataclass
class _Call:
    """A site's call: the module that made it, and with what; ``computed``: a weight too. ``norm``: the batch norm that took its
    output alone."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Tensor
    computed: bool
    norm: list[nn.Module] = field(default_factory=list[nn.Module])

    def given(self, found: Sequence[Tensor]) -> list[Tensor] | None:
        """``found`` in the order and the types of this call's own; None where they can't be told apart, or are others."""
        own: list[Tensor] = [*self.args[:2]] if self.computed else [self.args[0] if self.args else self.kwargs["input"]]
        by_shape = {tensor.shape: tensor for tensor in found}
        if not len(own) == len(found) == len(by_shape) or any(tensor.shape not in by_shape for tensor in own):
            return None
        return [by_shape[tensor.shape].to(tensor) for tensor in own]

    def outputs(self, given: Sequence[Tensor]) -> Iterator[Tensor]:
        """For these inputs; then what the norm makes of it, for another program may have merged the two."""
        kwargs = self.kwargs if self.args else {**self.kwargs, "input": given[0]}
        out = self.module(*((*given, *self.args[len(given) :]) if self.args else ()), **kwargs)
        yield out
        for norm in self.norm:
            yield norm(out)


def judged(
    model: nn.Module, inputs: Inputs, seen: Callable[[], Seen], tolerance: Mapping[torch.dtype, float] = COMPILED
) -> Verdict:
    """``seen`` runs the program on ``inputs``; a site that it doesn't give is not judged. ``model`` runs in evaluation mode,
    and is left as it was."""
    with torch.no_grad(), preserved(model, inputs.tensors()):
        with _recorded(model) as calls:
            manual_seed(0)
            inputs.run(model)
        found = seen()
        faults: list[str] = []
        unknown: list[str] = []
        for site, made in calls.items():
            theirs = found.get(site, ())
            if len(theirs) != len(made):
                unknown.append(site)
                continue
            given = [call.given(ins) for call, (ins, _) in zip(made, theirs, strict=True)]
            if any(ins is None for ins in given):
                unknown.append(site)
                continue
            runs = zip(made, given, theirs, strict=True)
            wrong = [_error(call, ins, y, tolerance) for call, ins, (_, y) in runs if ins is not None]
            if any(wrong):
                faults.append(f"{site} {next(filter(None, wrong))}")
    return Verdict(tuple(faults), tuple(unknown))


def _error(call: _Call, given: Sequence[Tensor], y: Tensor, tolerance: Mapping[torch.dtype, float]) -> str:
    """What is wrong with the output ``y`` for the inputs ``given``; "" where nothing is."""
    said = ""
    for expected in call.outputs(given):
        (output,) = compare_outputs({"": expected}, {"": y.to(expected.dtype)}, tolerance)
        if output.ok:
            return ""
        said = said or output.note or f"is off by {output.max_rel_error:.1e} on the input that it gets"
    return said


@contextmanager
def _recorded(model: nn.Module) -> Generator[dict[str, list[_Call]]]:
    """The calls of every rewritten site that are made inside."""
    calls: dict[str, list[_Call]] = {}
    by_output: dict[int, _Call] = {}

    def site_hook(name: str, computed: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], out: Tensor) -> None:
            call = _Call(module, args, kwargs, out, computed)
            calls[name].append(call)
            by_output[id(out)] = call

        return hook

    def norm_hook(module: nn.Module, args: tuple[object, ...], out: object) -> None:
        if args and id(args[0]) in by_output:
            by_output[id(args[0])].norm.append(module)

    with ExitStack() as stack:
        for name, site in rewritten_sites(model).items():
            calls[name] = []
            module = site.module if site.key is None else site.sampling
            hook = site_hook(name, computed=site.key is not None and site.weight is None)
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        for norm in (m for m in model.modules() if isinstance(m, BatchNorm)):
            stack.callback(norm.register_forward_hook(norm_hook).remove)
        yield calls
