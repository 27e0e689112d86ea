"""What ``finetune`` can be told, in one place; a TOML file's ``[finetune]`` table has the same names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, cast

from ccrewrite.errors import InputError, likely

SCHEDULES = ("cosine", "constant")
OUTPUTS = ("scores", "values")
PRECISIONS = ("no", "fp16", "bf16")
Compile = bool | Literal["sites"]
"""What of a model runs compiled: nothing, its rewritten layers, or all of it."""


@dataclass(frozen=True)
class FinetuneConfig:
    """Options of ``finetune``. Raises ``InputError`` for a value out of its range.

    >>> FinetuneConfig(epochs=3, weights_from=100).lr
    0.001
    >>> FinetuneConfig.from_mapping({"epoch": 3})
    Traceback (most recent call last):
    ...
    ccrewrite.errors.InputError: FinetuneConfig has no option 'epoch'; its options are ... Did you mean 'epochs'?
    """

    epochs: int = 10
    """Passes over the training data."""
    lr: float = 1e-3
    """Learning rate at its highest, of weights and, unless a family says otherwise, of geometry."""
    weight_decay: float = 0.01
    """Of weights; vectors and geometry are never decayed (``param_groups``)."""
    position_lr_scale: float = 5.0
    """Learning rate of the group "positions" (positions and widths of DCLS layers), over ``lr``."""
    schedule: str = "cosine"
    """Of the learning rate after the warm-up: "cosine" (down to 0 at the last step) or "constant"."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises from 0, linearly."""
    accumulate: int = 1
    """Batches whose gradients make one step, averaged."""
    clip_norm: float | None = None
    """Largest 2-norm of the gradient of all parameters together; None: no limit."""
    mixed_precision: str | None = None
    """ "no", "fp16" or "bf16"; None: what `accelerate launch` says, else "no"."""
    compile: Compile | Literal["auto"] = "auto"
    """What runs compiled (``ccrewrite.lower``); needs a C++ compiler, on a GPU triton. Not under FSDP. False: nothing. "sites":
    the rewritten layers alone, those that are faster so, at the sizes of the first batch; some seconds for each kind of layer.
    True: the whole model, after minutes of compiling, and for each shape of a batch again. "auto": "sites" where the run is
    long enough to gain by it, compiling works, and some steps that are timed both ways are faster so, else nothing;
    ``History.compile`` says which. A resumed run takes what it took, layer by layer."""
    repulsion: float = 0.0
    """Weight of ``repulsive_loss(model) ** 2``."""
    smoothness: float = 0.0
    """Weight of ``nyquist_penalty(model)``."""
    distillation: float = 0.0
    """Weight of the difference from the original's outputs (``Distillation``)."""
    feature_distillation: float = 0.0
    """Weight of the difference from the original's ``features``."""
    features: tuple[str, ...] = ()
    """Modules whose outputs ``feature_distillation`` compares."""
    outputs: str = "scores"
    """What the model's outputs are to the distillation: class "scores", or "values"."""
    temperature: float = 2.0
    """Of the distillation of scores."""
    class_axis: int = 1
    """The axis of the classes in scores; -1 for transformers."""
    geometry_from: float = 0
    """The step from which geometry trains; inf: never (``FreezeSchedule``)."""
    weights_from: float = 0
    """The step from which everything else trains; inf: never."""
    patience: int | None = None
    """Stop after so many epochs in a row without a better validation loss, and end with the best weights; None: never."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; None: one at the end of each epoch. There is always one then."""
    log_every: int = 1
    """Steps between reading losses from the device, which waits for it, checking them, and writing them."""
    trackers: tuple[str, ...] = ()
    """Where losses go besides ``log.csv``: names that accelerate knows, "tensorboard" for one."""
    seed: int = 0
    """Of the order of the data and all random draws."""

    def __post_init__(self) -> None:
        for name in ("features", "trackers"):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in cast("list[object]", value)):
                raise InputError(f"{name} must be a list of names, found {value!r}")
            object.__setattr__(self, name, tuple(cast("list[str]", value)))
        one_of = {"schedule": SCHEDULES, "outputs": OUTPUTS, "mixed_precision": (None, *PRECISIONS)}
        for name, allowed in one_of.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} must be one of {', '.join(map(repr, allowed))}; found {getattr(self, name)!r}")
        for name in ("epochs", "accumulate", "log_every", "patience", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InputError(f"{name} must be an integer of at least 1, found {value!r}")
        if not isinstance(self.seed, int) or self.seed < 0:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"seed must be an integer of at least 0, found {self.seed!r}")
        weights = ("weight_decay", "repulsion", "smoothness", "distillation", "feature_distillation")
        for name in ("lr", "position_lr_scale", "temperature", "clip_norm", "warmup", *weights):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and 0 <= value < math.inf):
                raise InputError(f"{name} must be a finite number of at least 0, found {value!r}")
        if not isinstance(self.compile, bool) and self.compile not in ("sites", "auto"):
            raise InputError(f'compile must be true, false, "sites" or "auto"; found {self.compile!r}')
        if self.warmup > 1:
            raise InputError(f"warmup is a share of the steps, at most 1; found {self.warmup}")
        if self.feature_distillation and not self.features:
            raise InputError("feature_distillation needs features, the names of the modules to compare")

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> Self:
        """Of a TOML file's table. Raises ``InputError`` for an unknown option."""
        known = sorted(f.name for f in fields(cls))
        for name in options:
            if name not in known:
                said = f"FinetuneConfig has no option {name!r}; its options are {', '.join(known)}"
                raise InputError(said + likely(name, known))
        return cls(**options)

    def rate(self, step: int, total: int) -> float:
        """Learning rate of step ``step`` of ``total``, over the highest.

        >>> config = FinetuneConfig(warmup=0.2)
        >>> [round(config.rate(step, 10), 2) for step in range(10)]
        [0.5, 1.0, 1.0, 0.96, 0.85, 0.69, 0.5, 0.31, 0.15, 0.04]
        """
        rising = round(self.warmup * total)
        if step < rising:
            return (step + 1) / rising
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / (total - rising)))
