"""``finetune``: a training loop for rewritten models, on one process or many. What is distributed, accelerate distributes."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from ccrewrite.errors import InputError
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.options import check_arguments
from ccrewrite.ir.outcome import GivenModel, model_of
from ccrewrite.ir.preserve import random_states_kept
from ccrewrite.training.accelerating import Accelerated, Made
from ccrewrite.training.batches import Batches, Loss
from ccrewrite.training.config import Compile, FinetuneConfig
from ccrewrite.training.gains import gains
from ccrewrite.training.groups import ParamGroup, param_groups
from ccrewrite.training.loop import History, Loop
from ccrewrite.training.run_folder import RunFolder
from ccrewrite.training.steps import Schedule, Steps

if TYPE_CHECKING:
    from accelerate import Accelerator  # pyright: ignore[reportMissingTypeStubs]


def finetune(
    model: GivenModel,
    train_data: Iterable[object],
    loss: Loss,
    *,
    validation: Iterable[object] | None = None,
    original: GivenModel | None = None,
    config: FinetuneConfig | None = None,
    optimizer: Callable[[list[ParamGroup]], torch.optim.Optimizer] = torch.optim.AdamW,
    schedules: Sequence[Schedule] = (),
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = True,
    require_geometry: bool = True,
    accelerator: Accelerator | None = None,
) -> History:
    """Train a rewritten model, in place, on one process or on all that `accelerate launch` or `torchrun` started.

    The caller's random states are as before afterwards.

    Args:
        model: what ``rewrite`` returned, or its ``model``. That ends in the training flags that it came with, on the device it
            was trained on.
        train_data: a ``DataLoader``, or for one process any collection of batches. A batch is a tuple or list
            ``(*inputs, target)`` or a mapping. It is a batch of the whole run, of which each process takes its share: the
            numbers don't depend on how many there are.
        loss: gives a scalar, the mean over the batch: ``loss(model(*inputs), target)``, of a mapping
            ``loss(model(**batch), batch)``.
        validation: data of the same form; its mean loss is computed after each epoch.
        original: the model before the rewrite, where the config asks for distillation. Moved to the model's device, in
            evaluation mode.
        config: see ``FinetuneConfig``; None: its defaults.
        optimizer: makes the optimizer from ``param_groups``.
        schedules: see ``Schedule``.
        out: the run's folder, on a file system that all processes see: ``log.csv``, checkpoints, ``model.safetensors`` (see
            ``ccrewrite.training.run_folder``). None: nothing is written.
        resume: go on from the checkpoint in ``out``, if there is one; model, data and config must be those that the run began
            with, but for more ``epochs``: the rate goes on as a run of so many has it there. On CPU the losses are the same to
            the last bit as those of a run that was never interrupted.
        progress: a progress bar, where the output is a terminal.
        require_geometry: False lets a model train that has none, for comparison.
        accelerator: one of your own, with its settings; None: one is made.

    Returns:
        The losses, step by step and after each epoch.

    Raises:
        InputError: where accelerate (extra ``train``) is missing, for data, a loss or a folder that can't be used, a model
            without trainable geometry, and once a loss is not finite.

    >>> import ccrewrite
    >>> from torch import nn
    >>> images, classes = torch.randn(32, 1, 8, 8), torch.randint(3, (32,))
    >>> model = nn.Sequential(nn.Conv2d(1, 3, 3, dilation=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> batches = list(zip(images.split(8), classes.split(8)))
    >>> result = ccrewrite.rewrite(model, images)
    >>> history = finetune(result, batches, nn.functional.cross_entropy, config=FinetuneConfig(epochs=2))
    >>> len(history.losses)
    8
    """
    check_arguments(finetune, locals())
    config = FinetuneConfig() if config is None else config
    if not isinstance(config, FinetuneConfig):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(
            f"config must be a FinetuneConfig, found {config!r}; FinetuneConfig.from_mapping makes one of a mapping"
        )
    for schedule in schedules:
        if not callable(getattr(schedule, "step", None)):
            raise InputError(f"schedules are objects with a method step, found {schedule!r}")
    if accelerator is not None and not hasattr(accelerator, "process_index"):
        raise InputError(f"accelerator must be an accelerate.Accelerator, found {accelerator!r}")
    model = model_of(model, "the model to train")
    original = None if original is None else model_of(original, "the original")
    geometry = [p for m in model.modules() if isinstance(m, Sampling) for p in m.parameters()]
    if require_geometry and not any(p.requires_grad for p in geometry):
        raise InputError(
            "the model has no trainable geometry: pass what rewrite returned, with its samplings unfrozen, or "
            "require_geometry=False to train a model without"
        )
    if config.patience is not None and (validation is None or out is None):
        raise InputError("patience needs validation data to judge by, and out, a folder to keep the best weights in")
    flags = [(m, m.training) for m in model.modules()]
    own = {name: value for name, value in vars(model).items() if name == "forward"}
    with ExitStack() as stack:
        stack.enter_context(random_states_kept())
        accelerated = cast(Accelerated, accelerator or stack.enter_context(_made(config, out)))
        if original is not None:
            original.to(accelerated.device)
        rank, world = accelerated.process_index, accelerated.num_processes
        train = Batches(train_data, "train_data", config.seed, rank, world)
        valid = None if validation is None else Batches(validation, "validation", config.seed, rank, world)
        folder = None if out is None else RunFolder(out, accelerated.is_main_process, accelerated.wait_for_everyone)
        before = folder.forms() if resume and folder is not None else None
        if config.compile == "auto" and resume and folder is not None:
            config = replace(config, compile=folder.compiled() if folder.compiled() is not None else "auto")
        called, compile, forms = _compiled(model, train, config, accelerated, stack, before)
        config = replace(config, compile=compile)
        groups = param_groups(model, config.lr, config.weight_decay, position_lr_scale=config.position_lr_scale)
        run = Steps(model, called, loss, original, config, optimizer(groups), schedules, accelerated, stack)
        try:
            return Loop(run, train, valid, folder, progress, forms).all(resume)
        finally:
            for name in ("forward", "_original_forward"):  # of mixed precision
                vars(model).pop(name, None)
            vars(model).update(own)
            for module, training in flags:
                module.training = training


def _compiled(
    model: nn.Module,
    train: Batches,
    config: FinetuneConfig,
    accelerator: Accelerated,
    stack: ExitStack,
    before: Mapping[str, str] | None,
) -> tuple[nn.Module, Compile, Mapping[str, str]]:
    """What is called in the steps, what of it runs compiled, and the form of each site that may; ``before``: those of the run
    that is resumed."""
    compile = "sites" if config.compile == "auto" and gains(model, train, config, accelerator) else config.compile
    if compile in (False, "auto"):
        return model, False, {}
    from ccrewrite.training.compiled import (
        compiled,
        with_compiled_sites,
    )  # Inductor: a second, which only those pay who compile

    if compile is True:
        return compiled(model, train, accelerator, stack), True, {}
    must = config.compile == "sites"
    forms = with_compiled_sites(model, train, accelerator, stack, must=must, forms=before)
    return model, "sites" if must or forms else False, forms


@contextmanager
def _made(config: FinetuneConfig, out: str | os.PathLike[str] | None) -> Generator[Accelerator]:
    """An accelerator for this run, and no trace of it afterwards but the process group."""
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs  # pyright: ignore[reportMissingTypeStubs]
        from accelerate.state import AcceleratorState  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise InputError("finetune needs accelerate; install it with: pip install 'ccrewrite[train]'") from error
    if "tensorboard" in config.trackers and importlib.util.find_spec("tensorboard") is None:
        raise InputError("trackers ask for tensorboard, which is not installed; install it with: pip install tensorboard")
    if config.trackers and out is None:
        raise InputError("trackers need out, the folder that they write to")
    used = bool(vars(AcceleratorState)["_shared_state"])
    freezes = bool(config.geometry_from or config.weights_from)
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            log_with=list(config.trackers) or None,
            project_dir=out,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=freezes)],
        )
    except ValueError as error:  # a precision that the device hasn't got, an unknown tracker
        raise InputError(f"accelerate: {error}") from error
    made = cast(Made, accelerator)
    try:
        if made.mixed_precision == "fp16" and made.scaler is None:  # accelerate would run it in float32
            raise InputError(f'mixed_precision="fp16" needs a GPU, found {made.device}; "bf16" runs on CPU')
        yield accelerator
    finally:
        for tracker in made.trackers:
            tracker.finish()
        made.free_memory()
        if not used:
            AcceleratorState._reset_state()  # pyright: ignore[reportPrivateUsage]
