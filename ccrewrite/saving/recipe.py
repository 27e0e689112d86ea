"""What was done to a model, as data: read off the model itself, and done again to a fresh original.

A plan says what was meant; layers may have been put back since, given other sizes, or tied. So the recipe is read off the
samplings that are there. It holds what their constructors need and which calls they take: no example inputs are needed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from ccrewrite.errors import InputError
from ccrewrite.families.adopt import HOSTED, RewrittenConv, Samplings, adopt_, host_, torch_layer
from ccrewrite.families.cc.sampling import CCSampling
from ccrewrite.families.dcls.sampling import DclsSampling
from ccrewrite.families.reroute import Route, at_path
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.calls import uncast
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.sites import Site
from ccrewrite.passes.detect import ROOT
from ccrewrite.passes.graph import reroute_nodes_
from ccrewrite.passes.scales.resize import Resizing, resize_
from ccrewrite.saving.original import added_parameters, layer_of, named, original_of

REMEDY = "load takes a fresh original: built by the same code and arguments, as it was before rewrite"


class Kind(NamedTuple):
    """How a class of samplings is written down."""

    make: type[DclsSampling] | type[CCSampling]
    options: Callable[[Any], dict[str, Any]]
    """The constructor's arguments after the geometry, without dtype and device."""
    attributes: tuple[str, ...]
    """What may have been set since."""


def _dcls_options(s: DclsSampling) -> dict[str, Any]:
    width = None if s.widening is None else s.width
    reach = max(s.margin)  # axes that don't move have none
    same = ("interpolation", "sharing", "axes", "elements", "position_init")
    return {name: getattr(s, name) for name in same} | {"reach": reach, "width": width}


def _cc_options(s: CCSampling) -> dict[str, Any]:
    kernel = "mlp" if s.shift is None else "nodes"
    hidden = s._axes()[0].inner.bias.numel()
    return {"kernel": kernel, "basis": s.basis, "hidden": hidden, "reach": max(s.margin), "alignment": s.alignment}


KINDS = {
    "DclsSampling": Kind(DclsSampling, _dcls_options, ("starts_exact",)),
    "CCSampling": Kind(CCSampling, _cc_options, ("output_size", "scale", "rescaled")),
}


