"""How CUDA graphs are captured, and the memory in which they find what they work on."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch
from tensordict import TensorDictBase
from torch import Tensor

WARM_UP = 3  # runs before the capture, in which libraries choose their kernels and networks are compiled

Output = TypeVar("Output")


class CudaGraphs:
    """What a capture needs of the current GPU; the tests have one for the CPU, which replays a list.

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
        """Copy a batch, or some of its entries, without waiting for the copy.

        The caller may change it at once, but for what is pinned, which is not copied to the staging memory first.
        """
        if self.staging:
            self.copied.synchronize()  # the last copy may still read the staging memory
        for key, value in batch.items(True, True):
            target = self.steps.get(key)
            if value.device.type == "cpu" and not value.is_pinned():
                value = self.staging[key].copy_(value)
            target.copy_(value, non_blocking=True)
        self.copied.record()
