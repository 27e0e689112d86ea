"""What training layers with learned geometry needs: parameter groups, losses, schedules, distillation, snapping. For any model
and any training loop; ``ccrewrite.finetune`` is a loop that uses them."""

from ccrewrite.families.cc.sampling import nyquist_penalty
from ccrewrite.training.distillation import Distillation
from ccrewrite.training.groups import param_groups
from ccrewrite.training.losses import repulsive_loss
from ccrewrite.training.observe import Movement, Recorder
from ccrewrite.training.positions import Snapped, clamp_positions, snap, snapped
from ccrewrite.training.schedules import FreezeSchedule, WidthSchedule
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
    "repulsive_loss",
    "snap",
    "snapped",
]
