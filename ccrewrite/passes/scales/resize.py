"""Run a rewritten model at other internal sizes: ``resized`` for a while, ``resize_`` to stay."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from itertools import takewhile
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.utils._pytree import tree_leaves

from ccrewrite.errors import InputError, SelectionError
from ccrewrite.families.resizable import ResizableSampling
from ccrewrite.families.sites import rewritten_sites
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.geometry import Ints
from ccrewrite.ir.names import hits
from ccrewrite.ir.outcome import GivenModel, model_of
from ccrewrite.ir.torch_private import drop_forward_pre_hook_, forward_pre_hooks_of
from ccrewrite.ir.wrappers import uncompiled, unwrapped, wrappers
from ccrewrite.passes.scales.scale_groups import ScaleGroups, Settings, require_sites, scale_groups
from ccrewrite.passes.scales.sizes import ChoosesSizes, samplings_of

Shapes = tuple[object, ...]
"""What a call's sizes depend on: the shapes of its tensors, and its other arguments."""


_found: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], ScaleGroups]] = WeakKeyDictionary()
"""Scale groups by model, its resizable sites and the shapes of its inputs: what finding them cost is paid once."""


class Resizing(ChoosesSizes):
    """Forward pre-hook of a model that gives its resizable sites the output sizes of ``settings`` for the inputs at hand.

    The sizes depend on the inputs' shapes: what is pinned, and how large the native sizes are. So they are found once for each
    combination of shapes that the model is called with, and kept.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = dict(settings)
        # Sites left out give what is wanted by themselves.
        self.known: dict[Shapes, dict[str, Ints]] = {}
        self.current: Shapes | None = None

    def __call__(self, model: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        shapes = _shapes((args, kwargs))
        if shapes != self.current and samplings_of(model):  # none: the model was reverted
            self.apply(model, shapes, Inputs(args, kwargs))

    def apply(self, model: nn.Module, shapes: Shapes, inputs: Inputs) -> None:
        if shapes not in self.known:
            if torch.compiler.is_compiling() or detect_fake_mode(inputs.tensors()) is not None:
                shown = ", ".join("x".join(map(str, t.shape)) for t in inputs.tensors())
                raise InputError(
                    f"the internal sizes for inputs of shape {shown} can't be found while the model is traced: call it once "
                    "with such inputs before, or pass them as example_inputs"
                )
            self.known[shapes] = _groups(model, shapes, inputs).changes(self.settings)
        for name, sampling in samplings_of(model).items():
            sampling.scale = None
            sampling.output_size = self.known[shapes].get(name)
        self.current = shapes


def resizings_of(module: nn.Module) -> list[Resizing]:
    """What gives ``module`` its sizes before each of its calls: one hook where ``resize_`` was called, else none."""
    hooks: Iterable[object] = forward_pre_hooks_of(module).values()
    return [hook for hook in hooks if isinstance(hook, Resizing)]


def resize_(model: GivenModel, settings: Settings | None, example_inputs: object = None) -> nn.Module:
    """Set the output sizes of resizable sites (CC layers, say) of a rewritten model, from now on.

    The sites of a scale group go together. Sites nobody asks for follow as the original's arithmetic makes them, and those that
    something pins stay: in a U-Net, each up-layer returns to the size of its skip. The sizes are found by ``scale_groups``,
    once for a model and shapes of its inputs.

    Args:
        model: a rewritten model, or what ``rewrite`` returned.
        settings: the name of a scale group, the name of a site, or a glob of module paths (everything below) -> the output size
            over the native one: a number, or one per spatial axis. ``{"layer3": 0.8, "layer4": (0.8, 0.9)}``: layer 3 works at
            0.8 of the height and width it had, layer 4 at 0.8 and 0.9 of its own, whatever layer 3 does. None or ``{}`` undoes.
        example_inputs: as ``plan``'s: the sizes are found at once. None: when the model is called.

    Returns:
        The model.

    Raises:
        InputError: where the model has no resizable site or a site can't have that size (it says what pins it); at the model's
            call where there are no ``example_inputs``.
        SelectionError: for a key that hits nothing.

    >>> import ccrewrite, torch
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.AdaptiveAvgPool2d(1))
    >>> x = torch.randn(1, 3, 32, 32)
    >>> model = resize_(ccrewrite.rewrite(model, x).model, {"0": (0.8, 1.2)}, x)
    >>> model[0](x).shape, model(x).shape
    (torch.Size([1, 8, 12, 18]), torch.Size([1, 8, 1, 1]))
    """
    model = model_of(model)
    if settings is not None and not isinstance(settings, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"sizes are a mapping of sites to ratios, found {settings!r}")
    for holder in wrappers(model):
        for key, hook in list(forward_pre_hooks_of(holder).items()):
            if isinstance(hook, Resizing):
                drop_forward_pre_hook_(holder, key)
                for sampling in samplings_of(model).values():
                    sampling.output_size = None
    if settings:
        require_sites(model)
        _require_hits(model, settings)
        resizing = Resizing(settings)
        if example_inputs is not None:
            inputs = Inputs.of(example_inputs)
            resizing.apply(model, _shapes((inputs.args, inputs.kwargs)), inputs)
        model.register_forward_pre_hook(resizing, with_kwargs=True)
    return model


@contextmanager
def resized(model: GivenModel, settings: Settings, example_inputs: object = None) -> Generator[nn.Module]:
    """Inside, a model has the output sizes of ``settings`` alone; afterwards those that it had.

    Args:
        model: as ``resize_``'s.
        settings: as ``resize_``'s.
        example_inputs: as ``resize_``'s.

    Raises:
        InputError: as ``resize_`` does.
        SelectionError: as ``resize_`` does.

    >>> import ccrewrite, torch
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.AdaptiveAvgPool2d(1))
    >>> x = torch.randn(1, 3, 32, 32)
    >>> model = ccrewrite.rewrite(model, x).model
    >>> with resized(model, {"0": 0.5}):
    ...     assert model(x).shape == (1, 8, 1, 1)
    ...     print(model[0](x).shape)
    torch.Size([1, 8, 8, 8])
    """
    model = model_of(model)
    samplings: list[ResizableSampling] = list(samplings_of(model).values())
    before = [(s, s.output_size, s.scale) for s in samplings]
    outer = resizings_of(model)
    try:
        yield resize_(model, settings, example_inputs)
    finally:
        resize_(model, None)
        for resizing in outer:
            model.register_forward_pre_hook(resizing, with_kwargs=True)
        for sampling, output_size, scale in before:
            sampling.output_size, sampling.scale = None, None
            sampling.output_size, sampling.scale = output_size, scale


def without_wrapper(model: nn.Module, *, compiled_alone: bool = False) -> nn.Module:
    """The model inside (``compiled_alone``: what torch.compile was given, wrapped otherwise or not). Raises ``InputError``
    where sizes were asked of what is around it, and would be lost."""
    inside = uncompiled(model) if compiled_alone else unwrapped(model)
    if any(resizings_of(wrapper) for wrapper in takewhile(lambda m: m is not inside, wrappers(model))):
        raise InputError(
            f"the {type(model).__name__} around the model was given internal sizes, which the model inside doesn't know; "
            "undo that, ccrewrite.resize_(..., None), and resize the model inside"
        )
    return inside


def _require_hits(model: nn.Module, settings: Settings) -> None:
    """Group names are paths of sites or of modules around them, so a key that hits none can be told without a run."""
    known = samplings_of(model)
    sites = [site for name, site in rewritten_sites(model).items() if name in known]
    for key in settings:
        if not any(hits(key, (site.name, *site.aliases)) for site in sites):
            raise SelectionError(f"{key!r} hits no resizable site or module that holds one; the sites are {', '.join(known)}")


def _groups(model: nn.Module, shapes: Shapes, inputs: Inputs) -> ScaleGroups:
    of_model = _found.setdefault(model, {})
    key = (shapes, *samplings_of(model))
    if key not in of_model:
        of_model[key] = scale_groups(model, inputs)
    return of_model[key]


def _shapes(values: object) -> Shapes:
    leaves: list[object] = tree_leaves(values)
    known = (tuple(v.shape) if isinstance(v, Tensor) else v for v in leaves if isinstance(v, (Tensor, int, float, str, bool)))
    return tuple(known)
