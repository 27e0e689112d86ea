"""Several learned geometries for one model: kept in memory, put in place in milliseconds."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from ccrewrite.errors import InputError
from ccrewrite.ir.outcome import GivenModel, model_of
from ccrewrite.ir.wrappers import unwrapped
from ccrewrite.saving.digests import warn_of_other_weights
from ccrewrite.saving.files import read
from ccrewrite.saving.original import added_names
from ccrewrite.saving.recipe import Recipe


class Geometries:
    """Geometries by name for one rewritten model, which stays the one that computes.

    Its weights are shared by all of them; what is kept for each is what rewriting added, kilobytes. Parameters are written in
    place: an optimizer, a compiled model or a wrapper around ``model`` goes on with them.

    Args:
        model: a rewritten model, or what ``rewrite`` returned.

    Raises:
        InputError: where nothing in ``model`` is rewritten.

    >>> import ccrewrite
    >>> from torch import nn
    >>> conv, x = nn.Conv2d(3, 8, 3, dilation=2), torch.randn(1, 3, 16, 16)
    >>> model = ccrewrite.rewrite(conv, x).model
    >>> geometries = Geometries(model)
    >>> geometries.keep("start")
    >>> _ = model.sampling.offset.data.fill_(0.5)
    >>> geometries.keep("moved")
    >>> geometries.use("start")
    >>> with torch.no_grad():
    ...     print(torch.equal(model(x), conv(x)), geometries.names)
    True ('start', 'moved')
    """

    def __init__(self, model: GivenModel) -> None:
        self.model = unwrapped(model_of(model, "what Geometries switches"))
        self._recipe = Recipe.of(self.model)
        if not self._recipe.samplings:
            raise InputError(f"nothing in this {type(self.model).__name__} is rewritten, so it has no geometry to switch")
        self._kept: dict[str, dict[str, Tensor]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Those that ``use`` takes, in the order in which they came."""
        return tuple(self._kept)

    def keep(self, name: str) -> None:
        """Keep the geometry that the model has now."""
        self._kept[name] = {n: tensor.detach().clone() for n, tensor in self._own().items()}

    def load(self, name: str, directory: str | os.PathLike[str]) -> None:
        """Keep the geometry that ``save(..., geometry_only=True)`` wrote to ``directory``. The model stays as it is.

        Raises ``InputError`` where that save is of another model, of other layers or options, or has weights too; a
        ``WeightsWarning`` says where it was learned on other weights than the model has.
        """
        document, tensors = read(Path(directory))
        if not document.geometry_only:
            raise InputError(f"{directory}: it has weights too, which Geometries leaves alone; save with geometry_only=True")
        if Recipe.from_document(document) != self._recipe:
            raise InputError(f"{directory}: this model is not rewritten as that one was; load it onto a fresh original instead")
        own = self._own()
        if tensors.keys() - own.keys() or any(tensors[n].shape != own[n].shape for n in tensors):
            raise InputError(f"{directory}: its tensors are not those of this model's geometry")
        warn_of_other_weights(self.model, document.weights, Path(directory))
        self._kept[name] = {n: tensor.to(own[n]) for n, tensor in tensors.items()}

    def use(self, name: str) -> None:
        """Give the model the geometry called ``name``. Raises ``InputError`` where there is none."""
        if name not in self._kept:
            raise InputError(f"no geometry is called {name!r}; there are: {', '.join(self._kept) or 'none'}")
        own = self._own()
        with torch.no_grad():
            for n, tensor in self._kept[name].items():
                own[n].copy_(tensor)

    def _own(self) -> dict[str, Tensor]:
        added = added_names(self.model)
        return {n: t for n, t in self.model.state_dict(keep_vars=True).items() if n in added}
