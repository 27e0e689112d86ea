"""The convolutions of one run, call by call: what went in, what came out, and how to make each of them again."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from ccrewrite.families.sampling import Sampling
from ccrewrite.families.sites import named_samplings, rewritten_sites
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.observe import SeenCall, convolutions_seen, watched
from ccrewrite.ir.preserve import preserved
from ccrewrite.ir.typed import manual_seed


@dataclass(frozen=True, eq=False)
class ConvRun:
    """One convolution of a run. ``site`` is its name where it goes through a sampling, ``module`` the path of the module that
    calls it (of the one that has the sampling), ``weight_name`` that of its weight, None where it is computed. ``geometry``:
    the call's, None where it goes through a sampling. ``again(x)`` makes the same call on another input."""

    site: str | None
    module: str
    weight_name: str | None
    weight: Tensor
    geometry: ConvGeometry | None
    sampling: Sampling | None
    input: Tensor
    output: Tensor
    again: Callable[[Tensor], Tensor]


def convolutions_of(model: nn.Module, inputs: Inputs) -> list[ConvRun]:
    """The convolutions that ``model`` calls from Python, in order, in evaluation mode and without gradients.

    A call that goes through a ``Sampling`` is one of them, what the sampling does inside is not. Tensors are copies.
    """
    runs: list[ConvRun] = []
    samplings = named_samplings(model)
    paths = {name: site.path for name, site in rewritten_sites(model).items()}
    given: list[Tensor] = []  # to the samplings that are running

    def seen(c: SeenCall) -> None:
        geometry = c.call.geometry(c.call.weight.shape)
        tensors = c.call.input.clone(), c.output.clone()
        runs.append(ConvRun(None, c.path, c.weight, c.call.weight, geometry, None, *tensors, c.again))

    def before(name: str, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        mode.inside += 1
        given.append(cast(Tensor, args[0]).clone())

    def after(name: str, args: tuple[object, ...], kwargs: dict[str, object], output: Tensor) -> None:
        mode.inside -= 1
        sampling, weight = samplings[name], cast(Tensor, args[1])
        known, again = mode.names.get(id(weight)), partial(_again, sampling, args[1:], kwargs)
        runs.append(ConvRun(name, paths.get(name, name), known, weight, None, sampling, given.pop(), output.clone(), again))

    with preserved(model, inputs.tensors()), torch.no_grad(), watched(samplings, before, after):
        manual_seed(0)
        with convolutions_seen(model, seen) as mode:
            inputs.run(model)
    return runs


def _again(sampling: Sampling, others: tuple[object, ...], named: dict[str, object], x: Tensor) -> Tensor:
    return sampling(x, *others, **named)


@contextmanager
def built(model: nn.Module) -> Generator[None]:
    """Inside, every sampling of ``model`` builds its kernel, as it does once its geometry has moved."""
    samplings = [m for m in model.modules() if isinstance(m, Sampling)]
    for sampling in samplings:
        vars(sampling)["runs_plain"] = _never
    try:
        yield
    finally:
        for sampling in samplings:
            del vars(sampling)["runs_plain"]


def _never() -> bool:
    return False
