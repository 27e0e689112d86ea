"""Distillation from the original: fine-tuning that stays near what the model computed before it was rewritten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ccrewrite.errors import InputError
from ccrewrite.ir.outcome import GivenModel, model_of
from ccrewrite.ir.wrappers import unwrapped


class Distilled(NamedTuple):
    """Two scalars, to be weighted and added to a loss."""

    outputs: Tensor
    features: Tensor


class Distillation:
    """How far a model's latest run is from what the original makes of the same inputs.

    Hooks remember what ``model`` was called with and what it gave, whoever calls it: a loop of your own, a trainer, a model
    that is wrapped for several processes. Calling the object runs ``original`` on the same inputs, without gradients, and
    compares:

    - ``outputs``: with a ``temperature`` T the outputs are class scores along ``dim``, and this is ``T**2`` times the
      Kullback-Leibler divergence of ``softmax(scores / T)``, original to model, averaged over samples and places (arXiv
      1503.02531). With ``temperature=None`` they are values, compared as features are.
    - ``features``: mean squared difference over the original's mean square, averaged over the modules named (after arXiv
      1412.6550). 0 where none are.

    An output that is a mapping must hold "logits", or one floating-point tensor alone; so must a tuple hold one. ``close``
    removes the hooks, or use it in a ``with``.

    Args:
        model: the rewritten model, in training.
        original: the model before; put into evaluation mode. ``rewrite`` leaves it as it was; what was rewritten in place is
            ``revert(copy.deepcopy(model))``.
        features: names of modules of both models, whose outputs are compared.
        temperature: in units of the scores; above 0.
        dim: the axis of the classes; -1 for transformers.

    Raises:
        InputError: for an unknown module or a temperature that is not above 0; when called, where ``model`` has not run yet or
            shapes differ.

    >>> model, original = nn.Linear(4, 3), nn.Linear(4, 3)
    >>> with Distillation(model, original) as distillation:
    ...     _ = model(torch.ones(2, 4))
    ...     found = distillation()
    >>> found.outputs.item() > 0, found.features.item()
    (True, 0.0)
    """

    def __init__(
        self,
        model: GivenModel,
        original: GivenModel,
        *,
        features: Sequence[str] = (),
        temperature: float | None = 2.0,
        dim: int = 1,
    ) -> None:
        model, original = model_of(model), model_of(original, "the original")
        if model is original:
            raise InputError("a model can't be distilled from itself; pass the original as it was before the rewrite")
        if temperature is not None and not temperature > 0:
            raise InputError(f"temperature must be above 0, or None for outputs that are no class scores; found {temperature}")
        self.model, self.original = model, original.eval()
        self.features, self.temperature, self.dim = tuple(features), temperature, dim
        self._call: tuple[tuple[object, ...], dict[str, object], object] | None = None
        self._of: dict[int, dict[str, Tensor]] = {id(model): {}, id(original): {}}
        self._handles: list[RemovableHandle] = [model.register_forward_hook(self._remember, with_kwargs=True)]
        for whose, name in ((m, n) for m in (model, original) for n in self.features):
            try:
                module = unwrapped(whose).get_submodule(name)
            except AttributeError as error:
                self.close()
                which = "model" if whose is model else "original"
                raise InputError(f"the {which} has no module {name!r} whose features could be compared") from error
            self._handles.append(module.register_forward_hook(_Keep(module, name, self._of[id(whose)])))

    def __call__(self) -> Distilled:
        if self._call is None:
            raise InputError("nothing to distil yet: run the model first, then call the distillation")
        args, named, output = self._call
        with torch.no_grad():
            expected = _tensor(self.original(*args, **named), "the original's output")
        found = _tensor(output, "the model's output")
        _same_shape("output", found, expected)
        terms: list[Tensor] = []
        ours, theirs = self._of[id(self.model)], self._of[id(self.original)]
        for name in self.features:
            if name not in ours or name not in theirs:
                raise InputError(f"module {name!r} took no part in the latest run, so it has no features to compare")
            _same_shape(f"output of {name!r}", ours[name], theirs[name])
            terms.append(_relative(ours[name], theirs[name]))
        features = torch.stack(terms).mean() if terms else found.new_zeros((), dtype=torch.float32)
        return Distilled(self._of_outputs(found, expected), features)

    def _of_outputs(self, found: Tensor, expected: Tensor) -> Tensor:
        if self.temperature is None:
            return _relative(found, expected)
        ours, theirs = (F.log_softmax(_full(t) / self.temperature, self.dim) for t in (found, expected))
        return self.temperature**2 * F.kl_div(ours, theirs, reduction="none", log_target=True).sum(self.dim).mean()

    def _remember(self, module: nn.Module, args: tuple[object, ...], named: dict[str, object], output: object) -> None:
        if module is self.model:
            self._call = args, named, output

    def close(self) -> None:
        """Remove the hooks and forget the latest run."""
        for handle in self._handles:
            handle.remove()
        self._call = None
        for kept in self._of.values():
            kept.clear()

    def __deepcopy__(self, memo: dict[int, object]) -> Distillation:
        return self  # a copy of the model (an average of its weights, say) brings its hooks along, and is not the one distilled

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Keep:
    """A forward hook that keeps one module's output; in copies of the module it does nothing."""

    def __init__(self, module: nn.Module, name: str, kept: dict[str, Tensor]) -> None:
        self.module, self.name, self.kept = module, name, kept

    def __call__(self, module: nn.Module, args: object, output: object) -> None:
        if module is self.module:
            self.kept[self.name] = _tensor(output, f"the output of {self.name!r}")

    def __deepcopy__(self, memo: dict[int, object]) -> _Keep:
        return self


def _tensor(output: object, what: str) -> Tensor:
    if isinstance(output, Tensor):
        return output
    kind = type(output).__name__
    named: Mapping[str, object] = cast("Mapping[str, object]", output) if isinstance(output, Mapping) else {}
    if isinstance(logits := named.get("logits"), Tensor):
        return logits
    values = cast("Sequence[object]", output) if isinstance(output, (tuple, list)) else named.values()
    tensors = [v for v in values if isinstance(v, Tensor) and v.is_floating_point()]
    if len(tensors) != 1:
        raise InputError(
            f"{what} must be a tensor, or hold 'logits' or one floating-point tensor alone; found {kind} with {len(tensors)}"
        )
    return tensors[0]


def _relative(found: Tensor, expected: Tensor) -> Tensor:
    found, expected = _full(found), _full(expected)
    return (found - expected).square().mean() / expected.square().mean().clamp_min(torch.finfo(expected.dtype).tiny)


def _full(tensor: Tensor) -> Tensor:
    """At least float32: sums over classes and places need it."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _same_shape(what: str, found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape:
        raise InputError(
            f"the {what} has shape {tuple(found.shape)}, the original's {tuple(expected.shape)}; resized models differ"
        )
