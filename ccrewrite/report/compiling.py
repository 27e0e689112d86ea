"""Models under ``torch.compile``, beside one another in one process."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from textwrap import shorten

import torch
from torch import nn

from ccrewrite.errors import ModelRunError
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.preserve import unwatched
from ccrewrite.ir.torch_private import patched
from ccrewrite.ir.typed import compiled
from ccrewrite.ir.wrappers import unwrapped
from ccrewrite.report.environment import without_folders


@contextmanager
def room_for(models: int) -> Generator[None]:
    """Inside, ``models`` of the same classes can be compiled: Dynamo counts recompilations by code, not by model, and past its
    limit runs what it would have compiled, without saying so."""
    from torch._dynamo import config  # seconds, which only those pay who compile

    limits = {"recompile_limit": config.recompile_limit, "accumulated_recompile_limit": config.accumulated_recompile_limit}
    with patched(config, {name: limit * models for name, limit in limits.items()}):
        yield


def compile_all(
    models: Mapping[str, nn.Module], inputs: Inputs, progress: Callable[[float], None]
) -> tuple[dict[str, nn.Module], dict[str, list[str]]]:
    """(Name -> the model compiled and run once; name -> why there is none). One that is compiled already stands for itself."""
    found: dict[str, nn.Module] = {}
    failures: dict[str, list[str]] = {}
    for done, (name, model) in enumerate(models.items()):
        progress(done / len(models))
        if unwrapped(model) is not model:
            found[name] = model
            continue
        candidate = compiled(model)
        try:
            with unwatched([model], inputs.tensors()), torch.no_grad():
                inputs.run(candidate)
        except ModelRunError as error:
            cause = error.__cause__ or error
            failures[name] = [f"torch.compile: {type(cause).__name__}: {shorten(without_folders(str(cause)), 200)}"]
        else:
            found[name] = candidate
    return found, failures
