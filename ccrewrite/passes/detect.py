"""Program -> sites: the convolution calls of a run, grouped by the weight and the geometry they share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from ccrewrite.families.adapters import tuner_around
from ccrewrite.families.adopt import HOSTED, TORCH_LAYERS, RewrittenConv, has_own_forward, hosted_by, torch_layer
from ccrewrite.families.methods import calling_operator
from ccrewrite.families.reroute import Route
from ccrewrite.families.sampling import Sampling
from ccrewrite.families.sites import RewrittenSite, call_suffix, free_name, rewritten_sites, site_name, suffix_of
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.program import ConvCall, Program
from ccrewrite.ir.sites import ROOT, UNDECIDED, Decision, Site
from ccrewrite.ir.typed import named_modules
from ccrewrite.passes.graph import nodes_of


def detect(model: nn.Module, program: Program) -> tuple[Site, ...]:
    """The sites of ``program`` in the order of the run, then the convolution modules that were never called.

    Sites that no rule can rewrite carry their decision already.
    """
    there = rewritten_sites(model)
    groups: dict[Hashable, list[ConvCall]] = defaultdict(list)
    for call in program.calls:
        groups[_key(model, call)].append(call)
    sites = [_site(model, calls, {id(s.sampling): s for s in there.values()}) for calls in groups.values()]
    sites = [s if (refusal := _refusal(model, s, sites)) is None else replace(s, decision=refusal) for s in sites]
    used = {s.module for s in sites} | {s.weight.rpartition(".")[0] for s in sites if s.weight}
    sites += [_never_called(n, m, program.hidden) for n, m in named_modules(model) if _is_conv(m) and n not in used]
    return tuple(_with_aliases(model, _distinct(sites, there), there))


def host_of(model: nn.Module, path: str, weight: Tensor | None) -> tuple[str, str | None]:
    """Of a functional call in the module at ``path``: path of the innermost module around it that also holds the weight, and
    the weight's path in that. A computed weight is held by none: the calling module itself, and None."""
    if weight is None:
        return path, None
    while True:
        for name, tensor in _tensors(_submodule(model, path)):
            if tensor is weight:
                return path, name
        path = path.rpartition(".")[0]


def weight_of(model: nn.Module, name: str | None) -> Tensor | None:
    """The parameter or buffer of this name; None for a computed weight."""
    if name is None:
        return None
    owner, _, attribute = name.rpartition(".")
    return getattr(_submodule(model, owner), attribute)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _submodule(model: nn.Module, path: str) -> nn.Module:
    return nn.Module.get_submodule(model, path)  # a ScriptModule refuses its own


def _is_conv(module: nn.Module) -> bool:
    return torch_layer(type(module)) is not None


def _key(model: nn.Module, call: ConvCall) -> Hashable:
    """Calls with equal keys make one site."""
    module = _submodule(model, call.module)
    if isinstance(module, Sampling) or (_is_conv(module) and not call.obstacle and not has_own_forward(type(module))):
        return call.module
    return call.module, call.weight, call.geometry, call.obstacle


def _site(model: nn.Module, calls: list[ConvCall], there: Mapping[int, RewrittenSite]) -> Site:
    """``there``: the rewritten sites by the ``id`` of their sampling."""
    first = calls[0]
    module = _submodule(model, first.module)
    path, geometry, functional, decision = first.module, first.geometry, True, UNDECIDED
    name, weight = None, first.weight
    if isinstance(module, Sampling):
        geometry = replace(geometry, kernel_size=module.kernel_size, dilation=module.dilation)
        decision = Decision(False, "already-rewritten", f"its geometry is a {type(module).__name__} already; revert to redo it")
        if (site := there.get(id(module))) is not None:
            path, name = site.path, site.name
            if site.key is None:
                module = site.module
            elif site.weight is not None:
                weight = f"{path}.{site.weight}".removeprefix(".")
    if _is_conv(module):
        functional = False
        if not has_own_forward(module.ccrewrite_replaced if isinstance(module, RewrittenConv) else type(module)):
            geometry = ConvGeometry.from_module(module)  # pyright: ignore[reportArgumentType]
    elif first.obstacle in ("scripted", "quantized", "opaque"):
        functional = False
    if name is None and functional:
        host, below = host_of(model, path, weight_of(model, weight))
        name = site_name(host, call_suffix(below, geometry))
    return Site(
        name=name or path or ROOT,
        aliases=(),
        functional=functional,
        layer=type(module).__name__,
        geometry=geometry,
        calls=len(calls),
        input_shapes=tuple(c.input_shape for c in calls),
        output_shapes=tuple(c.output_shape for c in calls),
        module=path,
        weight=weight,
        dtype=first.dtype,
        device=first.device,
        decision=_obstacle(first) or decision,
    )


def _obstacle(call: ConvCall) -> Decision | None:
    where = call.module or "the model"
    messages = {
        "scripted": f"{where} is TorchScript: rewrite the model before scripting it",
        "quantized": f"{where} has quantized weights: rewrite the float model, then quantize",
        "opaque": f"native code below {where} makes this call",
        "control-flow": f"a branch or loop of torch.{call.within} makes this call",
        "autograd-function": f"the forward of {call.within}, an autograd function, makes this call",
        "other-object": f"a method of a {call.within} makes this call, which is no module but holds {where} or its weight",
    }
    return Decision(False, call.obstacle, messages[call.obstacle]) if call.obstacle else None


