"""Scale ensembles: one network at several internal sizes, the predictions averaged (arXiv 2006.11120)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.ir.outcome import GivenModel, model_of
from ccrewrite.passes.scales.resize import resized
from ccrewrite.passes.scales.scale_groups import Settings
from ccrewrite.training.recalibrate import Statistics, load_statistics_, recalibrate, statistics


class ScaleEnsemble(nn.Module):
    """``model`` at each of ``settings``; the mean of its predictions.

    Args:
        model: a rewritten model whose output size doesn't depend on the settings (a classifier; a dense task whose output
            returns to the size of its input). Shared, not copied.
        settings: internal sizes, as ``ccrewrite.resized`` takes them; an empty mapping is the native size.
        average: what is averaged: a function of the model's output, e.g. ``lambda y: y.softmax(-1)``. None: the output itself.

    ``recalibrate`` gives each setting batch-norm statistics of its own, which it then runs with; without, all run with the
    model's. They are part of ``state_dict``. Outside the ensemble the model is unchanged.

    Raises ``InputError`` for no settings; at the call, for a setting that the model can't have (``ccrewrite.resized``).

    >>> import ccrewrite
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> x = torch.randn(8, 1, 20, 20)
    >>> ensemble = ScaleEnsemble(ccrewrite.rewrite(model.eval(), x), [{}, {"0": 0.8}])
    >>> ensemble.recalibrate([x]).eval()(x).shape
    torch.Size([8, 2])
    """

    def __init__(
        self,
        model: GivenModel,
        settings: Sequence[Settings],
        *,
        average: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not settings:
            raise InputError("ScaleEnsemble needs at least one setting; {} is the native size")
        self.model = model_of(model)
        self.settings = [dict(s) for s in settings]
        self.average = average
        self._recalibrated: list[Statistics] | None = None

    def recalibrate(self, batches: Iterable[object], *, device: torch.device | str | None = None) -> ScaleEnsemble:
        """Give each setting batch-norm statistics of its own, measured over ``batches`` (``ccrewrite.training.recalibrate``);
        returns the ensemble."""
        self._recalibrated = recalibrate(self.model, batches, self.settings, device=device)
        return self

    def members(self, *args: object, **kwargs: object) -> list[Tensor]:
        """The (averaged function of the) model's output at each setting."""
        if self._recalibrated is not None and self.model.training:
            raise InputError("an ensemble with statistics of its own runs in evaluation mode; call ensemble.eval() first")
        own, outputs = statistics(self.model), list[Tensor]()
        try:
            for index, setting in enumerate(self.settings):
                if self._recalibrated is not None:
                    load_statistics_(self.model, self._recalibrated[index])
                with resized(self.model, setting):
                    out = self.model(*args, **kwargs)
                outputs.append(out if self.average is None else self.average(out))
        finally:
            if self._recalibrated is not None:
                load_statistics_(self.model, own)
        return outputs

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        return torch.stack(self.members(*args, **kwargs)).mean(0)

    def get_extra_state(self) -> list[Statistics] | None:
        return self._recalibrated

    def set_extra_state(self, state: object) -> None:
        self._recalibrated = cast("list[Statistics] | None", state)
