"""The three losses of DreamerV3."""

from dreamer_torchrl.objectives.actor_loss import ActorLoss
from dreamer_torchrl.objectives.value import ValueLoss
from dreamer_torchrl.objectives.world_model import WorldModelLoss

__all__ = ["ActorLoss", "ValueLoss", "WorldModelLoss"]
