"""Steps in a GPU's memory, found by indices on the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.data import LazyTensorStorage

from dreamer_torchrl.keys import STREAM


class DeviceStorage(LazyTensorStorage):
    """A `LazyTensorStorage` on ``memory``, a device that is not the CPU, for which nothing ever waits.

    Of TorchRL's own on a GPU the writer and the samplers are there as well: each write and each draw would read
    indices back. Here what they need stays on the host: the ``streams`` of the slots, indices and generations.
    """

    def __init__(self, max_size: int, memory: torch.device):
        super().__init__(max_size, device="auto")  # that of the steps, which `set` brings there
        self.memory = memory
        self.streams = torch.zeros(max_size, dtype=torch.int32)  # of the step in each slot

    def set(self, cursor: Any, data: TensorDictBase, *, set_cursor: bool = True) -> None:
        """Write ``data`` ``[M]`` into slots ``[M]`` that follow each other, as `RoundRobinWriter` gives them."""
        first = int(cursor[0])
        self.streams[cursor] = data[STREAM].reshape(-1).cpu()
        moved = data.apply(self.sent, device=self.memory)
        before_end = min(len(moved), self.max_size - first)
        super().set(slice(first, first + before_end), moved[:before_end], set_cursor=set_cursor)
        if rest := len(moved) - before_end:
            super().set(slice(0, rest), moved[before_end:], set_cursor=set_cursor)
        self.device = torch.device("cpu")  # where the writer is to keep generations, and where indices come from

    def get(self, index: Any) -> TensorDictBase:
        return super().get(self.sent(index) if isinstance(index, Tensor) else index)

    def overwrite(self, index: Tensor, rows: Tensor, patch: Mapping[NestedKey, Tensor]) -> None:
        """Put some ``rows`` ``[M]`` of ``patch``, which is on the device, into the slots ``index`` ``[M]``."""
        index, rows, stored = self.sent(index), self.sent(rows), super().get(slice(None))
        for key, value in patch.items():
            stored.get(key)[index] = value[rows]

    def sent(self, value: Tensor) -> Tensor:
        """A tensor on the device; the host goes on while a copy is under way."""
        if value.device.type == "cpu" and self.memory.type == "cuda":
            value = value.pin_memory()
        return value.to(self.memory, non_blocking=True)