def _refusal(model: nn.Module, site: Site, sites: Iterable[Site]) -> Decision | None:
    """Why ``site`` can't be rewritten among the other ``sites``, or None."""
    if site.decision is not UNDECIDED:
        return None
    if site.dtype.is_complex:
        return Decision(False, "complex-dtype", f"its weight is {site.dtype}; the layers are real")
    others = [s for s in sites if s is not site]
    for other in others:
        if other.decision.code in ("control-flow", "autograd-function") and _same_weight(site, other):
            return Decision(False, other.decision.code, f"{other.decision.message}, of {other.name}, and shares its weight")
    if not site.functional:
        twins = [s.geometry.describe() for s in others if s.module == site.module and not s.functional]
        if twins:
            shown = ", ".join([site.geometry.describe(), *twins])
            return Decision(False, "several-calls", f"the forward of {site.layer} makes several convolutions: {shown}")
        if hasattr(_submodule(model, site.module), "sampling"):
            return Decision(False, "name-taken", f"{site.layer} has an attribute called sampling")
        return _adapted(model, site.module) or _operator(model, site.module) or _ambiguous(site, others)
    if (adapted := _adapted(model, site.module)) is not None:
        return adapted
    host = host_of(model, site.module, weight_of(model, site.weight))[0]
    if hasattr(found := _submodule(model, host), HOSTED) and hosted_by(found) is None:
        return Decision(False, "name-taken", f"{host or 'the model'} has an attribute called {HOSTED}")
    module = _submodule(model, site.module)
    if isinstance(module, fx.GraphModule) and not nodes_of(module, site, weight_of(model, site.weight)):
        return Decision(False, "wrapped-function", "a function that the graph calls as a whole (torch.fx.wrap) makes this call")
    for other in others:
        if site.weight and other.weight == site.weight and not other.functional:
            return Decision(False, "shared-weight", f"{site.weight} is also the weight of {other.name}, which is called itself")
    return _ambiguous(site, others) or _operator(model, host)


def _ambiguous(site: Site, others: Iterable[Site]) -> Decision | None:
    """Of a site whose calls are known by their geometry alone."""
    for other in others:
        below = other.module == site.module or not site.module or other.module.startswith(f"{site.module}.")
        if site.weight is None and other.weight is None and below and _route(site) == _route(other):
            return Decision(
                False, "ambiguous-call", f"computed weight, and {other.name} looks the same from {site.module or ROOT}"
            )
    return None


def _operator(model: nn.Module, path: str) -> Decision | None:
    module = _submodule(model, path)
    if isinstance(module, fx.GraphModule) or type(module) in TORCH_LAYERS:
        return None
    if not (name := calling_operator(type(module))):
        return None
    return Decision(False, "opaque", f"{type(module).__name__}.{name} calls an operator of torch.ops.aten, not a function")


def _adapted(model: nn.Module, path: str) -> Decision | None:
    """PEFT's adapters merge into the weight what convolutions of their own make, on the plain grid all."""
    if (around := tuner_around(model, path)) is None:
        return None
    return Decision(False, "adapter", f"{around} is an adapter: merge it first (merge_and_unload), then rewrite")


def _same_weight(site: Site, other: Site) -> bool:
    """Whether what is put in the place of ``site`` could take the calls of ``other`` too."""
    if not site.functional and site.module == other.module:
        return True
    return site.weight == other.weight and (site.weight is not None or _route(site) == _route(other))


def _route(site: Site) -> Route:
    return Route.of("", site.weight, site.geometry)


def _never_called(name: str, module: nn.Module, hidden: Sequence[str]) -> Site:
    geometry = ConvGeometry.from_module(module)  # pyright: ignore[reportArgumentType]
    weight = next(module.parameters(), torch.empty(0, device="cpu"))
    message = "the example inputs never reach it"
    if hidden:
        message = f"a branch or loop of torch.{', torch.'.join(hidden)} may make its calls, which hides them from the run"
    if isinstance(module, RewrittenConv):
        message += "; rewritten already"
    return Site(
        name=name or ROOT,
        aliases=(),
        functional=False,
        layer=type(module).__name__,
        geometry=geometry,
        calls=0,
        input_shapes=(),
        output_shapes=(),
        module=name,
        weight=None,
        dtype=weight.dtype,
        device=weight.device,
        decision=Decision(False, "control-flow" if hidden else "never-called", message),
    )


def _distinct(sites: Iterable[Site], there: Collection[str]) -> list[Site]:
    """Sites with one name each. Modules, and what is rewritten already (``there``), keep the name that they have; the second
    other site called ``up:conv1d`` is ``up:conv1d#2``."""
    sites = list(sites)
    kept = {s.name for s in sites if not s.functional} | set(there)
    named: dict[str, Site] = {}
    for site in sites:
        keeps = not site.functional or site.decision.code == "already-rewritten"
        name = free_name(site.name, named if keeps else named.keys() | kept)
        named[name] = replace(site, name=name)
    return list(named.values())


def _with_aliases(model: nn.Module, sites: Iterable[Site], there: Mapping[str, RewrittenSite]) -> Iterator[Site]:
    """The names that sites have at the other paths under which their module, or host, is registered."""
    paths: dict[int, list[str]] = defaultdict(list)
    for path, module in named_modules(model, remove_duplicate=False):
        paths[id(module)].append(path)
    for site in sites:
        if site.name in there:
            yield replace(site, aliases=there[site.name].aliases)
            continue
        path = site.module if not site.functional else host_of(model, site.module, weight_of(model, site.weight))[0]
        others = (p for p in paths[id(_submodule(model, path))] if p != path)
        yield replace(site, aliases=tuple(site_name(p, suffix_of(site.name, path)) for p in others))
