"""Replay of streams: sequences of steps, newest first, whose latents are kept fresh."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, ReplayBuffer, SliceSampler
from torchrl.data.replay_buffers import Storage

from dreamer_torchrl.agent import Agent
from dreamer_torchrl.modules.spaces import Image, Space


class StreamSampler(SliceSampler):
    """Slices of a ``[time, environment]`` storage: each new stretch of a stream once, then uniform.

    TorchRL's `SliceSampler` looks for trajectories in the whole storage after each write. In a storage of endless
    streams any start is right that does not cross the write cursor, so that drawing costs the same whatever the fill.
    Slices may cross episodes: the world model resets itself where ``is_init`` is set. Nothing is marked in the data.

    Args:
        slice_len: steps per slice.
        capacity: time steps that the storage keeps.
        streams: environments in it.
        seed: of the draws.
    """

    def __init__(self, slice_len: int, capacity: int, streams: int, seed: int = 0):
        # The parent wants a key of trajectories, which is never looked up here, and None for the keys it would mark.
        super().__init__(slice_len=slice_len, traj_key="done", init_key=None, truncated_key=None)
        self.capacity, self.streams = capacity, streams
        self.generator = torch.Generator().manual_seed(seed)
        self.written = 0  # time steps ever written; a step's position in its stream never changes
        self.fresh: deque[tuple[int, int]] = deque()  # (position, environment) of stretches not drawn yet

    @property
    def oldest(self) -> int:
        """Position of the oldest step that is still there."""
        return max(0, self.written - self.capacity)

    def note_written(self, steps: int) -> None:
        """Note that ``steps`` more time steps were written."""
        stretches = range(self.written // self.slice_len, (self.written + steps) // self.slice_len)
        self.fresh.extend((k * self.slice_len, env) for k in stretches for env in range(self.streams))
        self.written += steps

    def sample(self, storage: Storage, batch_size: int) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
        """Indices ``(time, environment)`` of ``batch_size`` steps, and in the info their positions in the stream."""
        oldest = self.oldest
        choices = self.written - oldest - self.slice_len + 1
        if choices < 1:
            raise RuntimeError(
                f"The replay holds {self.written} time steps, a slice needs {self.slice_len}: collect more first."
            )
        slices = batch_size // self.slice_len
        start = oldest + torch.randint(choices, (slices,), generator=self.generator)  # [B]
        env = torch.randint(self.streams, (slices,), generator=self.generator)  # [B]
        for row in range(slices):
            while self.fresh and self.fresh[0][0] < oldest:
                self.fresh.popleft()
            if not self.fresh:
                break
            start[row], env[row] = self.fresh.popleft()
        position = (start.unsqueeze(1) + torch.arange(self.slice_len)).flatten()  # [B * L]
        return (position % self.capacity, env.repeat_interleave(self.slice_len)), {"position": position}


@dataclass(frozen=True)
class Where:
    """Where the trained steps of a batch came from: positions in their streams and environments, ``[B, T]`` each."""

    position: Tensor
    environment: Tensor


class Replay:
    """Store the steps of N streams, draw sequences, take their new latents back.

    States are kept as class indices of one byte each; the learner reads them so.

    Args:
        capacity: steps kept, of all streams together.
        streams: how many there are.
        batch: sequences per batch.
        length: trained steps per sequence.
        context: leading steps that only lend their latents.
        directory: where to keep the steps on disk; in memory if left out.
        seed: of the draws.

    Example:
        >>> from tensordict import TensorDict
        >>> replay = Replay(capacity=100, streams=2, batch=3, length=4)
        >>> state = torch.nn.functional.one_hot(torch.zeros(10, 2, 5, dtype=torch.long), 3).float()
        >>> replay.extend(TensorDict({"belief": torch.zeros(10, 2, 8), "state": state}, [10, 2]))
        >>> batch, where = replay.sample()
        >>> batch.shape, batch["state"].dtype
        (torch.Size([3, 5]), torch.uint8)
        >>> replay.refresh(where, TensorDict({"belief": torch.ones(3, 4, 8), "state": batch["state"][:, 1:]}, [3, 4]))
        12
    """

    def __init__(
        self,
        capacity: int,
        streams: int,
        batch: int = 16,
        length: int = 64,
        context: int = 1,
        directory: str | Path | None = None,
        seed: int = 0,
    ):
        slice_len = context + length
        if capacity // streams < slice_len:
            raise ValueError(
                f"A capacity of {capacity} steps for {streams} streams is shorter than one sequence of {slice_len}: "
                f"give at least {slice_len * streams}."
            )
        steps = capacity // streams * streams
        in_memory = directory is None
        storage = (
            LazyTensorStorage(steps, ndim=2) if in_memory else LazyMemmapStorage(steps, scratch_dir=directory, ndim=2)
        )
        self.streams, self.batch, self.context = streams, batch, context
        self.sampler = StreamSampler(slice_len, capacity // streams, streams, seed)
        # TorchRL takes the last dimension for time unless told otherwise.
        self.buffer = ReplayBuffer(storage=storage, sampler=self.sampler, batch_size=batch * slice_len, dim_extend=0)

    def __len__(self) -> int:
        return len(self.buffer)

    @property
    def ready(self) -> bool:
        """Whether a sequence fits into what was written."""
        return self.sampler.written >= self.sampler.slice_len

    def extend(self, steps: TensorDictBase) -> None:
        """Append steps ``[time, streams]``; their ``state`` is one-hot ``[..., S, K]`` or class indices."""
        if steps.ndim != 2 or steps.shape[1] != self.streams:
            raise ValueError(f"Steps must be [time, {self.streams}], these are {list(steps.shape)}.")
        state = steps["state"]
        if state.is_floating_point():
            steps = steps.copy().set("state", state.argmax(-1).to(torch.uint8))
        self.buffer.extend(steps)
        self.sampler.note_written(steps.shape[0])

    def sample(self) -> tuple[TensorDictBase, Where]:
        """A batch ``[B, context + T]`` and where its trained steps came from."""
        data, info = self.buffer.sample(return_info=True)
        rows = (self.batch, self.sampler.slice_len)
        trained = (slice(None), slice(self.context, None))
        position, environment = info["position"].reshape(rows), info["index"][1].reshape(rows)
        return data.reshape(rows), Where(position[trained], environment[trained])

    def refresh(self, where: Where, latents: TensorDictBase) -> int:
        """Put new latents ``[B, T]`` in the place of the old ones, where these are still there; count those that are.

        A batch may hold a step twice; which of its latents stays is then left open.
        """
        kept = where.position >= self.sampler.oldest  # [B, T]
        index = (where.position[kept] % self.sampler.capacity, where.environment[kept])
        stored = self.buffer.storage[:]
        for key in ("belief", "state"):
            stored[key][index] = latents[key][kept].to(stored[key].device)
        return int(kept.sum())


def bytes_per_step(agent: Agent) -> int:
    """What one stored step of an agent's environment takes.

    Example:
        >>> from dreamer_torchrl.agent import build_agent
        >>> from torchrl.data import Composite, OneHot, Unbounded
        >>> bytes_per_step(build_agent(Composite(observation=Unbounded((4,))), OneHot(2), "nano"))
        1065
    """
    spaces: Mapping[NestedKey, Space] = agent.spaces | agent.action_space.spaces
    reward, flags, latents = 4, 3, 4 * agent.size.belief + agent.size.stochastic
    return sum(_bytes(space) for space in spaces.values()) + reward + flags + latents


def _bytes(space: Space) -> int:
    return prod(space.shape) * (1 if isinstance(space, Image) else space.dtype.itemsize)
