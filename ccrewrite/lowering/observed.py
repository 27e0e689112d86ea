"""What goes into the sites of a model that is compiled, and what comes out of them: ``Observed``."""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from ccrewrite.families.sites import rewritten_sites
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.preserve import unwatched
from ccrewrite.ir.typed import named_modules
from ccrewrite.passes.judging import Seen, Verdict, judged


class Calls:
    """The names of the sites that were called, and how many tensors went into each call; these, and its output. No attribute
    of a module: torch.export takes tensors there for state."""

    def __init__(self) -> None:
        self.names: list[tuple[str, int]] = []
        self.values: list[Tensor] = []


class Observed(nn.Module):
    """``model``; it returns the input and output of each call of ``sites``, modules in it by name, in order, and between them
    the weight of those in ``computed``."""

    def __init__(self, model: nn.Module, sites: dict[str, nn.Module], computed: Container[str]) -> None:
        super().__init__()
        self.model = model
        self.calls = Calls()
        hooks = {name: self._hook(name, 2 if name in computed else 1) for name in sites}
        self.handles = [m.register_forward_hook(hooks[name], with_kwargs=True) for name, m in sites.items()]

    def _hook(self, name: str, ins: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Sequence[Tensor], kwargs: Mapping[str, Tensor], out: Tensor) -> None:
            self.calls.names.append((name, ins))
            self.calls.values += [*(args[:ins] or [kwargs["input"]]), out]

        return hook

    def forward(self, *args: object, **kwargs: object) -> list[Tensor]:
        self.calls = Calls()
        self.model(*args, **kwargs)
        return self.calls.values


def judge(
    given: nn.Module,
    inputs: Inputs,
    prepared: nn.Module,
    run: Callable[[nn.Module], object],
    *,
    gradients: bool = False,
) -> Verdict:
    """The sites of ``prepared``, which stands for ``given`` with their modules at the same paths, as ``run`` runs it: it is
    given a module that takes ``inputs``, compiles it, and returns what it gives. ``gradients``: so that these could be had.
    Where that can't be compiled, no site is judged."""

    def seen() -> Seen:
        found: dict[str, list[tuple[Sequence[Tensor], Tensor]]] = {}
        with observed(given, prepared) as module, unwatched([prepared], inputs.tensors()), torch.set_grad_enabled(gradients):
            inputs.run(module)
            called = module.calls.names
            try:
                values = [value.detach().clone() for value in cast("Iterable[Tensor]", run(module))]
            except Exception:  # of torch's compilers, and whatever they raise
                return {}
        if len(values) != sum(ins + 1 for _, ins in called):
            return {}
        left = iter(values)
        for name, ins in called:
            found.setdefault(name, []).append(([next(left) for _ in range(ins)], next(left)))
        return found

    return judged(given, inputs, seen)


@contextmanager
def observed(given: nn.Module, prepared: nn.Module) -> Generator[Observed]:
    """``prepared`` under observation, as long as the block lasts."""
    sites: dict[str, nn.Module] = {}
    modules = dict(named_modules(prepared))
    known = rewritten_sites(given)
    for name, site in known.items():
        path = site.path if site.key is None else site.sampling_paths[0]
        if path in modules:
            sites[name] = modules[path]
    module = Observed(prepared, sites, {name for name, s in known.items() if s.key is not None and s.weight is None})
    try:
        yield module
    finally:
        for handle in module.handles:
            handle.remove()
