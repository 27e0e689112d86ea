"""The rewritten sites of a model: what they are called, and where their samplings are.

A site has one name, from the plan to the ONNX file. That of a convolution module is its path. That of a functional
convolution is the path of its host, the module that holds the sampling, and a suffix: the weight (``up.kernel``; ``up`` where
that is called ``weight``), or for a computed weight the function (``up:conv1d``). Where that is taken, a number follows
(``up:conv1d#2``). The suffix is kept with the sampling, since whoever has the rewritten model alone can't know the number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import cast

from torch import nn

from ccrewrite.families.adopt import HOSTED, RewrittenConv, Samplings
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.sites import ROOT
from ccrewrite.ir.wrappers import unwrapped


@dataclass(frozen=True, eq=False)
class RewrittenSite:
    """``path``: of ``module``, which is the convolution, or hosts functional ones and then has the sampling under ``key``.
    ``aliases``: the names at the other paths of ``module``, and where functional the paths of the sampling."""

    name: str
    aliases: tuple[str, ...]
    path: str
    module: nn.Module
    key: str | None
    sampling: Sampling

    @property
    def sampling_path(self) -> str:
        """Of the sampling, in the model."""
        return f"{self.path}.{'sampling' if self.key is None else f'{HOSTED}.{self.key}'}".removeprefix(".")

    @property
    def layer(self) -> str:
        """The class of its module, as reports call it."""
        return type(self.module).__name__.removeprefix("Parametrized")


def rewritten_sites(model: nn.Module) -> dict[str, RewrittenSite]:
    """The rewritten sites of ``model`` by name, in the order of its modules. Wrappers are looked through."""
    model = unwrapped(model)
    paths: dict[int, list[str]] = defaultdict(list)
    for path, module in model.named_modules(remove_duplicate=False):
        paths[id(module)].append(path)
    found: dict[str, RewrittenSite] = {}

    def add(module: nn.Module, key: str | None, suffix: str, sampling: Sampling) -> None:
        first, *others = paths[id(module)]
        aliases = [site_name(path, suffix) for path in others]
        if key is not None:
            aliases += [f"{path}.{HOSTED}.{key}".removeprefix(".") for path in paths[id(module)]]
        name = free_name(site_name(first, suffix), found)
        found[name] = RewrittenSite(name, tuple(aliases), first, module, key, sampling)

    for module in model.modules():
        if isinstance(module, RewrittenConv):
            add(module, None, "", module.sampling)
        if HOSTED in module._modules:
            hosted = cast(Samplings, module._modules[HOSTED])
            for key, sampling in hosted.items():
                if isinstance(sampling, Sampling):  # else it is folded
                    add(module, key, hosted.suffixes[key], sampling)
    return found


def named_samplings(model: nn.Module) -> dict[str, Sampling]:
    """Every sampling of ``model`` by the name of its site; one that no site has, by its own path."""
    names: dict[int, str] = {}
    for name, site in rewritten_sites(model).items():
        names.setdefault(id(site.sampling), name)
    found = ((path, module) for path, module in unwrapped(model).named_modules() if isinstance(module, Sampling))
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
