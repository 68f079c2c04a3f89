"""Prioritized replay of sequences, by the formulas of the official DreamerV3 code.

TorchRL's `PrioritizedSliceSampler` needs a C++ extension that some versions of torch lack, and whole trajectories.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchrl.data.replay_buffers import Storage

from dreamer_torchrl.data.samplers import StreamIndex, StreamSampler, last_of_each


class PrioritizedSampler(StreamSampler):
    """Slices by the priorities of their records.

    The weight of a slice is the mean of its records' priorities to the power of ``exponent``, mixed with a share
    ``maxfrac`` of their maximum. With ``zero_on_sample`` drawn records have priority 0 until they are updated.
    """

    def __init__(
        self,
        slice_len: int,
        streams: int,
        exponent: float = 0.8,
        initial: float = torch.inf,
        zero_on_sample: bool = True,
        maxfrac: float = 0.5,
    ):
        super().__init__(slice_len, streams)
        self.exponent, self.initial, self.zero_on_sample, self.maxfrac = exponent, initial, zero_on_sample, maxfrac
        # From slots to leaves: after a restart, records have other slots, and their slices the old leaves.
        self._shift = 0

    def attach(self, index: StreamIndex) -> None:
        super().attach(index)
        self.priority = torch.full((index.capacity,), self.initial)  # [slots]
        self.tree = SumTree(index.capacity)  # each slice at its first record's slot, but for `_shift`

    def note_written(self, slots: Tensor) -> None:
        index = self.index
        self.priority[slots] = self.initial
        self.tree.remove((slots + self._shift) % index.capacity)
        self._weigh(index.stream[slots].long(), index.number[slots] - self.slice_len + 1)

    def draw(self, count: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        if self.zero_on_sample and count > 1:  # what one draw sets to zero counts in the next
            stream, start = zip(*(self.draw(1, generator) for _ in range(count)), strict=True)
            return torch.cat(stream), torch.cat(start)
        slot = (self.tree.sample(count, generator) - self._shift) % self.index.capacity
        stream, start = self.index.stream[slot].long(), self.index.number[slot]
        if self.zero_on_sample:
            self.update_priority(self.index.slots(stream, start), 0.0)
        return stream, start

    def update_priority(self, index: int | Tensor, priority: float | Tensor, *, storage: Storage | None = None) -> None:
        """Set the priorities of the records in the slots ``index``, and the weights of all slices that hold them."""
        slots = torch.as_tensor(index, device="cpu").reshape(-1)
        priority = torch.as_tensor(priority, device="cpu").float().reshape(-1).expand(len(slots))
        last = last_of_each(slots)
        self.priority[slots[last]] = priority[last]
        start = self.index.number[slots].unsqueeze(1) - torch.arange(self.slice_len)  # [M, L]
        stream = self.index.stream[slots].long().unsqueeze(1).expand_as(start)
        once = ((stream << 40) + start.clamp(min=0)).unique()
        self._weigh(once >> 40, once & ((1 << 40) - 1))

    def _weigh(self, stream: Tensor, start: Tensor) -> None:
        """Compute the weights of slices anew; those that are not whole have none."""
        there = (start >= self.index.first[stream]) & (start + self.slice_len <= self.index.end[stream])
        slots = self.index.slots(stream[there], start[there])  # [M, L]
        priority = self.priority[slots].double().pow(self.exponent)
        weight = priority.mean(1)
        if self.maxfrac:
            weight = self.maxfrac * priority.amax(1) + (1 - self.maxfrac) * weight
        self.tree.set((slots[:, 0] + self._shift) % self.index.capacity, weight)

    def _slots_in_order(self) -> Tensor:
        index = self.index
        return (index.newest - torch.arange(int((index.end - index.first).sum())).flip(0)) % index.capacity

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self.index is None:
            return state
        slots = self._slots_in_order()
        return state | {"priority": self.priority[slots], "shift": (int(slots[0]) + self._shift) % self.index.capacity}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._shift = state_dict.get("shift", 0)
        if self.index is not None:
            slots = self._slots_in_order()
            self.priority[slots] = state_dict["priority"]
            for some in slots.split(65536):
                self._weigh(self.index.stream[some].long(), self.index.number[some])


class SumTree:
    """Draw leaves by their weights, in logarithmic time; a node has ``branching`` children.

    Infinite weights are equally likely and come first; if all are zero, so are children that hold leaves.
    """

    def __init__(self, leaves: int, branching: int = 16):
        self.branching = branching
        self.levels: list[Tensor] = []  # sums of weights, and how many leaves they are of  [2, nodes], leaves first
        while not self.levels or leaves > 1:
            leaves = -(-leaves // branching)
            self.levels.append(torch.zeros(2, leaves * branching, dtype=torch.float64))

    def set(self, leaf: Tensor, weight: Tensor) -> None:
        self.levels[0][0, leaf], self.levels[0][1, leaf] = weight.double(), 1.0
        self._sum_above(leaf)

    def remove(self, leaf: Tensor) -> None:
        """Let these leaves never be drawn, until they are set."""
        self.levels[0][:, leaf] = 0.0
        self._sum_above(leaf)

    def _sum_above(self, node: Tensor) -> None:
        for below, above in zip(self.levels, self.levels[1:], strict=False):
            node = (node // self.branching).unique()
            above[:, node] = below.unflatten(1, (-1, self.branching))[:, node].sum(-1)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        node = torch.zeros(count, dtype=torch.long)
        for level in reversed(self.levels):
            weight, leaves = level.unflatten(1, (-1, self.branching))[:, node]  # [count, branching]
            total = weight.sum(1, keepdim=True)
            weight = torch.where(total.isinf(), weight.isinf().double(), torch.where(total > 0, weight, leaves.sign()))
            sums = weight.cumsum(1)
            uniform = torch.rand(count, 1, dtype=torch.float64, generator=generator)
            node = node * self.branching + (sums <= uniform * sums[:, -1:]).sum(1).clamp(max=self.branching - 1)
        return node
