"""One sampling of a rewritten model as data: where it is, which calls it takes, and how to make it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Self, TypedDict, cast

import torch
from torch import Tensor, fx, nn

from ccrewrite.errors import InputError
from ccrewrite.families.adopt import HOSTED, adopt_, has_own_forward, host_
from ccrewrite.families.family import families, sampling_classes
from ccrewrite.families.reroute import Route, at_path
from ccrewrite.families.sampling import Sampling
from ccrewrite.families.sites import RewrittenSite, call_suffix, free_name, site_name, suffix_of
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.preserve import random_states_kept
from ccrewrite.ir.sites import Site
from ccrewrite.ir.threads import one_at_a_time
from ccrewrite.ir.torch_private import ConvNd, non_persistent_of
from ccrewrite.passes.graph import reroute_nodes_
from ccrewrite.saving.data import written
from ccrewrite.saving.document import SamplingDocument
from ccrewrite.saving.original import layer_of, named

REMEDY = "load takes a fresh original: built by the same code and arguments, as it was before rewrite"
REGISTER = (
    "An installed package with an entry point of the group ccrewrite.families makes its family known, and so does "
    "ccrewrite.register_family"
)


@dataclass(frozen=True)
class Placed:
    """One sampling: where it is, what it takes, and how to make it."""

    site: str = field(compare=False)
    """Its name."""
    module: str
    """Path of the convolution, or of the module whose forward makes the calls."""
    key: str | None
    """Of the sampling among those of ``module``'s functional calls; None: ``module`` is the convolution."""
    layer: str
    """Class of ``module`` before it was rewritten, and the geometry of a convolution."""
    weight: str | None
    """The tensor that the calls use, from ``module``; None: computed, or the layer's own."""
    sampling: str
    """Its class."""
    dtype: str
    geometry: ConvGeometry
    options: dict[str, object]
    attributes: dict[str, object]

    @classmethod
    def of(cls, site: RewrittenSite, kinds: Mapping[str, type[Sampling]]) -> Self:
        """``kinds``: the sampling classes of all families. Raises ``InputError`` where the site's is none of them, or where its
        options can't be written."""
        sampling, kind = site.sampling, type(site.sampling)
        if kinds.get(kind.__name__) is not kind:
            raise InputError(
                f"{site.name}: its {kind.__name__} belongs to no family that is registered, so load couldn't make it again; "
                f"found {_known()}. {REGISTER}"
            )
        dtypes = (t.dtype for t in (*sampling.parameters(), *sampling.buffers()) if t.is_floating_point())
        return cls(
            site=site.name,
            module=site.path,
            key=site.key,
            layer=layer_of(site.module),
            weight=site.weight,
            sampling=kind.__name__,
            dtype=named(next(dtypes, torch.float32)),
            geometry=sampling.geometry,
            **_settings(site.name, sampling),
        )

    @classmethod
    def from_document(cls, document: SamplingDocument, site: str) -> Self:
        return cls(
            site=site,
            module=document.module,
            key=document.key,
            layer=document.layer,
            weight=document.weight,
            sampling=document.sampling,
            dtype=document.dtype,
            geometry=document.geometry.geometry(),
            options=document.options,
            attributes=document.attributes,
        )

    def completed(self, kind: type[Sampling]) -> Self:
        """With the options that ``kind`` has got since this was written, at their defaults."""
        sampling = self._made(kind, "meta")
        self.set_(sampling)
        return replace(self, **_settings(self.site, sampling))

    @property
    def path(self) -> str:
        """Of the sampling."""
        return ".".join(filter(None, (self.module, self._within)))

    @property
    def _within(self) -> str:
        return "sampling" if self.key is None else f"{HOSTED}.{self.key}"

    def made(self) -> dict[str, object]:
        """All that can't be changed once it is made."""
        return {name: value for name, value in asdict(self).items() if name not in ("site", "attributes")}

    def check(self, module: nn.Module, kind: type[Sampling], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise ``InputError`` where what is placed contradicts ``module``, as it was before, or ``shapes``, those of the saved
        tensors by name. Nothing of any size is made."""
        found = self.geometry
        if self.key is None and not has_own_forward(type(module)):
            found = ConvGeometry.from_module(cast(ConvNd, module))
        elif self.weight is not None:
            found = _of_weight(found, at_path(module, self.weight).shape)
        if found != self.geometry:
            expected = f"{self.geometry.describe()}{' transposed' * self.geometry.transposed}"
            raise InputError(f"{self.site}: expected geometry {expected}, found {found.describe()}. {REMEDY}")
        for name, tensor in self._made(kind, "meta").state_dict().items():
            name = f"{self.path}.{name}"
            if name in shapes and shapes[name] != tuple(tensor.shape):
                made, saved = ("x".join(map(str, shape)) for shape in (tensor.shape, shapes[name]))
                raise InputError(f"{self.site}: its options make {name} {made}, but the saved one is {saved}")

    def make(self, kind: type[Sampling], device: torch.device) -> Sampling:
        """The sampling. What is loaded next has no values yet."""
        sampling = self._made(kind, "meta")
        return sampling.to_empty(device=device) if _loads_all(sampling) else self._made(kind, device)

    def _made(self, kind: type[Sampling], device: torch.device | str) -> Sampling:
        with one_at_a_time(), random_states_kept():
            return kind.of(self.geometry, **self.options, dtype=getattr(torch, self.dtype), device=device)

    def set_(self, sampling: nn.Module) -> None:
        """Give ``sampling`` the attributes."""
        # What isn't set comes first: some exclude each other.
        for name, value in sorted(self.attributes.items(), key=lambda item: item[1] is not None):
            setattr(sampling, name, value)

    def put_(self, module: nn.Module, sampling: Sampling) -> None:
        """Rewrite ``module``, which is as it was before, with ``sampling``."""
        weight = None if self.weight is None else at_path(module, self.weight)
        reference = weight if self.key is not None else next(module.parameters(), None)
        if isinstance(reference, nn.Parameter):
            sampling.requires_grad_(reference.requires_grad)
        if isinstance(module, fx.GraphModule):
            reroute_nodes_(module, cast(str, self.key), sampling, self._site(), weight)
            return
        if self.key is not None:
            route = Route.of(self._within, self.weight, self.geometry)
            host_(module, self.key, sampling, route, suffix_of(self.site, self.module))
            return
        layer = cast(ConvNd, adopt_(cast(ConvNd, module), sampling, self.weight))
        if sampling.own_weight:
            dense = layer.weight
            layer.weight = nn.Parameter(dense.new_empty(*dense.shape[:2], *sampling.taps), dense.requires_grad)

    def _site(self) -> Site:
        dtype, nothing = getattr(torch, self.dtype), torch.device("meta")
        return Site(self.site, (), True, self.layer, self.geometry, 0, (), (), self.module, self.weight, dtype, nothing)


def kinds_of(samplings: Iterable[Placed]) -> dict[str, type[Sampling]]:
    """The sampling classes of all families. Raises ``InputError`` where one of ``samplings`` has another."""
    kinds = sampling_classes()
    for placed in samplings:
        if placed.sampling not in kinds:
            raise InputError(f"{placed.site}: no registered family has a {placed.sampling}; found {_known()}. {REGISTER}")
    return kinds


def placed_of(documents: Iterable[SamplingDocument]) -> list[Placed]:
    """The samplings of a recipe. Those of format 1, which had no names of sites, get theirs."""
    found: dict[str, Placed] = {}
    for document in documents:
        name = document.site
        if name is None:
            suffix = "" if document.key is None else call_suffix(document.weight, document.geometry.geometry())
            name = free_name(site_name(document.module, suffix), found)
        if name in found:
            raise InputError(f"{name}: two samplings have this site")
        found[name] = Placed.from_document(document, name)
    return list(found.values())


def _of_weight(geometry: ConvGeometry, shape: Sequence[int]) -> ConvGeometry:
    """``geometry``, of a weight of this shape."""
    first, second = shape[0], shape[1] * geometry.groups
    channels = (first, second) if geometry.transposed else (second, first)
    return replace(geometry, in_channels=channels[0], out_channels=channels[1], kernel_size=tuple(shape[2:]))


class _Settings(TypedDict):
    options: dict[str, object]
    attributes: dict[str, object]


def _settings(site: str, sampling: Sampling) -> _Settings:
    """``options`` and ``attributes`` of a ``Placed``."""
    attributes = {name: getattr(sampling, name) for name in sampling.attributes}
    try:
        options = sampling.options()
    except InputError as error:
        raise InputError(f"{site}: {error}") from error
    return {"options": written(site, options), "attributes": written(site, attributes)}


def _known() -> str:
    return ", ".join(f"{family.name} ({', '.join(kind.__name__ for kind in family.samplings)})" for family in families())


def _loads_all(sampling: Sampling) -> bool:
    """Whether every tensor of ``sampling`` is saved, so that none needs the values that its constructor gives it."""
    for module in sampling.modules():
        if non_persistent_of(module) or any(isinstance(value, Tensor) for value in vars(module).values()):
            return False
    return True
