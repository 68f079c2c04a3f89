"""A whole update as one CUDA graph: captured once, then launched as one, with new steps in the same memory."""

import copy
from functools import partial
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dreamer_torchrl.agents.capturing import CudaGraphs, StaticBatch


class Outcome(NamedTuple):
    """What an update gives: metrics of one number each, latents ``[B, T]``, the norm of each gradient ``[P]``."""

    metrics: TensorDict
    latents: TensorDict
    gradient_norms: Tensor


class CapturedUpdate:
    """`Learner.step` for batches of one form, as one graph.

    What the graph fixes: the form of the batch, the numbers of the hyperparameters and of the optimizer's options (not
    those that are tensors), and the memory of all that is learned; `load_state_dict` copies into that. The capture,
    with an example batch, changes nothing of the state. The learner may be anything with a `Learner`'s ``step``,
    ``zero_grad``, ``state_dict``, ``generator`` and ``optimizer``; its step reads no value back, copies nothing from
    the host, and works in place.
    """

    def __init__(self, learner: Any, batch: TensorDictBase, graphs: CudaGraphs):
        self.form = self._form(learner, batch)  # the learner is not kept: it keeps this
        self.batch = StaticBatch(batch, learner.generator.device, graphs)
        self.names: list[str] = []
        before = copy.deepcopy(learner.state_dict())
        try:
            self.replay, self.outputs = graphs.record(partial(self._step, learner), learner.generator)
        finally:
            learner.load_state_dict(before)
            learner.zero_grad()  # a step that failed left some

    def fits(self, learner: Any, batch: TensorDictBase) -> bool:
        return self._form(learner, batch) == self.form

    def __call__(self, batch: TensorDictBase) -> Outcome:
        """Update from a batch on the host or the device; nothing waits. What comes back stays as it is."""
        self.batch.fill(batch)
        self.replay()
        numbers, latents, norms = (output.clone() for output in self.outputs)  # the next replay overwrites its own
        return Outcome(TensorDict(dict(zip(self.names, numbers.unbind(), strict=True))), latents, norms)

    def _step(self, learner: Any) -> tuple[Tensor, TensorDict, Tensor]:
        """The body of the graph; metrics leave it as one tensor ``[M]``, for one copy instead of many."""
        metrics, latents, norms = learner.step(self.batch.steps)
        self.names = list(metrics.keys())
        return torch.stack(list(metrics.values())), latents, norms

    @staticmethod
    def _form(learner: Any, batch: TensorDictBase) -> tuple[Any, ...]:
        entries = {key: (value.shape, value.dtype, value.device.type) for key, value in batch.items(True, True)}
        fixed = [
            {name: value for name, value in group.items() if not (name == "params" or isinstance(value, Tensor))}
            for group in learner.optimizer.param_groups  # what is a tensor, such as lr, may change
        ]
        return entries, fixed
