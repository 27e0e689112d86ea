"""A loss on the positions of taps."""

from __future__ import annotations

import torch
from torch import Tensor

from ccrewrite.errors import InputError
from ccrewrite.families.dcls.sampling import DclsSampling
from ccrewrite.ir.outcome import GivenModel, model_of
from ccrewrite.ir.typed import linalg


def repulsive_loss(model: GivenModel) -> Tensor:
    """How much the taps of DCLS layers crowd each other, a scalar in [0, 1]; 0 where all are a sample or more apart.

        R = mean over layers of  2 / (T (T - 1) A B) * sum over sets of positions, sum_{i<j} max(0, 1 - |p_i - p_j|)

    with T taps and A x B sets of positions per layer (A B = C_out C_in/groups where every channel has its own, as in the
    authors' training code). They add ``R ** 2`` to the loss after the first epochs. Layers that share positions count once. Two
    taps on the very same spot feel no push, for it has no direction.

    Args:
        model: a rewritten model, or what ``rewrite`` returned.

    Returns:
        The loss, with a gradient.

    Raises:
        InputError: where the model has no DCLS layer with two or more taps.

    >>> from ccrewrite.nn import DclsConv1d
    >>> layer = DclsConv1d(1, 1, elements=2, window=9)
    >>> _ = layer.sampling.offset.data.copy_(torch.tensor([0.0, 0.75]))
    >>> repulsive_loss(layer).item()
    0.25
    """
    terms: list[Tensor] = []
    counted: set[int] = set()
    for sampling in model_of(model).modules():
        if isinstance(sampling, DclsSampling) and id(sampling.offset) not in counted:
            counted.add(id(sampling.offset))
            places = torch.stack(sampling.cells())  # (ndim, A, B, T)
            count = places.shape[-1]
            if count > 1:
                first, second = torch.triu_indices(count, count, 1, device=places.device)
                apart = linalg.vector_norm(places[..., first] - places[..., second], dim=0)
                terms.append((1 - apart).clamp_min(0).mean())
    if not terms:
        raise InputError("the model has no DCLS layer with two taps or more; nothing can repel")
    return torch.stack(terms).mean()
