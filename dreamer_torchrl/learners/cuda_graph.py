"""A whole update as one CUDA graph: captured once, then launched as one, with new steps in the same memory."""

import copy
import gc
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

WARM_UP = 3  # updates before the capture, in which libraries choose their kernels and networks are compiled

Output = TypeVar("Output")


class Outcome(NamedTuple):
    """What an update gives: metrics of one number each, latents ``[B, T]``, the norm of each gradient ``[P]``."""

    metrics: TensorDict
    latents: TensorDict
    gradient_norms: Tensor


class CudaGraphs:
    """What a `CapturedUpdate` needs of the current GPU; the tests have one for the CPU, which replays a list.

    All captures share one stream: autograd runs a node where it was made, and a capture may not wait for another one.
    """

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()

    def record(self, body: Callable[[], Output], generator: torch.Generator) -> tuple[Callable[[], None], Output]:
        """Warm ``body`` up and capture it; gives what replays it, and the outputs that each replay writes anew."""
        gc.collect()  # what waits in a cycle may hold nodes of another stream
        stream = self.stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                body()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(generator)
        # Other threads, such as the one that writes checkpoints, may go on with their own work meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            outputs = body()
        return graph.replay, outputs

    def staging(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)  # the host goes on while the GPU copies

    def event(self) -> torch.cuda.Event:
        return torch.cuda.Event()


class StaticBatch:
    """Where a graph finds its batch: tensors that stay where they are, of the form of the first batch."""

    def __init__(self, batch: TensorDictBase, device: torch.device, graphs: CudaGraphs):
        self.steps = batch.clone().to(device)
        on_host = [(key, value) for key, value in batch.items(True, True) if value.device.type == "cpu"]
        self.staging = {key: graphs.staging(value) for key, value in on_host}
        self.copied = graphs.event()

    def fill(self, batch: TensorDictBase) -> None:
        """Copy a batch here without waiting for the copy: the caller may change the batch at once."""
        if self.staging:
            self.copied.synchronize()  # the last copy may still read the staging memory
        for key, target in self.steps.items(True, True):
            value = batch.get(key)
            if value.device.type == "cpu":
                value = self.staging[key].copy_(value)
            target.copy_(value, non_blocking=True)
        self.copied.record()


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
