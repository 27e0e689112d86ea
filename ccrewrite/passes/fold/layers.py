"""One site of a rewritten model made plain, in place: (code, message), codes as in ``ccrewrite.passes.fold.sites.FORMS``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ccrewrite.families.adopt import HOSTED, RewrittenConv, host_, release_, torch_layer, unhost_
from ccrewrite.families.dcls.sampling import DclsSampling
from ccrewrite.families.reroute import Route
from ccrewrite.families.sampling import Sampling
from ccrewrite.folded import gathered, shifted, sparse
from ccrewrite.folded.cuts import FOLDED, Cut, FixedSampling, FoldedConv, cut, occupied, smallest_cuts, used
from ccrewrite.folded.gathered import GATHERED
from ccrewrite.folded.shifted import SHIFTED, cost_of_dense, keep_apart_, shifts_of, suits
from ccrewrite.folded.sparse import SPARSE, visit_
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.passes.graph import restore_nodes_

Answer = tuple[str, str]
"""Code and message."""


def fold_layer_(layer: RewrittenConv, *, keep: bool, form: str | None = None) -> Answer:
    """``keep``: the layer must keep its weight, attributes and forward, for they are read elsewhere. ``form``: "dense" or its
    ``alternative``'s where it has one; None: the cheaper one."""
    sampling = layer.sampling
    if asks_for_size(sampling):
        return "size-asked", "it asks for another output size or grid than the convolution's own"
    if at_start(sampling):
        release_(layer)
        return "original", "nothing moved"
    routes: tuple[Route, ...] = vars(layer).get("ccrewrite_routes", ())
    weight = layer._parameters.get("weight")
    conv = release_(layer)
    if weight is not None:
        conv.weight = weight  # where it holds few taps in a window, releasing has made a kernel of them
    why = f"{type(conv).__name__} has a forward of its own" if routes else "its weight or attributes are read elsewhere"
    if not keep:
        with _evaluating(conv):
            known = _fold_parametrizations_(conv)
            other = alternative(layer, sampling) if known else None
            taken = other.form if other and (form == other.form or (form is None and other.pays)) else None
            if taken == "shifted":
                assert isinstance(sampling, DclsSampling)
                taps = shifts_of(sampling)
                keep_apart_(conv, sampling, taps)
                return "shifted", f"{len(taps)} taps apart in {'x'.join(map(str, sampling.window))}"
            if taken == "gathered":
                assert isinstance(sampling, DclsSampling)
                gathered.gather_(conv, sampling)
                return "gathered", f"{math.prod(sampling.taps)} taps of each channel in {'x'.join(map(str, sampling.window))}"
            kernel = sampling.kernel(conv.weight) if known else None
        why = f"a {type(conv).__name__} can't pad by different amounts" if known else "a hook computes its weight"
        if kernel is not None:
            cuts = smallest_cuts(occupied(kernel, sampling.ndim), sampling.margin)
            geometry = ConvGeometry.from_module(conv)
            padding = _torch_padding(geometry, cuts)
            if padding is not None or type(conv) in FOLDED:
                conv.weight = nn.Parameter(cut(kernel, cuts, sampling.margin), requires_grad=conv.weight.requires_grad)
                if taken == "sparse":
                    return _as_sparse_(conv, cuts)
                return _as_torch_layer_(conv, cuts, padding) if padding is not None else _as_padded_(conv, cuts)
    g = ConvGeometry.from_module(conv)
    key = f"conv{'_transpose' if g.transposed else ''}{g.ndim}d"
    name = "weight" if "weight" in conv._parameters else None
    zeros = (0,) * g.ndim if g.padding_mode != "zeros" else g.padding
    (route,) = routes or (Route(key, name, g.transposed, g.kernel_size, g.stride, zeros, sampling.dilation),)
    fixed = FixedSampling(sampling)
    route = Route(f"{HOSTED}.{key}", *(getattr(route, f) for f in route.__dataclass_fields__ if f != "sampling"))
    host_(conv, key, cast(Sampling, fixed), route, "")
    return "geometry", f"{_shape(fixed.matrix, fixed.ndim, fixed.cuts)}; {why}"


class Alternative(NamedTuple):
    """The other form than a dense kernel that a layer can be folded to."""

    form: str
    """A code of ``ccrewrite.passes.fold.sites.FORMS``."""
    cost_of_dense: float
    """Estimated time of the dense kernel over this form's."""
    kernel: tuple[int, ...]
    """The dense kernel's size."""
    samples: int
    """How many of its cells aren't zero."""

    @property
    def pays(self) -> bool:
        return self.cost_of_dense > {"shifted": shifted.PAYS, "gathered": gathered.PAYS, "sparse": sparse.PAYS}[self.form]


def alternative(layer: nn.Module, sampling: Sampling) -> Alternative | None:
    """What could be instead of a dense kernel; None where that is all."""
    kind, geometry = torch_layer(type(layer)), ConvGeometry.from_module(cast(_ConvNd, layer))
    if kind in SHIFTED and suits(sampling, geometry):
        dcls = cast(DclsSampling, sampling)
        taps, kernel = shifts_of(dcls), used_cells(dcls).shape[1:]
        return Alternative("shifted", cost_of_dense(taps, geometry, kernel.numel()), tuple(kernel), sum(map(len, taps)))
    if kind in GATHERED and gathered.suits(sampling, geometry):
        dcls = cast(DclsSampling, sampling)
        cells, taps = used_cells(dcls), math.prod(dcls.taps)
        kernel = cells.shape[1:]
        return Alternative(
            "gathered", gathered.cost_of_dense(taps, geometry, kernel.numel()), tuple(kernel), int(cells.sum()) // len(cells)
        )
    if kind in SPARSE and sparse.suits(sampling, geometry):
        cells = used_cells(cast(DclsSampling, sampling))
        visited, kernel = int(cells.flatten(1).sum(1).amax()), cells.shape[1:]
        return Alternative("sparse", kernel.numel() / visited, tuple(kernel), visited)
    return None


