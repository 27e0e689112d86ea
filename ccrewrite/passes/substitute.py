"""Plan -> rewritten model: a sampling put at every site that the plan rewrites, and taken away again.

A site whose call is a convolution module's gets its layer changed in the module tree. A functional site is rewritten in the
graph where its module is a ``GraphModule``, else in the running of its module's own forward (``ccrewrite.families.reroute``).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

from torch import Tensor, fx, nn

from ccrewrite.errors import InputError
from ccrewrite.families.adopt import HOSTED, RewrittenConv, adopt_, host_, hosted_by, release_, unhost_
from ccrewrite.families.reroute import Route
from ccrewrite.families.rule import Rule
from ccrewrite.families.sampling import Sampling
from ccrewrite.families.sites import suffix_of
from ccrewrite.families.stored import settle_
from ccrewrite.ir.preserve import random_states_kept, trainable_made
from ccrewrite.ir.sites import Site
from ccrewrite.ir.threads import one_at_a_time
from ccrewrite.ir.torch_private import ConvNd, buffers_of
from ccrewrite.ir.typed import manual_seed
from ccrewrite.passes.detect import host_of, weight_of
from ccrewrite.passes.graph import reroute_nodes_, restore_nodes_
from ccrewrite.passes.rules import rule_for


class Substitution(NamedTuple):
    """One site rewritten: its sampling, and how to undo it."""

    sampling: Sampling
    undo: Callable[[], object]


@trainable_made()
def copied(model: nn.Module) -> nn.Module:
    """A deep copy, also of modules that hold tensors with a history (old-style weight and spectral norm after a forward)."""
    memo: dict[int, object] = {}
    for module in model.modules():
        for value in (*vars(module).values(), *buffers_of(module).values()):
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()  # a cache: the next forward computes it anew
    try:
        with one_at_a_time(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, for the trees in an exported graph
            copy_ = copy.deepcopy(model, memo)
            _complete_graph_modules_(model, copy_, memo)
    except Exception as error:
        raise InputError(
            f"{type(model).__name__} can't be copied ({type(error).__name__}: {error}). "
            "rewrite_(model, ...) works in place, and ccrewrite.revert undoes it"
        ) from error
    return copy_


def _complete_graph_modules_(model: nn.Module, copied: nn.Module, memo: dict[int, object]) -> None:
    """Give the graph modules in ``copied`` what torch's copy of one leaves behind: hooks, attributes, training flags."""
    pairs = list(zip(model.modules(), copied.modules(), strict=True))
    for old, new in pairs:
        if not isinstance(old, fx.GraphModule):
            continue
        for name, value in vars(old).items():
            if name not in vars(new) or "_hook" in name:
                vars(new)[name] = copy.deepcopy(value, memo)
        if new.training != old.training:
            new.train(old.training)  # its own method may choose the graph by it
    if any(isinstance(old, fx.GraphModule) for old, _ in pairs):
        for old, new in pairs:
            new.training = old.training


@trainable_made()
def substitute_(model: nn.Module, sites: Sequence[Site], rules: Sequence[Rule]) -> dict[str, Substitution]:
    """Rewrite ``sites`` of ``model`` in place, all of them or (raising) none; by name."""
    done: dict[str, Substitution] = {}
    with one_at_a_time(), random_states_kept():
        manual_seed(0)  # the residuals' inner layers: the same model gets the same layers
        try:
            for site in sites:
                done[site.name] = _substitute_(model, site, cast(Rule, rule_for(site, rules)))
        except BaseException:
            for substitution in done.values():
                substitution.undo()
            raise
    settle_(model)
    return done


def revert_(model: nn.Module) -> int:
    """Give every layer its original class and every call its original function, in place; returns how many there were."""
    count = 0
    for module in list(model.modules()):
        if isinstance(module, RewrittenConv):
            release_(module)
            count += 1
        elif isinstance(module, fx.GraphModule):
            count += restore_nodes_(module)
        elif (hosted := hosted_by(module)) is not None:
            count += len(hosted)
            unhost_(module)
    settle_(model)
    return count


def _substitute_(model: nn.Module, site: Site, rule: Rule) -> Substitution:
    module = model.get_submodule(site.module)
    weight = _weight(model, site)
    dtype, device = (site.dtype, site.device) if weight is None else (weight.dtype, weight.device)
    if device.type == "meta":  # where it runs: hooks may bring an offloaded weight there (accelerate)
        device = site.device
    with rule.asked_about(site):
        sampling = rule.made(site, dtype=dtype, device=device)
    if isinstance(weight, nn.Parameter):
        sampling.requires_grad_(weight.requires_grad)
    if not site.functional:
        layer = adopt_(cast(ConvNd, module), sampling, "weight" if site.weight else None)
        restore = rule.install_(layer, site)
        return Substitution(sampling, lambda: (restore(), release_(layer)))
    if isinstance(module, fx.GraphModule):
        key = _free_key(module, site)
        reroute_nodes_(module, key, sampling, site, weight)
        return Substitution(sampling, lambda: restore_nodes_(module, key))
    path, relative = host_of(model, site.module, weight)
    host = model.get_submodule(path)
    key = _free_key(host, site)
    host_(host, key, sampling, Route.of(f"{HOSTED}.{key}", relative, site.geometry), suffix_of(site.name, path))
    return Substitution(sampling, lambda: unhost_(host, key))


def _weight(model: nn.Module, site: Site) -> Tensor | None:
    """The tensor that decides dtype, device and whether the geometry is trained; None for a computed functional weight."""
    if not site.functional:
        return next(model.get_submodule(site.module).parameters(), None)
    return weight_of(model, site.weight)


def _free_key(host: nn.Module, site: Site) -> str:
    base = f"conv{'_transpose' if site.geometry.transposed else ''}{site.geometry.ndim}d"
    taken = hosted_by(host) or ()
    n = 1
    while (key := base if n == 1 else f"{base}_{n}") in taken:
        n += 1
    return key
