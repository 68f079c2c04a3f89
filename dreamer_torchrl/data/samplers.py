"""Samplers of sequences from several streams whose records share one ring, for any TorchRL replay buffer.

TorchRL's `SliceSampler` indexes interleaved streams anew after each write; here a draw costs the same at any size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchrl.data.replay_buffers import Sampler, Storage

from dreamer_torchrl.data.device_storage import DeviceStorage
from dreamer_torchrl.keys import STREAM


class StreamIndex:
    """Which of ``capacity`` slots hold the records of each stream, from number ``first`` ``[streams]`` on, in order."""

    def __init__(self, slice_len: int, capacity: int, first: Tensor):
        self.slice_len, self.capacity = slice_len, capacity
        self.first, self.end = first.clone(), first.clone()  # numbers of the records that are there  [streams]
        self.stream = torch.full((capacity,), -1, dtype=torch.int32)  # of each slot's record
        self.number = torch.zeros(capacity, dtype=torch.long)  # of each slot's record, within its stream
        self._slots = torch.zeros(len(first), 64, dtype=torch.int32)  # slot of record n of a stream in column n % width
        self.newest = -1  # the slot written last

    def write(self, slots: Tensor, streams: Tensor) -> None:
        """Note that ``slots`` ``[M]``, which follow each other, now hold the next records of these ``streams``."""
        slots, streams = slots.numpy(), streams.numpy()  # for a few records in a fifth of torch's time
        replaced = self.stream.numpy()[slots]
        np.add.at(self.first.numpy(), replaced[replaced >= 0], 1)
        order = streams.argsort(kind="stable")
        sorted_streams = streams[order]
        earlier = np.empty_like(streams)  # records of the same stream before this one in this call
        earlier[order] = np.arange(len(streams)) - sorted_streams.searchsorted(sorted_streams)
        numbers = self.end.numpy()[streams] + earlier
        np.add.at(self.end.numpy(), streams, 1)
        while (self.end.numpy() - self.first.numpy()).max() > self._slots.shape[1]:
            self._widen()
        self._slots.numpy()[streams, numbers % self._slots.shape[1]] = slots
        self.stream.numpy()[slots], self.number.numpy()[slots] = streams, numbers
        self.newest = int(slots[-1])

    def _widen(self) -> None:
        width = self._slots.shape[1]
        numbers = self.first.unsqueeze(1) + torch.arange(width)  # [streams, width]
        wider = torch.zeros(len(self.first), 2 * width, dtype=torch.int32)
        wider.scatter_(1, numbers % (2 * width), self._slots.gather(1, numbers % width))
        self._slots = wider

    @property
    def slices(self) -> Tensor:
        """How many slices each stream holds, ``[streams]``."""
        return (self.end - self.first - self.slice_len + 1).clamp(min=0)

    def slots(self, stream: Tensor, start: Tensor) -> Tensor:
        """Slots ``[B, slice_len]`` of the slices that begin at the records ``start`` ``[B]`` of ``stream`` ``[B]``."""
        number = start.unsqueeze(1) + torch.arange(self.slice_len)  # [B, L]
        return self._slots[stream.unsqueeze(1), number % self._slots.shape[1]].long()


class StreamSampler(Sampler):
    """Slices of one stream each, all equally likely.

    The records of all streams lie in one ring in order of arrival; streams may advance at different rates. Slices may
    cross episodes. Under ``stream`` a record has the number of its stream, 0 to ``streams - 1``.

    Example:
        >>> from tensordict import TensorDict
        >>> from torchrl.data import LazyTensorStorage, ReplayBuffer
        >>> buffer = ReplayBuffer(storage=LazyTensorStorage(10), sampler=StreamSampler(3, streams=2), batch_size=6)
        >>> steps = TensorDict({"stream": torch.tensor([0, 1, 1, 0, 0]), "time": torch.tensor([0, 0, 1, 1, 2])}, [5])
        >>> _ = buffer.extend(steps)
        >>> buffer.sample()["time"]
        tensor([0, 1, 2, 0, 1, 2])
    """

    def __init__(self, slice_len: int, streams: int):
        self.slice_len, self.streams = slice_len, streams
        self.parts: Mapping[str, StreamSampler] = {}  # samplers of the same records that this one draws by
        self.index: StreamIndex | None = None
        self._first = torch.zeros(streams, dtype=torch.long)

    def attach(self, index: StreamIndex) -> None:
        self.index = index
        for part in self.parts.values():
            part.attach(index)

    def note_written(self, slots: Tensor) -> None:
        for part in self.parts.values():
            part.note_written(slots)

    def draw(self, count: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Streams ``[count]`` and starts ``[count]`` of slices that are there."""
        slices = self.index.slices
        before = slices.cumsum(0) - slices
        number = torch.randint(int(slices.sum()), (count,), generator=generator)
        stream = torch.searchsorted(before + slices, number, right=True)
        return stream, self.index.first[stream] + number - before[stream]

    def mark_update(self, index: int | Tensor, *, storage: Storage | None = None) -> None:
        slots = torch.as_tensor(index, dtype=torch.long, device="cpu").reshape(-1)
        if self.index is None:
            self.attach(StreamIndex(self.slice_len, storage.max_size, self._first))
        column = storage.streams if isinstance(storage, DeviceStorage) else storage[:].get(STREAM)
        streams = column[slots.to(column.device)].reshape(-1).to("cpu", torch.long)
        if not (found := set(streams.tolist())) <= set(range(self.streams)):
            raise ValueError(f"Streams are 0 to {self.streams - 1}, these steps are of {sorted(found)}.")
        self.index.write(slots, streams)
        self.note_written(slots)

    def sample(self, storage: Storage, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
        """Slots ``[batch_size]`` of as many slices as that gives."""
        if not self.can_sample(storage, batch_size):
            told = f"The replay holds {len(storage)} steps, none of its streams the {self.slice_len} that a sequence"
            raise RuntimeError(f"{told} needs: collect more first.")
        return self.index.slots(*self.draw(batch_size // self.slice_len, self._rng)).flatten(), {}

    def can_sample(self, storage: Storage, batch_size: int) -> bool:
        return self.index is not None and bool(self.index.slices.any())

    def update_priority(self, index: int | Tensor, priority: float | Tensor, *, storage: Storage | None = None) -> None:
        for part in self.parts.values():
            part.update_priority(index, priority, storage=storage)

    def state_dict(self) -> dict[str, Any]:
        first = self._first if self.index is None else self.index.first.clone()
        return {"first": first} | {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken: call it while empty, write the records again, and call it again."""
        self._first = state_dict["first"]
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])

    def _empty(self) -> None:
        self.index, self._first = None, torch.zeros_like(self._first)
        for part in self.parts.values():
            part._empty()

    def dumps(self, path: str | Path) -> None:
        Path(path).mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), Path(path) / "sampler.pt")

    def loads(self, path: str | Path) -> None:
        self.load_state_dict(torch.load(Path(path) / "sampler.pt"))


class OnlineSampler(StreamSampler):
    """Each new stretch of ``slice_len`` records of a stream once, the oldest first; then another sampler's slices."""

    def __init__(self, slice_len: int, streams: int, then: StreamSampler | None = None):
        super().__init__(slice_len, streams)
        self.then = then or StreamSampler(slice_len, streams)
        self.parts = {"then": self.then}
        self.fresh: deque[tuple[int, int]] = deque()  # (stream, start) of stretches not drawn yet

    def note_written(self, slots: Tensor) -> None:
        super().note_written(slots)
        for stream, number in zip(self.index.stream[slots].tolist(), self.index.number[slots].tolist(), strict=True):
            if (number + 1) % self.slice_len == 0:
                self.fresh.append((stream, number + 1 - self.slice_len))
        while self.fresh and not self._is_there(*self.fresh[0]):
            self.fresh.popleft()

    def draw(self, count: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        new: list[tuple[int, int]] = []
        while self.fresh and len(new) < count:
            stretch = self.fresh.popleft()
            if self._is_there(*stretch):
                new.append(stretch)
        stream, start = torch.tensor(new, dtype=torch.long).reshape(-1, 2).unbind(1)
        if len(new) == count:
            return stream, start
        others = self.then.draw(count - len(new), generator)
        return torch.cat([stream, others[0]]), torch.cat([start, others[1]])

    def _is_there(self, stream: int, start: int) -> bool:
        return start >= int(self.index.first[stream])

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"fresh": torch.tensor(self.fresh, dtype=torch.long).reshape(-1, 2)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.fresh = deque((stream, start) for stream, start in state_dict["fresh"].tolist())

    def _empty(self) -> None:
        super()._empty()
        self.fresh.clear()


class RecencySampler(StreamSampler):
    """Slices by the age of their last record: a weight of ``1 / (1 + age) ** exponent``, for ``capacity`` ages.

    While there are fewer slices than that, ages are scaled down to those that are there.
    """

    def __init__(self, slice_len: int, streams: int, exponent: float = 1.0, capacity: int | None = None):
        super().__init__(slice_len, streams)
        self.exponent, self.capacity = exponent, capacity

    def attach(self, index: StreamIndex) -> None:
        super().attach(index)
        ages = torch.arange(1, (self.capacity or index.capacity) + 1, dtype=torch.float64)
        self._cumulative = ages.pow_(-self.exponent).cumsum(0)  # [ages]

    def draw(self, count: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        index, ages = self.index, len(self._cumulative)
        slices = int(index.slices.sum())
        stream, start = super().draw(count, generator)  # stays where a stream that lags has no slice of that age
        uniform = torch.rand(count, dtype=torch.float64, generator=generator) * self._cumulative[-1]
        age = torch.searchsorted(self._cumulative, uniform, right=True).clamp(max=ages - 1)  # [count]
        if slices < ages:
            age = age * slices // ages
        slot = (index.newest - age) % index.capacity
        aged_stream = index.stream[slot].long()
        aged_start = index.number[slot] - self.slice_len + 1
        there = (aged_stream >= 0) & (aged_start >= index.first[aged_stream.clamp(min=0)])
        return torch.where(there, aged_stream, stream), torch.where(there, aged_start, start)


class MixedSampler(StreamSampler):
    """Each slice from one of several samplers of the same streams and slice length, drawn by their fractions."""

    def __init__(self, samplers: Mapping[str, StreamSampler], fractions: Mapping[str, float]):
        one = next(iter(samplers.values()))
        super().__init__(one.slice_len, one.streams)
        if samplers.keys() != fractions.keys() or abs(sum(fractions.values()) - 1) > 1e-6:
            raise ValueError(f"Fractions of {', '.join(samplers)} must be 1 in sum, these are {dict(fractions)}.")
        self.parts = samplers
        self._fractions = torch.tensor([fractions[name] for name in samplers])

    def draw(self, count: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        chosen = torch.multinomial(self._fractions, count, replacement=True, generator=generator)
        drawn = torch.zeros(2, count, dtype=torch.long)
        for number, sampler in enumerate(self.parts.values()):
            rows = (chosen == number).nonzero().flatten()
            if len(rows):
                drawn[:, rows] = torch.stack(sampler.draw(len(rows), generator))
        return drawn[0], drawn[1]


def last_of_each(values: Tensor) -> Tensor:
    """Where each of the values ``[N]`` stands for the last time: 1 and 2 in ``[7, 5, 7]``."""
    distinct, inverse = values.unique(return_inverse=True)
    order = torch.arange(len(values), device=values.device)
    return torch.zeros_like(distinct).scatter_reduce_(0, inverse, order, "amax")
