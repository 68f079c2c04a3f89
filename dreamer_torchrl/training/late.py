"""How an update ended, on its way to the host: on a GPU it is read while the next update runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase

from dreamer_torchrl.data.replay import Replay, Where
from dreamer_torchrl.learners.learner import Learner

MOST_SKIPPED = 5  # consecutive non-finite updates after which training returns to a checkpoint


class Diverged(RuntimeError):
    """Too many consecutive updates are not finite; the message names the term and the file of the batch."""

    def __init__(self, fault: str, batch: TensorDictBase, folder: Path, updates: int):
        path = folder / f"batch-{updates:09d}.pt"
        folder.mkdir(exist_ok=True)
        torch.save(batch.cpu().to_dict(), path)
        told = f"{MOST_SKIPPED} updates in a row were not finite ({fault}). The last batch is in {path}."
        remedy = "A new run with a smaller learner.learning_rate may help;"
        super().__init__(f"{told} {remedy} `python -m dreamer_torchrl.doctor --env ...` checks the environment.")


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
