"""What training layers with learned geometry needs: parameter groups, losses, schedules, distillation, snapping. For any model
and any training loop; ``ccrewrite.finetune`` is a loop that uses them.

Names are imported when they are first used: those of one family's layers alone come from ``ccrewrite.nn``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ccrewrite.ir.lazy import lazy_names

if TYPE_CHECKING:
    from ccrewrite.nn import WidthSchedule, nyquist_penalty, repulsive_loss
    from ccrewrite.training.distillation import Distillation
    from ccrewrite.training.groups import param_groups
    from ccrewrite.training.lora import register_lora
    from ccrewrite.training.observe import Movement, Recorder
    from ccrewrite.training.positions import Snapped, clamp_positions, snap, snapped
    from ccrewrite.training.schedules import FreezeSchedule
    from ccrewrite.training.sharded import gathered

__all__ = [
    "Distillation",
    "FreezeSchedule",
    "Movement",
    "Recorder",
    "Snapped",
    "WidthSchedule",
    "clamp_positions",
    "gathered",
    "nyquist_penalty",
    "param_groups",
    "register_lora",
    "repulsive_loss",
    "snap",
    "snapped",
]

_HOME = {
    "Distillation": "training.distillation",
    "FreezeSchedule": "training.schedules",
    "Movement": "training.observe",
    "Recorder": "training.observe",
    "Snapped": "training.positions",
    "WidthSchedule": "nn",
    "clamp_positions": "training.positions",
    "gathered": "training.sharded",
    "nyquist_penalty": "nn",
    "param_groups": "training.groups",
    "register_lora": "training.lora",
    "repulsive_loss": "nn",
    "snap": "training.positions",
    "snapped": "training.positions",
}
"""Name -> the module of ``ccrewrite`` that has it."""

__getattr__, __dir__ = lazy_names(__name__, _HOME)
