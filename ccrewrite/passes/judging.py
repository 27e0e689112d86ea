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

Seen = Mapping[str, Sequence[tuple[Tensor, Tensor]]]
"""By site, input and output of each of its calls, in order."""


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
    """A site's call: the module that made it, and with what. ``norm``: the batch norm that took its output alone."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    norm: list[nn.Module] = field(default_factory=list[nn.Module])

    def outputs(self, x: Tensor) -> Iterator[Tensor]:
        """For the input ``x``; then what the norm makes of it, for another program may have merged the two."""
        kwargs = {**self.kwargs, "input": x} if "input" in self.kwargs else self.kwargs
        out = self.module(*([x, *self.args[1:]] if self.args else []), **kwargs)
        yield out
        for norm in self.norm:
            yield norm(out)


def judged(model: nn.Module, inputs: Inputs, seen: Callable[[], Seen]) -> Verdict:
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
            wrong = [_error(call, x, y) for call, (x, y) in zip(made, theirs, strict=True)]
            if any(wrong):
                faults.append(f"{site} {next(filter(None, wrong))}")
    return Verdict(tuple(faults), tuple(unknown))


def _error(call: _Call, x: Tensor, y: Tensor) -> str:
    """What is wrong with the output ``y`` for the input ``x``; "" where nothing is."""
    said = ""
    for expected in call.outputs(x):
        (output,) = compare_outputs({"": expected}, {"": y.to(expected.dtype)}, COMPILED)
        if output.ok:
            return ""
        said = said or output.note or f"is off by {output.max_rel_error:.1e} on the input that it gets"
    return said


@contextmanager
def _recorded(model: nn.Module) -> Generator[dict[str, list[_Call]]]:
    """The calls of every rewritten site that are made inside."""
    calls: dict[str, list[_Call]] = {}
    by_output: dict[int, _Call] = {}

    def site_hook(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            call = _Call(module, args, kwargs, out)
            calls[name].append(call)
            by_output[id(out)] = call

        return hook

    def norm_hook(module: nn.Module, args: Any, out: Any) -> None:
        if args and id(args[0]) in by_output:
            by_output[id(args[0])].norm.append(module)

    with ExitStack() as stack:
        for name, site in rewritten_sites(model).items():
            calls[name] = []
            module = site.module if site.key is None else site.sampling
            stack.callback(module.register_forward_hook(site_hook(name), with_kwargs=True).remove)
        for norm in (m for m in model.modules() if isinstance(m, BatchNorm)):
            stack.callback(norm.register_forward_hook(norm_hook).remove)
        yield calls
