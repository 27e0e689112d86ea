"""The rewritten sites of a model: what they are called, and where their samplings are.

A site has one name, from the plan to the ONNX file. That of a convolution module is its path. That of a functional
convolution is the path of its host, the module that holds the sampling, and a suffix: the weight (``up.kernel``; ``up`` where
that is called ``weight``), or for a computed weight the function (``up:conv1d``). Where that is taken, a number follows
(``up:conv1d#2``). The suffix is kept with the sampling, since whoever has the rewritten model alone can't know the number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace

from torch import fx, nn

from ccrewrite.families.adopt import HOSTED, RewrittenConv, hosted_by
from ccrewrite.families.methods import Rerouted
from ccrewrite.families.reroute import routes_of
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.calls import uncast
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.sites import ROOT
from ccrewrite.ir.typed import named_modules
from ccrewrite.ir.wrappers import unwrapped


@dataclass(frozen=True, eq=False)
class RewrittenSite:
    """``paths``: of ``module``, which is the convolution, or hosts functional ones and then has the sampling under ``key``.
    ``aliases``: the names at the paths but the first, and where functional the paths of the sampling."""

    name: str
    aliases: tuple[str, ...]
    paths: tuple[str, ...]
    module: nn.Module
    key: str | None
    sampling: Sampling

    @property
    def path(self) -> str:
        """The first of ``paths``."""
        return self.paths[0]

    @property
    def sampling_paths(self) -> tuple[str, ...]:
        return tuple(f"{path}.{self._within}".removeprefix(".") for path in self.paths)

    @property
    def weight(self) -> str | None:
        """Path of the tensor that its calls use, from ``module``; None: computed, or the layer's own."""
        if isinstance(self.module, fx.GraphModule):
            calls = (n for n in self.module.graph.nodes if n.op == "call_module" and n.target == self._within)
            source = next((uncast(n.args[1]) for n in calls), None)
            return str(source.target) if source is not None and source.op == "get_attr" else None
        if self.key is None and not isinstance(self.module, Rerouted):
            return None
        return next((route.weight for route in routes_of(self.module) if route.sampling == self._within), None)

    @property
    def _within(self) -> str:
        return "sampling" if self.key is None else f"{HOSTED}.{self.key}"

    @property
    def layer(self) -> str:
        """The class of its module, as reports call it."""
        return type(self.module).__name__.removeprefix("Parametrized")


def rewritten_sites(model: nn.Module) -> dict[str, RewrittenSite]:
    """The rewritten sites of ``model`` by name, in the order of its modules. Wrappers are looked through."""
    model = unwrapped(model)
    paths: dict[int, list[str]] = defaultdict(list)
    for path, module in named_modules(model, remove_duplicate=False):
        paths[id(module)].append(path)
    found: dict[str, RewrittenSite] = {}

    def add(module: nn.Module, key: str | None, suffix: str, sampling: Sampling) -> None:
        first, *others = (site_name(path, suffix) for path in paths[id(module)])
        site = RewrittenSite(free_name(first, found), tuple(others), tuple(paths[id(module)]), module, key, sampling)
        found[site.name] = site if key is None else replace(site, aliases=site.aliases + site.sampling_paths)

    for module in model.modules():
        if isinstance(module, RewrittenConv):
            add(module, None, "", module.sampling)
        if (hosted := hosted_by(module)) is not None:
            for key, sampling in hosted.items():
                if isinstance(sampling, Sampling):  # else it is folded
                    add(module, key, hosted.suffixes[key], sampling)
    return found


def named_samplings(model: nn.Module) -> dict[str, Sampling]:
    """Every sampling of ``model`` by the name of its site; one that no site has, by its own path."""
    names: dict[int, str] = {}
    for name, site in rewritten_sites(model).items():
        names.setdefault(id(site.sampling), name)
    found = ((path, module) for path, module in named_modules(unwrapped(model)) if isinstance(module, Sampling))
    return {names.get(id(sampling), path): sampling for path, sampling in found}


def site_name(path: str, suffix: str) -> str:
    """
    >>> site_name("up", ":conv1d"), site_name("up", ".kernel"), site_name("", ".kernel"), site_name("", "")
    ('up:conv1d', 'up.kernel', 'kernel', '(root)')
    """
    name = f"{path}{suffix}".removeprefix(".")
    return name if name and not name.startswith("#") else ROOT + name


def suffix_of(name: str, path: str) -> str:
    """What ``site_name`` added to ``path``.

    >>> suffix_of("up:conv1d#2", "up"), suffix_of("kernel", ""), suffix_of("(root)", "")
    (':conv1d#2', '.kernel', '')
    """
    rest = name.removeprefix(path or ROOT)
    return rest if not rest or rest[0] in ".:#" else f".{rest}"


def call_suffix(weight: str | None, geometry: ConvGeometry) -> str:
    """The suffix of a functional convolution's name. ``weight``: its path from the host, None where it is computed."""
    if weight is None:
        return f":conv{'_transpose' if geometry.transposed else ''}{geometry.ndim}d"
    return f".{weight}".removesuffix(".weight")


def free_name(name: str, taken: Collection[str]) -> str:
    """``name``, with the first number that is free where it is taken.

    >>> free_name("up", ["up", "up#2"])
    'up#3'
    """
    count, free = 1, name
    while free in taken:
        count += 1
        free = f"{name}#{count}"
    return free
