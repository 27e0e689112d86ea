"""What was done to a model, as data: read off the model itself, and done again to a fresh original.

A plan says what was meant; layers may have been put back since, given other sizes, or tied. So the recipe is read off the
samplings that are there. It holds what their constructors need and which calls they take: no example inputs are needed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

import torch
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.families.adopt import torch_layer
from ccrewrite.families.family import sampling_classes
from ccrewrite.families.sampling import Sampling
from ccrewrite.families.sites import rewritten_sites
from ccrewrite.ir.json_types import JsonObject
from ccrewrite.ir.torch_private import parameters_of
from ccrewrite.ir.typed import named_modules
from ccrewrite.ir.wrappers import unwrapped, wrappers
from ccrewrite.passes.scales.resize import resize_, resizings_of
from ccrewrite.saving.data import frozen, plain
from ccrewrite.saving.document import RecipeDocument
from ccrewrite.saving.original import Original, added_parameters, layer_of, original_of
from ccrewrite.saving.placed import REMEDY, Placed, kinds_of, placed_of


@dataclass(frozen=True)
class Recipe:
    """What was done to a model: to which original, and what."""

    original: Original
    samplings: tuple[Placed, ...]
    ties: tuple[tuple[str, ...], ...]
    """Names of added parameters that are one."""
    resized: JsonObject
    """Path of a module that ``resize_`` was called on -> its settings."""

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        around, model, kinds = list(wrappers(model)), unwrapped(model), sampling_classes()
        sites = rewritten_sites(model).values()
        seen = {id(site.sampling) for site in sites}
        for path, module in named_modules(model):
            if isinstance(module, Sampling) and id(module) not in seen:
                raise InputError(
                    f"{path}: no layer or call of this {type(model).__name__} uses this sampling as rewrite has it"
                )
        named = [*(("", wrapper) for wrapper in around), *named_modules(model)]
        resized = {path: dict(hook.settings) for path, module in named for hook in resizings_of(module)}
        return cls(original_of(model), tuple(Placed.of(site, kinds) for site in sites), _ties(model), frozen(resized))

    @classmethod
    def from_document(cls, document: RecipeDocument) -> Self:
        placed = placed_of(document.samplings)
        kinds = kinds_of(placed)
        if document.format == 1:
            placed = [one.completed(kinds[one.sampling]) for one in placed]
        original: Original = {"class": document.original.kind, "tensors": document.original.tensors}
        return cls(original, tuple(placed), document.ties, document.resized)

    def to_data(self) -> dict[str, object]:
        return plain(asdict(self))

    def require_original(self, model: nn.Module) -> None:
        """Raise ``InputError`` where ``model`` isn't what was rewritten."""
        found = original_of(model)
        expected, has = self.original["tensors"], found["tensors"]
        different = [
            f"{name}: expected {expected.get(name, 'nothing')}, found {has.get(name, 'nothing')}"
            for name in {**expected, **has}
            if expected.get(name) != has.get(name)
        ]
        if found["class"] != self.original["class"]:
            different.insert(0, f"its class: expected {self.original['class']}, found {found['class']}")
        if different:
            more = f"; and {len(different) - 4} more" if len(different) > 4 else ""
            raise InputError(f"this is not the model that was rewritten. {'; '.join(different[:4])}{more}. {REMEDY}")

    def replay_(self, model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Do to ``model``, in place, what was done to the original. ``shapes`` are those of the saved tensors by name. Where it
        raises, ``model`` may be half rewritten."""
        kinds = kinds_of(self.samplings)
        there = {(site.path, site.key): site for site in rewritten_sites(model).values()}
        device = next((t.device for t in model.state_dict().values() if isinstance(t, Tensor)), torch.device("cpu"))
        for placed in self.samplings:
            site = there.pop((placed.module, placed.key), None)
            if site is not None:
                expected, found = placed.made(), Placed.of(site, kinds).made()
                different = [name for name in expected if expected[name] != found[name]]
                _require(placed, "sampling", *({name: d[name] for name in different} for d in (expected, found)))
                continue
            module = model.get_submodule(placed.module)
            _require(placed, "layer", placed.layer, layer_of(module))
            if placed.key is None and torch_layer(type(module)) is None:
                raise InputError(f"{placed.site} must be a convolution to be rewritten, found {placed.layer}")
            placed.check(module, kinds[placed.sampling], shapes)
            near = next((t.device for t in (*module.parameters(), *module.buffers())), device)
            placed.put_(module, placed.make(kinds[placed.sampling], near))
        if there:
            names = ", ".join(site.name for site in there.values())
            raise InputError(f"{names}: rewritten in this model, but not in the one that was saved. {REMEDY}")
        for names in self.ties:
            tensors = dict(added_parameters(model))
            for name in names[1:]:
                owner, _, attribute = name.rpartition(".")
                parameters_of(model.get_submodule(owner))[attribute] = tensors[names[0]]
        for path, settings in self.resized.items():
            resize_(model.get_submodule(path), settings)
        for placed in self.samplings:
            placed.set_(model.get_submodule(placed.path))
        again = Recipe.of(model)
        if again != self:
            parts = [f for f in ("original", "samplings", "ties", "resized") if getattr(again, f) != getattr(self, f)]
            raise InputError(f"replayed on this model, the recipe gives other {' and '.join(parts)} than were saved. {REMEDY}")


def _ties(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    names: dict[int, list[str]] = defaultdict(list)
    for name, tensor in added_parameters(model):
        names[id(tensor)].append(name)
    return tuple(tuple(group) for group in names.values() if len(group) > 1)


def _require(placed: Placed, what: str, expected: object, found: object) -> None:
    if expected != found:
        raise InputError(f"{placed.site}: expected {what} {expected}, found {found}. {REMEDY}")
