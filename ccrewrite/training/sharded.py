"""Geometry that FSDP has sharded, whole for a moment."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol, cast, runtime_checkable

from torch import Tensor, nn

from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.outcome import GivenModel, model_of
from ccrewrite.ir.torch_private import parameters_of


@runtime_checkable
class Sharded(Protocol):
    """A tensor of which each process has a share (torch's ``DTensor``, which takes long to import)."""

    def full_tensor(self) -> Tensor: ...


@contextmanager
def gathered(model: GivenModel) -> Generator[None]:
    """Inside, the parameters of a model's samplings are whole tensors, also where FSDP2 (``fully_shard``) keeps a share of them
    in each process.

    Gradients reach the shares. A call on all processes alike, for it communicates; where nothing is sharded it does nothing.
    What reads geometry outside the model's forward needs it there: ``repulsive_loss``, ``nyquist_penalty``, positions.

    Args:
        model: any model, or what a pass returned.

    >>> from ccrewrite.nn import DclsConv1d
    >>> layer = DclsConv1d(1, 1, elements=2, window=9)
    >>> with gathered(layer):
    ...     layer.sampling.positions().shape
    torch.Size([1, 1, 1, 2])
    """
    whole: dict[int, Tensor] = {}
    shares: list[tuple[nn.Module, str, nn.Parameter]] = []
    for sampling in model_of(model).modules():
        if isinstance(sampling, Sampling):
            for module in sampling.modules():
                shares += [(module, name, p) for name, p in parameters_of(module).items() if isinstance(p, Sharded)]
    for _, _, share in shares:
        if id(share) not in whole:
            whole[id(share)] = cast(Sharded, share).full_tensor()
    try:
        for module, name, share in shares:
            parameters_of(module)[name] = whole[id(share)]  # pyright: ignore[reportArgumentType]
        yield
    finally:
        for module, name, share in shares:
            parameters_of(module)[name] = share
