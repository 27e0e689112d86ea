"""What training layers with learned geometry needs: parameter groups, losses, schedules, snapping. For any model."""

from ccrewrite.training.groups import param_groups
from ccrewrite.training.losses import repulsive_loss
from ccrewrite.training.positions import Snapped, clamp_positions, snap, snapped
from ccrewrite.training.schedules import WidthSchedule

__all__ = ["Snapped", "WidthSchedule", "clamp_positions", "param_groups", "repulsive_loss", "snap", "snapped"]