@dataclass(frozen=True)
class Placed:
    """One sampling: where it is, what it takes, and how to make it."""

    module: str
    """Path of the convolution, or of the module whose forward makes the calls."""
    key: str | None
    """Its name among the samplings of ``module``'s functional calls; None: ``module`` is the convolution."""
    layer: str
    """Class of ``module`` before it was rewritten, and the geometry of a convolution."""
    weight: str | None
    """The tensor that the calls use, from ``module``; None: computed, or the layer's own."""
    sampling: str
    dtype: str
    geometry: ConvGeometry
    options: dict[str, Any]
    attributes: dict[str, Any]

    @classmethod
    def of(cls, path: str, module: nn.Module, key: str | None, sampling: Sampling) -> Self:
        name = _where(path, key)
        kind = KINDS.get(type(sampling).__name__)
        if kind is None or kind.make is not type(sampling):
            raise InputError(f"{name}: save knows {' and '.join(KINDS)}, found a {type(sampling).__name__}")
        known = cast("DclsSampling | CCSampling", sampling)
        dtype = named(next(sampling.parameters()).dtype)
        attributes = {a: getattr(sampling, a) for a in kind.attributes}
        options = kind.options(sampling)
        weight = _weight(module, key)
        return cls(path, key, layer_of(module), weight, type(sampling).__name__, dtype, known.geometry, options, attributes)

    @classmethod
    def from_data(cls, data: Any) -> Self:
        fields: dict[str, Any] = {**_frozen(data), "geometry": ConvGeometry(**_frozen(data["geometry"]))}
        return cls(**fields)

    @property
    def name(self) -> str:
        return _where(self.module, self.key)

    @property
    def path(self) -> str:
        """Of the sampling."""
        return ".".join(filter(None, (self.module, self._within)))

    @property
    def _within(self) -> str:
        return "sampling" if self.key is None else f"{HOSTED}.{self.key}"

    def make(self, device: torch.device) -> Sampling:
        """The sampling, its parameters without values yet."""
        kind = KINDS[self.sampling]
        sampling = kind.make.of(self.geometry, **self.options, dtype=getattr(torch, self.dtype), device="meta")
        return cast(Sampling, sampling.to_empty(device=device))

    def set_(self, sampling: nn.Module) -> None:
        """Give ``sampling`` the attributes."""
        for name in KINDS[self.sampling].attributes:
            setattr(sampling, name, None)  # output_size and scale exclude each other
        for name in KINDS[self.sampling].attributes:
            setattr(sampling, name, self.attributes[name])

    def put_(self, module: nn.Module, sampling: Sampling) -> None:
        """Rewrite ``module``, which is as it was before, with ``sampling``."""
        weight = None if self.weight is None else at_path(module, self.weight)
        reference = weight if self.key is not None else next(module.parameters(), None)
        if isinstance(reference, nn.Parameter):
            sampling.requires_grad_(reference.requires_grad)
        if isinstance(module, fx.GraphModule):
            reroute_nodes_(module, cast(str, self.key), sampling, self._site(), weight)
            return
        route = Route.of(self._within, self.weight, self.geometry)
        if self.key is not None:
            host_(module, self.key, sampling, route)
            return
        layer = cast(_ConvNd, adopt_(cast(_ConvNd, module), sampling, (route,)))
        if isinstance(sampling, DclsSampling) and sampling.elements is not None:
            dense = layer.weight
            layer.weight = nn.Parameter(dense.new_empty(*dense.shape[:2], *sampling.taps), dense.requires_grad)

    def _site(self) -> Site:
        dtype, nothing = getattr(torch, self.dtype), torch.device("meta")
        return Site(self.name, (), "functional", self.layer, self.geometry, 0, (), (), self.module, self.weight, dtype, nothing)


@dataclass(frozen=True)
class Recipe:
    """What was done to a model: to which original, and what."""

    original: dict[str, Any]
    """``class`` and ``tensors``: name -> dtype and shape."""
    samplings: tuple[Placed, ...]
    ties: tuple[tuple[str, ...], ...]
    """Names of added parameters that are one."""
    resized: dict[str, Any]
    """Path of a module that ``resize_`` was called on -> its settings."""

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        placed = [Placed.of(path, module, key, sampling) for path, module, key, sampling in places(model)]
        seen = {id(sampling) for *_, sampling in places(model)}
        for path, module in model.named_modules():
            if isinstance(module, Sampling) and id(module) not in seen:
                raise InputError(
                    f"{path}: no layer or call of this {type(model).__name__} uses this sampling as rewrite has it"
                )
        resized = {p: dict(h.settings) for p, m in model.named_modules() for h in _hooks(m)}
        return cls(original_of(model), tuple(placed), _ties(model), _frozen(resized))

    @classmethod
    def from_data(cls, data: Any) -> Self:
        original = {"class": str(data["original"]["class"]), "tensors": dict(data["original"]["tensors"])}
        samplings = tuple(Placed.from_data(placed) for placed in data["samplings"])
        return cls(original, samplings, _frozen(data["ties"]), dict(_frozen(data["resized"])))

    def to_data(self) -> dict[str, Any]:
        return _plain(asdict(self))

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

    def replay_(self, model: nn.Module) -> None:
        """Do to ``model``, in place, what was done to the original. Where it raises, ``model`` may be half rewritten."""
        there = {(path, key): (module, sampling) for path, module, key, sampling in places(model)}
        device = next((t.device for t in model.state_dict().values() if isinstance(t, Tensor)), torch.device("cpu"))
        for placed in self.samplings:
            module, sampling = there.pop((placed.module, placed.key), (None, None))
            if module is not None and sampling is not None:
                found = Placed.of(placed.module, module, placed.key, sampling)
                _require(placed, "sampling", _made(placed), _made(found))
                continue
            module = model.get_submodule(placed.module)
            _require(placed, "layer", placed.layer, layer_of(module))
            if placed.key is None and torch_layer(type(module)) is None:
                raise InputError(f"{placed.name} must be a convolution to be rewritten, found {placed.layer}")
            near = next((t.device for t in (*module.parameters(), *module.buffers())), device)
            placed.put_(module, placed.make(near))
        if there:
            names = ", ".join(_where(*place) for place in there)
            raise InputError(f"{names}: rewritten in this model, but not in the one that was saved. {REMEDY}")
        for names in self.ties:
            tensors = dict(added_parameters(model))
            for name in names[1:]:
                owner, _, attribute = name.rpartition(".")
                model.get_submodule(owner)._parameters[attribute] = tensors[names[0]]
        for path, settings in self.resized.items():
            resize_(model.get_submodule(path), settings)
        for placed in self.samplings:
            placed.set_(model.get_submodule(placed.path))
        again = Recipe.of(model)
        if again != self:
            parts = [f for f in ("original", "samplings", "ties", "resized") if getattr(again, f) != getattr(self, f)]
            raise InputError(f"replayed on this model, the recipe gives other {' and '.join(parts)} than were saved. {REMEDY}")