def used_cells(dcls: DclsSampling) -> Tensor:
    """Where the smallest kernel that a layer can be folded to isn't zero, ``(positions' sets, *kernel)``: its taps'
    places, which are those of each weight's, tell that."""
    like = dcls.offset
    kernel = dcls.kernel(torch.ones(*like.shape[1:3], *dcls.taps, dtype=like.dtype, device=like.device))
    return used(cut(kernel, smallest_cuts(occupied(kernel, dcls.ndim), dcls.margin), dcls.margin), dcls.ndim)


def fold_hosted_(host: nn.Module, key: str) -> Answer:
    """The functional call whose sampling is ``host.ccrewrite.<key>``."""
    samplings = cast(nn.ModuleDict, host._modules[HOSTED])
    sampling = cast(Sampling, samplings[key])
    if asks_for_size(sampling):
        return "size-asked", "it asks for another output size or grid than the convolution's own"
    if at_start(sampling):
        restore_nodes_(host, key) if isinstance(host, fx.GraphModule) else unhost_(host, key)
        return "original", "nothing moved"
    fixed = FixedSampling(sampling).train(sampling.training)
    samplings[key] = fixed
    return "geometry", f"{_shape(fixed.matrix, fixed.ndim, fixed.cuts)}; a functional call"


def asks_for_size(sampling: Sampling) -> bool:
    """Whether it computes something else than a convolution."""
    return sampling.resized


def at_start(sampling: Sampling) -> bool:
    """Whether the plain convolution computes the same."""
    movers = sampling.movers()
    return bool(movers) and not any(bool(m.any()) for m in movers)


def _torch_padding(geometry: ConvGeometry, cuts: Sequence[Cut]) -> tuple[int, ...] | None:
    """The ``padding`` of the torch layer that convolves with the cut kernel; None where none can."""
    pads = list(zip(geometry.pads, cuts, strict=True))
    rest = [(low - c.before, high - c.after) for (low, high), c in pads]
    if any(low != high or low < 0 for low, high in rest):
        return None
    if geometry.padding_mode != "zeros" and any(min(c.before, c.after) < 0 for c in cuts):
        return None
    limits = zip(geometry.output_padding, geometry.stride, cuts, strict=True)
    if geometry.transposed and any(e >= max(s, c.step) for e, s, c in limits):
        return None
    return tuple(low for low, _ in rest)


def _as_torch_layer_(conv: _ConvNd, cuts: Sequence[Cut], padding: tuple[int, ...]) -> Answer:
    conv.kernel_size = tuple(conv.weight.shape[2:])
    conv.dilation = tuple(c.step if k > 1 else 1 for c, k in zip(cuts, conv.kernel_size, strict=True))
    conv.padding = padding
    conv._reversed_padding_repeated_twice = [p for p in reversed(padding) for _ in range(2)]
    return "convolution", ConvGeometry.from_module(conv).describe().split(" ", 1)[1]


def _as_padded_(conv: _ConvNd, cuts: tuple[Cut, ...]) -> Answer:
    conv.__class__ = cast(type[_ConvNd], FOLDED[type(conv)])
    cast(FoldedConv, conv).cuts = cuts
    return "padded", _shape(conv.weight, len(cuts), cuts)


def _as_sparse_(conv: _ConvNd, cuts: tuple[Cut, ...]) -> Answer:
    visit_(conv, cuts)
    return "sparse", f"{cast(Tensor, conv.cells).shape[1]} cells of {_shape(conv.weight, len(cuts), cuts)}"


def _shape(kernel: Tensor, ndim: int, cuts: Sequence[Cut]) -> str:
    sizes = "x".join(map(str, kernel.shape[kernel.dim() - ndim :]))
    steps = "x".join(str(c.step) for c in cuts)
    return f"k{sizes}" + (f" d{steps}" if any(c.step > 1 for c in cuts) else "")


@contextmanager
def _evaluating(module: nn.Module) -> Generator[None]:
    """Spectral norm iterates in training mode."""
    flags = [(m, m.training) for m in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for m, training in flags:
            m.training = training


def _fold_parametrizations_(conv: nn.Module) -> bool:
    """Make the layer's tensors parameters of its own, whatever computes them so far; False where that is not known."""
    if parametrize.is_parametrized(conv):
        for name in list(cast(Any, conv.parametrizations)):
            value = getattr(conv, name).detach().clone()
            several = not hasattr(cast(Any, conv.parametrizations)[name], "original")
            parametrize.remove_parametrizations(conv, name, leave_parametrized=several)
            setattr(conv, name, nn.Parameter(value, requires_grad=getattr(conv, name).requires_grad))
        # Weight norm's, which torch leaves behind: of no use any more, and local to a function, so not to be pickled.
        for key, hook in list(conv._load_state_dict_pre_hooks.items()):
            if "weight_norm.<locals>" in getattr(getattr(hook, "hook", hook), "__qualname__", ""):
                del conv._load_state_dict_pre_hooks[key]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of its own older norms
        for hook in list(conv._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(conv, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(conv, hook.name)
            elif isinstance(hook, prune.BasePruningMethod):
                prune.remove(conv, hook._tensor_name)
    return "weight" in conv._parameters
