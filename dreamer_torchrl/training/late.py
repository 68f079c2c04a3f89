"""What an update gives, on its way to the host: on a GPU it is read while the next update runs."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase

from dreamer_torchrl.data.replay import Replay, Where
from dreamer_torchrl.learners.learner import Learner


class Update:
    """One update of ``learner``, from a ``batch`` out of ``where``, which may still be under way on a GPU.

    Copies of what the host needs follow it in the GPU's queue. `finite` waits for these, and for nothing behind them.
    """

    def __init__(self, learner: Learner, replay: Replay, batch: TensorDictBase, where: Where):
        self.batch, self.where = batch, where
        self.metrics, latents = learner.update(batch)
        self.gradient_norms = learner.gradient_norms
        self.latents = replay.brought(latents)
        self._finite = self.metrics["finite"].to("cpu", non_blocking=True)
        self._copied: Any = None
        if learner.device.type != "cpu":
            self._copied = torch.Event(learner.device)
            self._copied.record()

    @property
    def finite(self) -> bool:
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._finite)
