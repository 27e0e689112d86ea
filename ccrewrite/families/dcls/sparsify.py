"""Large dense kernels -> few taps at continuous positions (the ConvMixer claim of arXiv 2112.03740). Not exact, and off unless
asked for.

The taps are fitted to each kernel (``fit.py``). A budget is spread over the layers so that each element goes where it takes
most from the relative squared error, by the error curves of the greedy selections and a Lagrange multiplier (Shoham and Gersho
1988).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ccrewrite.errors import InputError
from ccrewrite.families.adopt import RewrittenConv, has_own_forward
from ccrewrite.families.dcls import fit
from ccrewrite.families.dcls.sampling import DclsSampling
from ccrewrite.families.interpolation import Interpolation
from ccrewrite.families.rule import Rule
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.progress import step
from ccrewrite.ir.sites import Site
from ccrewrite.ir.torch_private import ConvNd, parameters_of

SHARED = {"tap": True, "full": False}


class Sparse(NamedTuple):
    """One layer's taps."""

    sharing: str
    elements: int
    fit: fit.Fit
    parameters: int
    """Weights and geometry together."""
    dense_parameters: int
    relative_error: float
    """``|K' - K| / |K|`` over the layer's kernels (2-norms)."""


@dataclass(frozen=True)
class LargeToDcls(Rule):
    """large dense Conv -> DCLS with few elements fitted to its kernels. NOT exact: the plan gives each layer's fit error, the
    outputs change, and the model wants a fine-tune.

    Takes convolution modules of the kind "large" (at least 7 taps along an axis, undilated) whose weight is a plain parameter.

    Args:
        include: sites to take (names, globs or ``re:...``).
        exclude: sites to leave to other rules.
        elements: taps per kernel, the same for every layer; or
        budget: the fraction of the layers' kernel parameters that weights, positions and widths may have together.
        window: the window taps may move in, in samples, at least as large as the kernels (and of their parity); None: the
            kernel.
        sharing: "full" (every kernel has its own positions), "tap" (a layer's kernels share them), or "auto": with a budget,
            whichever of the two fits better; else "full" for depthwise layers and "tap" for others.
        interpolation: as ``DclsSampling``'s; the widths of Gaussians and triangles are fitted too.
        steps: of refinement.

    Raises:
        InputError: for options out of their range.

    >>> import ccrewrite
    >>> model = nn.Sequential(nn.Conv2d(8, 8, 9, padding=4, groups=8))
    >>> result = ccrewrite.rewrite(model, torch.randn(1, 8, 16, 16), rules=[LargeToDcls(budget=1 / 3)])
    >>> sum(p.numel() for n, p in result.model.named_parameters() if n != "0.bias") <= 8 * 81 / 3
    True
    """

    name: ClassVar[str] = "large-to-dcls"
    elements: int | None = None
    budget: float | None = None
    window: int | None = None
    sharing: Literal["auto", "tap", "full"] = "auto"
    interpolation: Interpolation = "gaussian"
    steps: int = 150

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.elements is None) == (self.budget is None):
            raise InputError(
                f"{self.name} takes either elements or budget; found elements={self.elements}, budget={self.budget}"
            )
        if self.elements is not None and self.elements < 1:
            raise InputError(f"elements must be at least 1, found {self.elements}")
        if self.budget is not None and not 0 < self.budget < 1:
            raise InputError(f"budget is a fraction of the parameters, between 0 and 1; found {self.budget}")

    @property
    def found(self) -> dict[str, Sparse] | None:
        """Each site's taps, by name; None before ``prepared``."""
        return vars(self).get("_found")

    @property
    def exact(self) -> bool:
        return False

    def takes(self, site: Site) -> bool:
        return "large" in site.kinds and "transposed" not in site.kinds

    def refuses(self, site: Site) -> str | None:
        if site.functional or site.weight is None:
            return "its weight is not a parameter of a convolution module"
        if self.found is not None and site.name not in self.found:
            return f"its weight is parametrized, or {site.layer} has a forward of its own"
        return None

    def prepared(self, model: nn.Module, sites: Sequence[Site]) -> Rule:
        """With taps fitted to the kernels of ``sites``."""
        layers = {site.name: model.get_submodule(site.module) for site in sites}
        kernels = {
            site.name: _kernels(cast(Tensor, layers[site.name].weight), self._reach(site))
            for site in sites
            if _can(layers[site.name])
        }
        shares = self._shares({site.name: site for site in sites if site.name in kernels}, kernels)
        ready = replace(self)
        found: dict[str, Sparse] = {}
        for done, (name, share) in enumerate(shares.items()):
            step("plan", f"fitting taps to the kernels of {name}", done / len(shares))
            found[name] = self._fitted(layers[name], kernels[name], *share)
        object.__setattr__(ready, "_found", found)
        return ready

    def sampling(self, site: Site, **factory: Any) -> DclsSampling:
        sparse = self._sparse(site)
        options = {"elements": sparse.elements, "sharing": sparse.sharing, "interpolation": self.interpolation}
        return DclsSampling.of(site.geometry, reach=self._reach(site), **options, **factory)

    def describe(self, site: Site) -> str:
        s = self._sparse(site)
        share = "shared positions" if s.sharing == "tap" else "own positions"
        return (
            f"NOT exact: {s.elements} {self.interpolation} elements with {share}, "
            f"{s.parameters} parameters for {s.dense_parameters}; kernels off by {s.relative_error:.1%}"
        )

    @torch.no_grad()
    def install_(self, layer: RewrittenConv, site: Site) -> Callable[[], object]:
        """Give ``layer`` the fitted weights, positions and widths; returns what gives the dense weight back."""
        found, sampling = self._sparse(site).fit, cast(DclsSampling, layer.sampling)
        conv = cast(ConvNd, layer)
        dense = conv.weight
        weight = found.weight.to(dense).view(*dense.shape[:2], -1)
        conv.weight = nn.Parameter(weight, requires_grad=dense.requires_grad)
        for axis, (position, size) in enumerate(zip(found.positions, sampling.window, strict=True)):
            sampling.offset[axis] = (position - (size - 1) / 2).to(sampling.offset).view(sampling.offset.shape[1:])
            if sampling.widening is not None and found.widths is not None:
                widening = torch.log(found.widths[axis] / sampling.width)
                sampling.widening[axis] = widening.to(sampling.widening).view(sampling.widening.shape[1:])

        def restore() -> None:
            conv.weight = dense

        return restore

    def _sparse(self, site: Site) -> Sparse:
        if self.found is None:
            raise InputError(
                f"{self.name} reads the weights of {site.name} before it can say what it puts there: call prepared"
            )
        return self.found[site.name]

    def _reach(self, site: Site) -> int:
        if self.window is None:
            return 0
        wider = {self.window - k for k in site.geometry.kernel_size}
        if len(wider) > 1 or (difference := wider.pop()) < 0 or difference % 2:
            sizes = "x".join(map(str, site.geometry.kernel_size))
            raise InputError(
                f"{site.name}: window={self.window} must exceed the kernel's {sizes} by an even number on every axis"
            )
        return difference // 2

    def _fitted(self, layer: nn.Module, kernels: Tensor, sharing: str, path: fit.Path, elements: int) -> Sparse:
        start = [p[:, :elements] for p in path.positions]
        found = fit.refine(kernels, start, interpolation=self.interpolation, steps=self.steps)
        error = math.sqrt(found.errors.sum().item() / max(path.errors[0], 1e-300))
        size = self._size(kernels, sharing, elements)
        return Sparse(sharing, elements, found, size, cast(Tensor, layer.weight).numel(), error)

    def _size(self, kernels: Tensor, sharing: str, elements: int) -> int:
        geometry = (kernels.ndim - 1) * (1 if self.interpolation == "linear" else 2)
        return elements * (len(kernels) + geometry * (1 if SHARED[sharing] else len(kernels)))

    def _shares(self, sites: dict[str, Site], kernels: dict[str, Tensor]) -> dict[str, tuple[str, fit.Path, int]]:
        """Sharing, greedy selection and number of elements of each site."""
        if self.elements is not None:
            shares: dict[str, tuple[str, fit.Path, int]] = {}
            for name, tensor in kernels.items():
                step("plan", f"choosing taps of {name}")
                sharing = self.sharing
                if sharing == "auto":
                    sharing = "full" if sites[name].geometry.depthwise else "tap"
                shares[name] = sharing, self._path(tensor, sharing, self.elements), self.elements
            return shares
        assert self.budget is not None
        dense = {name: _cells(sites[name].geometry) * len(tensor) for name, tensor in kernels.items()}
        allowed = self.budget * sum(dense.values())
        options: list[Option] = []
        for name, tensor in kernels.items():
            step("plan", f"choosing taps of {name}")
            for sharing in ("tap", "full") if self.sharing == "auto" else (self.sharing,):
                most = int(min(allowed, dense[name]) // self._size(tensor, sharing, 1))
                most = max(1, min(_cells(sites[name].geometry), most))  # one that doesn't fit makes `spread` say so
                path = self._path(tensor, sharing, most)
                total = max(path.errors[0], 1e-300)
                sizes = [self._size(tensor, sharing, k) for k in range(1, most + 1)]
                options.append(Option(name, sharing, path, sizes, [e / total for e in path.errors[1:]]))
        return {o.name: (o.sharing, o.path, o.elements) for o in spread(options, allowed)}

    def _path(self, kernels: Tensor, sharing: str, elements: int) -> fit.Path:
        return fit.select(kernels, elements, shared=SHARED[sharing], interpolation=self.interpolation)


class Option(NamedTuple):
    """One way of making a layer sparse: its size and relative squared error with 1, 2, ... elements."""

    name: str
    sharing: str
    path: fit.Path
    sizes: list[int]
    errors: list[float]
    elements: int = 0

    @property
    def size(self) -> int:
        return self.sizes[self.elements - 1]


def spread(options: Sequence[Option], allowed: float) -> list[Option]:
    """One option per name, with ``elements`` set, so that the sum of errors is least for at most ``allowed`` in sizes all told.

    Best for some price per parameter, which is searched for by halving; then elements are added one by one where they still
    fit. Raises ``InputError`` where not even one element for each fits.
    """
    by_name: dict[str, list[Option]] = {}
    for option in options:
        by_name.setdefault(option.name, []).append(option)

    def best(price: float) -> list[Option]:
        return [
            min(
                (o._replace(elements=k + 1) for o in some for k in range(len(o.sizes))),
                key=lambda o: o.errors[o.elements - 1] + price * o.size,
            )
            for some in by_name.values()
        ]

    low, high = 0.0, 1.0
    if sum(o.size for o in best(high)) > allowed:
        least = sum(min(o.sizes[0] for o in some) for some in by_name.values())
        raise InputError(f"the budget of {allowed:.0f} parameters is too small: one element in each layer takes {least}")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if sum(o.size for o in best(middle)) <= allowed else (middle, high)
    chosen = best(high)
    while True:
        left = allowed - sum(o.size for o in chosen)
        gains = [
            ((o.errors[o.elements - 1] - o.errors[o.elements]) / (o.sizes[o.elements] - o.size), i)
            for i, o in enumerate(chosen)
            if o.elements < len(o.sizes) and o.sizes[o.elements] - o.size <= left
        ]
        if not gains:
            return chosen
        _, index = max(gains)
        chosen[index] = chosen[index]._replace(elements=chosen[index].elements + 1)


def _can(layer: nn.Module) -> bool:
    """Whether the layer's weight is its own plain parameter, used by torch's own forward."""
    return not parametrize.is_parametrized(layer) and "weight" in parameters_of(layer) and not has_own_forward(type(layer))


def _cells(geometry: ConvGeometry) -> int:
    return math.prod(geometry.kernel_size)


def _kernels(weight: Tensor, reach: int) -> Tensor:
    """``(out * in/groups, *window)``"""
    return nn.functional.pad(weight.detach().flatten(0, 1), [reach] * (2 * (weight.ndim - 2)))
