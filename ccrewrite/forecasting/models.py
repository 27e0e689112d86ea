"""The two models of a forecast: the original, which only shows its values, and a copy, rewritten and later plain again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor, nn

from ccrewrite.families.sampling import Sampling
from ccrewrite.families.sites import rewritten_sites
from ccrewrite.ir.torch_private import parameters_of
from ccrewrite.passes.substitute import revert_


class Models:
    """``copy`` is a rewritten copy of ``original``; it is put into evaluation mode."""

    def __init__(self, original: nn.Module, copy: nn.Module) -> None:
        self.original, self.copy = original, copy.eval()
        self.device = next((p.device for p in original.parameters()), torch.device("cpu"))
        samplings = [m for m in copy.modules() if isinstance(m, Sampling)]
        every = dict.fromkeys(p for sampling in samplings for p in sampling.parameters())
        self.geometry = [p for p in every if p.requires_grad]
        known = dict(original.named_parameters())
        # Geometry, and weights that the rewrite changed. All others start as the original's.
        self._starts = {
            p: p.detach().clone()
            for name, p in copy.named_parameters()
            if name not in known or p.shape != known[name].shape or not torch.equal(p, known[name])
        }

    def samplings(self) -> dict[str, Sampling]:
        """By the name of the site."""
        return {name: site.sampling for name, site in rewritten_sites(self.copy).items()}

    def sites(self) -> dict[str, list[nn.Parameter]]:
        """The geometry that trains, by the name of its site; of a frozen site nothing."""
        trained = set(self.geometry)
        return {name: [p for p in s.parameters() if p in trained] for name, s in self.samplings().items()}

    def own_weights_by_site(self) -> dict[str, list[Tensor]]:
        """Of each site the weight that its calls use, where it is a parameter that trains in the original."""
        trained = {name for name, p in self.original.named_parameters(remove_duplicate=False) if p.requires_grad}
        found: dict[str, list[Tensor]] = {}
        for name, site in rewritten_sites(self.copy).items():
            within = "weight" if site.key is None else site.weight
            weight = None
            if within is not None:
                path, _, last = f"{site.path}.{within}".removeprefix(".").rpartition(".")
                owner = self.copy.get_submodule(path)
                weight = parameters_of(owner).get(last) if f"{path}.{last}".removeprefix(".") in trained else None
            found[name] = [] if weight is None else [weight]
        return found

    def own_weights(self) -> list[nn.Parameter]:
        return [p for tensors in self.own_weights_by_site().values() for p in tensors if isinstance(p, nn.Parameter)]

    def weights_of(self, model: nn.Module) -> Iterable[nn.Parameter]:
        """What trains besides geometry, of either model: what does in the original."""
        trained = {name for name, p in self.original.named_parameters() if p.requires_grad}
        return (p for name, p in model.named_parameters() if name in trained)

    def train(self, parameters: Sequence[nn.Parameter]) -> None:
        """Let those of the copy train, and no others."""
        chosen = set(parameters)
        for parameter in self.copy.parameters():
            parameter.requires_grad_(parameter in chosen)

    def reset(self) -> None:
        """Bring the start of the geometry and of the weights back."""
        with torch.no_grad():
            for parameter, start in self._starts.items():
                parameter.copy_(start)
        self._reset_others(set(self._starts))

    def revert(self) -> None:
        """Make the copy plain again, with the original's values."""
        revert_(self.copy)
        self.reset_weights()

    def reset_weights(self) -> None:
        """Once it is plain again."""
        self._reset_others(set())

    @torch.no_grad()
    def _reset_others(self, known: Collection[nn.Parameter]) -> None:
        start = dict(self.original.named_parameters())
        for name, parameter in self.copy.named_parameters():
            if parameter not in known:
                parameter.copy_(start[name])
        buffers = dict(self.original.named_buffers())
        for name, buffer in self.copy.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])
