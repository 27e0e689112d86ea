"""One site of a rewritten model made plain, in place: the first of the ways below that it can take.

    resized        its calls ask for another output size: nothing to do here (``resized.py``)
    original       its geometry is at its start: what was there before (``adopt.release_``)
    an alternative what its sampling offers besides a dense kernel, where that pays or is asked for (``Sampling.alternatives``)
    dense          the effective kernel, cut, as the layer's weight (``dense.py``)
    geometry       the weight stays, and a constant geometry is applied to it at each call (``fixed.py``)

The last one is for whatever must keep its weight and attributes: functional calls, layers with a forward of their own.
"""

from __future__ import annotations

from typing import cast

from torch import fx, nn

from ccrewrite.families.adopt import TORCH_LAYERS, RewrittenConv, Samplings, hosted_by, release_, unhost_
from ccrewrite.families.reroute import routes_of
from ccrewrite.families.sampling import Sampling
from ccrewrite.folded.alternative import Alternative
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.preserve import trainable_made
from ccrewrite.ir.torch_private import ConvNd, parameters_of
from ccrewrite.passes.fold.dense import with_kernel_
from ccrewrite.passes.fold.fixed import fix_call_, fix_layer_
from ccrewrite.passes.fold.sites import Answer
from ccrewrite.passes.fold.weights import evaluating, own_weight_
from ccrewrite.passes.graph import restore_nodes_
from ccrewrite.passes.targets import Target

DENSE = "dense"
"""What ``fold(forms=)`` calls the layer with the effective kernel as its weight."""
SIZE_ASKED = Answer("size-asked", "it asks for another output size or grid than the convolution's own")
UNMOVED = Answer("original", "nothing moved")


@trainable_made()
def fold_layer_(layer: RewrittenConv, *, keep: bool = False, form: str | None = None, target: Target | None = None) -> Answer:
    """``keep``: the layer must keep its weight and attributes, for they are read elsewhere. ``form``: ``DENSE`` or the name of
    one of its alternatives; None: the one that pays most. ``target``: what must take a dense kernel."""
    sampling = layer.sampling
    if sampling.resized:
        return SIZE_ASKED
    if sampling.at_start():
        release_(layer)
        return UNMOVED
    routes = routes_of(layer)
    conv = _released(layer)
    if routes:
        return fix_layer_(conv, sampling, f"{type(conv).__name__} has methods of its own", routes[0])
    if keep:
        return fix_layer_(conv, sampling, "its weight or attributes are read elsewhere")
    with evaluating(conv, sampling):
        answer = _with_own_weight_(conv, sampling, form, target)
    conv.train(conv.training)  # what it was given, too
    return answer if isinstance(answer, Answer) else fix_layer_(conv, sampling, answer)


def _with_own_weight_(conv: ConvNd, sampling: Sampling, form: str | None, target: Target | None) -> Answer | str:
    """``conv`` with a weight that holds the geometry; or why it can't have one."""
    if not own_weight_(conv):
        return "a hook computes its weight"
    alternative = taken(alternatives_of(conv, sampling), form)
    if alternative is not None:
        return Answer(alternative.name, alternative.make_(conv))
    answer = with_kernel_(conv, sampling.kernel(conv.weight), sampling.margin, target)
    return answer or f"a {type(conv).__name__} can't pad by different amounts"


@trainable_made()
def fold_hosted_(host: nn.Module, key: str) -> Answer:
    """The functional call whose sampling is ``host.ccrewrite.<key>``."""
    sampling = cast(Sampling, cast(Samplings, hosted_by(host))[key])
    if sampling.resized:
        return SIZE_ASKED
    if sampling.at_start():
        restore_nodes_(host, key) if isinstance(host, fx.GraphModule) else unhost_(host, key)
        return UNMOVED
    return fix_call_(host, key)


def alternatives_of(conv: nn.Module, sampling: Sampling) -> tuple[Alternative, ...]:
    """What ``conv``, without its sampling, could become besides a layer with a dense kernel. That changes its class, so a class
    of somebody's own has no alternatives."""
    plain = conv.ccrewrite_replaced if isinstance(conv, RewrittenConv) else type(conv)
    return sampling.alternatives(ConvGeometry.from_module(cast(ConvNd, conv))) if plain in TORCH_LAYERS else ()


def taken(offered: tuple[Alternative, ...], form: str | None) -> Alternative | None:
    """The one of this name; with None, the one that pays most by estimate. None: a dense kernel."""
    fitting = [a for a in offered if (a.pays if form is None else a.name == form)]
    return max(fitting, key=lambda a: a.cost_of_dense, default=None)


def _released(layer: RewrittenConv) -> ConvNd:
    """The torch layer again, with the weight as the sampling takes it: releasing makes a kernel of few taps in a window."""
    weight = parameters_of(layer).get("weight")
    conv = release_(layer)
    if weight is not None:
        conv.weight = weight
    return conv
