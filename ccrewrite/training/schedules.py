"""When geometry and weights train."""

from __future__ import annotations

import math

from ccrewrite.errors import InputError
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.outcome import GivenModel, model_of


class FreezeSchedule:
    """Geometry and weights of a rewritten model train from given steps on; before, they are frozen (no gradient).

    Geometry first: ``weights=500``. Weights first: ``geometry=500``. Geometry alone: ``weights=math.inf``. As long as the
    geometry is frozen where it started, plain convolutions run.

    Make the optimizer first, for ``param_groups`` takes what is trainable then. Call ``step()`` after each optimizer step. With
    ``DistributedDataParallel``, wrap before making the schedule, with ``find_unused_parameters=True``; under FSDP2, which makes
    gradients for what is frozen later too, set those to None before the optimizer's step (``finetune`` does both).

    Args:
        model: changed in place: its parameters' ``requires_grad``. What is frozen already stays frozen throughout.
        geometry: the step from which what samplings add trains. 0: the first one; ``math.inf``: never.
        weights: the same for everything else.

    Raises:
        InputError: where the model has no trainable geometry, and for steps that are negative or both never.

    >>> from ccrewrite.nn import DclsConv1d
    >>> layer = DclsConv1d(1, 1, 3, dilation=2)
    >>> schedule = FreezeSchedule(layer, weights=2)
    >>> for _ in range(3):
    ...     print(layer.weight.requires_grad, layer.sampling.offset.requires_grad)
    ...     schedule.step()
    False True
    False True
    True True
    """

    def __init__(self, model: GivenModel, *, geometry: float = 0, weights: float = 0) -> None:
        if min(geometry, weights) < 0 or min(geometry, weights) == math.inf:
            raise InputError(
                f"geometry and weights are the steps from which they train, at least 0 and not both never; "
                f"found {geometry} and {weights}"
            )
        model = model_of(model)
        inside = {id(m) for s in model.modules() if isinstance(s, Sampling) for m in s.modules()}
        # By module and name: sharding replaces the parameters themselves.
        places = [(m, n) for m in model.modules() for n, p in m.named_parameters(recurse=False) if p.requires_grad]
        if not any(id(module) in inside for module, _ in places):
            raise InputError("the model has no geometry that trains; rewrite it first, or unfreeze its samplings")
        self._parts = [
            (geometry, [(m, n) for m, n in places if id(m) in inside]),
            (weights, [(m, n) for m, n in places if id(m) not in inside]),
        ]
        self.done = 0
        self._apply()

    def step(self) -> None:
        """One step on."""
        self.done += 1
        if any(self.done == start for start, _ in self._parts):
            self._apply()

    def release(self) -> None:
        """Everything trains again, as before the schedule."""
        self._apply(release=True)

    def _apply(self, release: bool = False) -> None:
        for start, places in self._parts:
            trains = release or self.done >= start
            for module, name in places:
                parameter = getattr(module, name)
                parameter.requires_grad_(trains)
                if not trains:
                    parameter.grad = None

    def state_dict(self) -> dict[str, int]:
        """Where the schedule stands."""
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a stored state."""
        self.done = int(state["done"])
        self._apply()
