"""The target critic: a moving average of the critic."""

from __future__ import annotations

import torch
from torch import Tensor
from torchrl.objectives import SoftUpdate

from dreamer_torchrl.objectives.value import ValueLoss


class SlowUpdate(SoftUpdate):
    """TorchRL's `SoftUpdate` of a target critic in one operation, which can be masked without reading the mask back.

    Args:
        value_loss: on its device, and not moved from there afterwards.
        tau: share of the way towards the critic in each step.
    """

    def __init__(self, value_loss: ValueLoss, tau: float):
        super().__init__(value_loss, tau=tau)
        slow, fast = value_loss.target_value_params.data, value_loss.value_params
        self.slow = {".".join(key): value for key, value in slow.items(True, True)}  # looked up once: it takes long
        self.fast = [fast.get(key) for key in slow.keys(True, True)]  # parameters: their data may be exchanged
        self.tau = tau

    @torch.no_grad()
    def step(self, where: Tensor | None = None) -> None:
        """Move the target critic, unless ``where`` is False."""
        weight = self.tau if where is None else [where * self.tau] * len(self.fast)
        torch._foreach_lerp_(list(self.slow.values()), self.fast, weight)
