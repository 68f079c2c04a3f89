"""Our learner in TorchRL's `Trainer`."""

from collections.abc import Callable
from typing import Any

from tensordict import TensorDict, TensorDictBase
from torchrl.trainers import OptimizationStepper, Trainer

from dreamer_torchrl.learners.learner import Learner


class LearnerStepper(OptimizationStepper):
    """An optimization step of TorchRL's `Trainer` that is one update of a `Learner`, on batches ``[B, context + T]``.

    The trainer gets ``loss_module=learner.loss`` and no optimizer. ``refresh`` is called with each batch and its new
    latents ``[B, T]``, to write them back to the replay.
    """

    def __init__(self, learner: Learner, refresh: Callable[[TensorDictBase, TensorDict], None] | None = None):
        self.learner, self.refresh = learner, refresh

    def step(self, trainer: Trainer, sub_batch: TensorDictBase) -> TensorDictBase:
        metrics, latents = self.learner.update(sub_batch)
        if self.refresh is not None:
            self.refresh(sub_batch, latents)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.learner.load_state_dict(state_dict)
