"""What goes into the sites of a model that is compiled, and what comes out of them: ``Observed``."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ccrewrite.families.sites import rewritten_sites
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.preserve import unwatched
from ccrewrite.ir.typed import named_modules
from ccrewrite.passes.judging import Seen, Verdict, judged


class Calls:
    """The names of the sites that were called, and the input and output of each call. No attribute of a module: torch.export
    takes tensors there for state."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.values: list[Tensor] = []


class Observed(nn.Module):
    """``model``; it returns the input and output of each call of ``sites``, modules in it by name, in order."""

    def __init__(self, model: nn.Module, sites: dict[str, nn.Module]) -> None:
        super().__init__()
        self.model = model
        self.calls = Calls()
        self.handles = [m.register_forward_hook(self._hook(name), with_kwargs=True) for name, m in sites.items()]

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, out: Tensor) -> None:
            self.calls.names.append(name)
            self.calls.values += [args[0] if args else kwargs["input"], out]

        return hook

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        self.calls = Calls()
        self.model(*args, **kwargs)
        return self.calls.values


def judge(
    given: nn.Module, inputs: Inputs, prepared: nn.Module, run: Callable[[nn.Module], Any], *, gradients: bool = False
) -> Verdict:
    """The sites of ``prepared``, which stands for ``given`` with their modules at the same paths, as ``run`` runs it: it is
    given a module that takes ``inputs``, compiles it, and returns what it gives. ``gradients``: so that these could be had.
    Where that can't be compiled, no site is judged."""

    def seen() -> Seen:
        found: dict[str, list[tuple[Tensor, Tensor]]] = {}
        with observed(given, prepared) as module, unwatched([prepared], inputs.tensors()), torch.set_grad_enabled(gradients):
            inputs.run(module)
            called = module.calls.names
            try:
                values = [value.detach().clone() for value in run(module)]
            except Exception:  # of torch's compilers, and whatever they raise
                return {}
        if len(values) != 2 * len(called):
            return {}
        for name, x, y in zip(called, values[::2], values[1::2], strict=True):
            found.setdefault(name, []).append((x, y))
        return found

    return judged(given, inputs, seen)


@contextmanager
def observed(given: nn.Module, prepared: nn.Module) -> Generator[Observed]:
    """``prepared`` under observation, as long as the block lasts."""
    sites: dict[str, nn.Module] = {}
    modules = dict(named_modules(prepared))
    for name, site in rewritten_sites(given).items():
        path = site.path if site.key is None else site.sampling_paths[0]
        if path in modules:
            sites[name] = modules[path]
    module = Observed(prepared, sites)
    try:
        yield module
    finally:
        for handle in module.handles:
            handle.remove()
