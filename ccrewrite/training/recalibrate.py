"""Batch norms after a change of internal size: their running statistics, measured anew.

A network whose feature maps change size keeps its weights but not the distribution of its activations, and batch norm's running
statistics are what breaks first. A pass over some data without gradients mends them; no parameter changes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.ir.outcome import GivenModel, model_of
from ccrewrite.ir.progress import step
from ccrewrite.ir.torch_private import NormBase
from ccrewrite.ir.typed import named_modules
from ccrewrite.ir.wrappers import unwrapped
from ccrewrite.passes.scales.resize import resized
from ccrewrite.passes.scales.scale_groups import Settings

Statistics = dict[str, tuple[Tensor, Tensor, Tensor]]
"""Of each batch norm by name: running mean, running variance, batches tracked."""


def statistics(model: GivenModel) -> Statistics:
    """A copy of the running statistics of every batch norm of ``model`` (instance norms that track them too)."""
    norms = _norms(model_of(model))
    return {name: tuple(b.clone() for b in _buffers(norm)) for name, norm in norms.items()}  # pyright: ignore[reportReturnType]


def load_statistics_(model: GivenModel, values: Statistics) -> None:
    """Put ``values`` in place of ``model``'s running statistics. In place. Raises ``InputError`` where the norms differ."""
    norms = _norms(model_of(model))
    if norms.keys() != values.keys():
        raise InputError(f"statistics of {sorted(values)} don't fit a model whose batch norms are {sorted(norms)}")
    with torch.no_grad():
        for name, norm in norms.items():
            for buffer, value in zip(_buffers(norm), values[name], strict=True):
                buffer.copy_(value)


def recalibrate(
    model: GivenModel,
    batches: Iterable[object],
    settings: Sequence[Settings] | None = None,
    *,
    device: torch.device | str | None = None,
) -> list[Statistics]:
    """Measure the running statistics of ``model``'s batch norms anew, for each of ``settings``.

    Args:
        model: any module; its training flags and parameters are left as they are.
        batches: inputs of the model: tensors, or tuples or lists whose first entry is the input (labels are ignored), or
            mappings, passed by name. Iterated once per setting.
        settings: internal sizes, as ``ccrewrite.resized`` takes them; an empty mapping: the native ones. None: the model as it
            is, whose statistics are replaced. Otherwise the model's own stay, and those of each setting are returned, to be
            switched to (``load_statistics_``, ``ScaleEnsemble``).
        device: where the inputs are moved to.

    Returns the statistics, one per setting (one in all, where ``settings`` is None): plain averages over all batches.

    Raises ``InputError`` for a model without batch norms, for no batches, and for an iterator that can't be run through again.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
    >>> (found,) = recalibrate(model, [torch.randn(8, 1, 9, 9) + 3])
    >>> torch.equal(found["1"][0], model[1].running_mean), model.training
    (True, False)
    """
    model = model_of(model)
    if not _norms(model):
        raise InputError("recalibrate found no batch norm with running statistics in the model; nothing needs recalibration")
    if settings is None:
        return [_measured(model, batches, device)]
    if iter(batches) is batches and len(settings) > 1:
        raise InputError(
            "recalibrate needs batches that can be iterated once per setting (a list or DataLoader), found an iterator"
        )
    own, found = statistics(model), list[Statistics]()
    try:
        for done, setting in enumerate(settings):
            step("recalibrate", f"setting {done + 1} of {len(settings)}", done / len(settings))
            with resized(model, setting):
                found.append(_measured(model, batches, device))
    finally:
        load_statistics_(model, own)
    return found


def _measured(model: nn.Module, batches: Iterable[object], device: torch.device | str | None) -> Statistics:
    with _measuring(model), torch.no_grad():
        count = 0
        for batch in batches:
            _call(model, batch, device)
            count += 1
    if not count:
        raise InputError("recalibrate found no batches; pass a list of inputs or a DataLoader")
    return statistics(model)


@contextmanager
def _measuring(model: nn.Module) -> Generator[None]:
    """Batch norms, and they alone, in training mode and averaging over all batches."""
    norms = list(_norms(model).values())
    flags = [(m, m.training) for m in model.modules()]
    momenta = [n.momentum for n in norms]
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in flags:
            module.training = training


def _call(model: nn.Module, batch: object, device: torch.device | str | None) -> None:
    def move(value: object) -> object:
        return value.to(device) if device is not None and isinstance(value, Tensor) else value

    if isinstance(batch, Mapping):
        model(**{k: move(v) for k, v in cast("Mapping[str, object]", batch).items()})
    else:
        model(move(cast("Sequence[object]", batch)[0] if isinstance(batch, (tuple, list)) else batch))


def _norms(model: nn.Module) -> dict[str, NormBase]:
    found = ((n, m) for n, m in named_modules(unwrapped(model)) if isinstance(m, NormBase))
    return {n: m for n, m in found if m.track_running_stats and m.running_mean is not None}


def _buffers(norm: NormBase) -> list[Tensor]:
    return [cast(Tensor, b) for b in (norm.running_mean, norm.running_var, norm.num_batches_tracked)]