def places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str | None, Sampling]]:
    """Each sampling of ``model`` with the path of its module, that module, and its key (``Placed``)."""
    for path, module in model.named_modules():
        if isinstance(module, RewrittenConv):
            yield path, module, None, module.sampling
        elif HOSTED in module._modules:
            for key, sampling in cast(Samplings, module._modules[HOSTED]).items():
                yield path, module, key, cast(Sampling, sampling)


def _ties(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    names: dict[int, list[str]] = defaultdict(list)
    for name, tensor in added_parameters(model):
        names[id(tensor)].append(name)
    return tuple(tuple(group) for group in names.values() if len(group) > 1)


def _weight(module: nn.Module, key: str | None) -> str | None:
    """The tensor that the calls of a sampling use, relative to ``module``."""
    if isinstance(module, fx.GraphModule):
        target = f"{HOSTED}.{key}"
        calls = (n for n in module.graph.nodes if n.op == "call_module" and n.target == target)
        source = next((uncast(n.args[1]) for n in calls), None)
        return cast(str, source.target) if source is not None and source.op == "get_attr" else None
    within = "sampling" if key is None else f"{HOSTED}.{key}"
    routes: tuple[Route, ...] = vars(module).get("ccrewrite_routes", ())
    return next((route.weight for route in routes if route.sampling == within), None)


def _hooks(module: nn.Module) -> list[Resizing]:
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, Resizing)]


def _where(path: str, key: str | None) -> str:
    return (path or ROOT) + (f":{key}" if key else "")


def _made(placed: Placed) -> dict[str, Any]:
    return {k: v for k, v in asdict(placed).items() if k != "attributes"}


def _require(placed: Placed, what: str, expected: Any, found: Any) -> None:
    if isinstance(expected, dict) and isinstance(found, dict):
        keys = [k for k in expected if expected[k] != found.get(k)]
        expected, found = ({k: d[k] for k in keys} for d in (expected, found))
    if expected != found:
        raise InputError(f"{placed.name}: expected {what} {expected}, found {found}. {REMEDY}")


def _frozen(value: Any) -> Any:
    """JSON's lists as tuples."""
    if isinstance(value, list):
        return tuple(_frozen(v) for v in cast("list[Any]", value))
    return {k: _frozen(v) for k, v in cast("dict[str, Any]", value).items()} if isinstance(value, dict) else value


def _plain(value: Any) -> Any:
    """Numbers of other libraries as Python's."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in cast("dict[str, Any]", value).items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in cast("tuple[Any, ...]", value)]
    return value.item() if hasattr(value, "item") else value
