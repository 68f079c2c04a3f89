"""Replay of streams: sequences of steps, newest first, whose latents are kept fresh."""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, ReplayBuffer, SliceSampler
from torchrl.data.replay_buffers import Storage

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.modules.spaces import Image, Space

LATENTS = ("belief", "state")

SCRATCH = "replay-scratch"
"""The folder of steps that are kept on disk: an own one, so that nothing else can be removed with it."""


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

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next draw depends on."""
        fresh = torch.tensor(self.fresh, dtype=torch.long).reshape(-1, 2)  # [stretches, (position, environment)]
        return {"written": self.written, "fresh": fresh, "generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken."""
        self.written = state_dict["written"]
        self.fresh = deque((position, env) for position, env in state_dict["fresh"].tolist())
        self.generator.set_state(state_dict["generator"])


@dataclass(frozen=True)
class Where:
    """Where the trained steps of a batch came from: positions in their streams and environments, ``[B, T]`` each."""

    position: Tensor
    environment: Tensor


class Replay:
    """Store the steps of N streams, draw sequences, take their new latents back.

    States are kept as class indices of one byte each; the learner reads them so. Steps never change once they are
    written, latents do: for each block of positions, the replay remembers the revision in which its latents last did,
    so that a checkpoint need not write the others again.

    Args:
        capacity: steps kept, of all streams together.
        streams: how many there are.
        batch: sequences per batch.
        length: trained steps per sequence.
        context: leading steps that only lend their latents.
        directory: where to keep the steps on disk; in memory if left out. What an earlier process left there is
            removed: such files are scratch, and only a checkpoint brings steps back.
        seed: of the draws.
        block: time steps whose latents are remembered, and saved, together.
        most: steps that will ever be written, of all streams together; no room is taken for more of them.

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
        length: int = 16,
        context: int = 1,
        directory: str | Path | None = None,
        seed: int = 0,
        block: int = 1024,
        most: int | None = None,
    ):
        slice_len = context + length
        if capacity // streams < slice_len:
            raise ValueError(
                f"A capacity of {capacity} steps for {streams} streams is shorter than one sequence of {slice_len}: "
                f"give at least {slice_len * streams}."
            )
        self.scratch = None
        if directory is not None:
            self.scratch = Path(directory) / SCRATCH
            if self.scratch.exists():
                shutil.rmtree(self.scratch)
        self.streams, self.batch, self.context, self.block = streams, batch, context, block
        self.history = object()  # another one once other steps were loaded in place of these
        self.revision = 0  # of the latents: one more with each change
        self.sampler = StreamSampler(slice_len, capacity // streams, streams, seed)
        self._make_room(self.sampler.capacity if most is None else -(-most // streams) + 1)

    def _make_room(self, slots: int) -> None:
        """An empty storage of so many time steps, of the whole capacity at most; the first step takes its memory."""
        self.slots = min(slots, self.sampler.capacity)
        # A ring with room for all blocks that can be alive at once.  [blocks]
        self._changed = torch.zeros(self.slots // self.block + 2, dtype=torch.long)
        steps = self.slots * self.streams
        if self.scratch is None:
            storage = LazyTensorStorage(steps, ndim=2)
        else:
            storage = LazyMemmapStorage(steps, scratch_dir=self.scratch, ndim=2)
        # TorchRL takes the last dimension for time unless told otherwise.
        self.buffer = ReplayBuffer(
            storage=storage, sampler=self.sampler, batch_size=self.batch * self.sampler.slice_len, dim_extend=0
        )

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
        first = self.sampler.written
        if first + len(steps) > self.slots < self.sampler.capacity:
            raise RuntimeError(
                f"The replay was made for {self.slots * self.streams} steps at most, and more of them come: "
                "give it a larger `most`."
            )
        self._append(steps)
        self.sampler.note_written(steps.shape[0])
        self._note_change(torch.arange(first, self.sampler.written))

    def sample(self) -> tuple[TensorDictBase, Where]:
        """A batch ``[B, context + T]`` and where its trained steps came from."""
        data, info = self.buffer.sample(return_info=True)
        rows = (self.batch, self.sampler.slice_len)
        trained = (slice(None), slice(self.context, None))
        position, environment = info["position"].reshape(rows), info["index"][1].reshape(rows)
        return data.reshape(rows), Where(position[trained], environment[trained])

    def refresh(self, where: Where, latents: TensorDictBase) -> int:
        """Write new latents ``[B, T]`` over the old ones, where their steps are still stored; returns how many are.

        Of a step that a batch holds more than once, the last counts, with all its latents: written with duplicate
        indices, belief and state could come from different sequences, by the race of torch's threads.
        """
        kept = where.position >= self.sampler.oldest  # [B, T]
        position, environment = where.position[kept], where.environment[kept]
        last = _last_of_each(position * self.streams + environment)
        index = (position[last] % self.sampler.capacity, environment[last])
        stored = self.buffer.storage[:]
        for key in LATENTS:
            stored[key][index] = latents[key].to(stored[key].device)[kept][last]  # the indices stay where they are
        self._note_change(position)
        return len(position)

    def changed_since(self, revision: int) -> list[int]:
        """Blocks of the steps that are there whose latents changed after a `revision`; block k starts at k * block."""
        alive = range(self.sampler.oldest // self.block, -(-self.sampler.written // self.block))
        return [block for block in alive if self._changed[block % len(self._changed)] > revision]

    def copy_steps(self, first: int, end: int) -> TensorDictBase:
        """A copy ``[end - first, streams]`` of the steps at these positions, without their latents."""
        return self._copy(first, end, latents=False)

    def copy_latents(self, first: int, end: int) -> TensorDictBase:
        """A copy ``[end - first, streams]`` of the latents at these positions."""
        return self._copy(first, end, latents=True)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the steps: sizes, and what the next draw depends on."""
        return {"sizes": self._sizes(), "sampler": self.sampler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], pieces: Iterable[TensorDictBase]) -> None:
        """Go on exactly where `state_dict` was taken.

        Args:
            state: what `state_dict` gave.
            pieces: the steps with their latents ``[any time, streams]``, from the oldest that was there to the newest.
        """
        for name, size in self._sizes().items():
            if state["sizes"][name] != size:
                raise ValueError(
                    f"The saved replay has {name} {state['sizes'][name]}, this one {size}: "
                    f"build it with the saved {name}, or start a new run."
                )
        written = state["sampler"]["written"]
        if written > self.slots:
            self._make_room(written)
        self.buffer.empty()
        oldest = max(0, written - self.sampler.capacity)
        # The writer stands where the oldest step was written, so that each step returns to its own slot.
        self.buffer.writer.load_state_dict({"_cursor": oldest % self.sampler.capacity, "_write_count": oldest})
        for piece in pieces:
            self._append(piece)
        self.sampler.load_state_dict(state["sampler"])
        self.history = object()
        self.revision += 1
        self._changed.fill_(self.revision)

    def _append(self, steps: TensorDictBase) -> None:
        new = not self.buffer.storage.initialized
        self.buffer.extend(steps)
        if new and isinstance(self.buffer.storage, LazyMemmapStorage):
            self._reserve()

    def _reserve(self) -> None:
        """Take the disk space now: a file with holes kills the process that writes into it when the disk is full."""
        for tensor in self.buffer.storage[:].values(True, True):
            path = Path(tensor.filename)
            needed = path.stat().st_size
            with path.open("r+b") as file:
                try:
                    os.posix_fallocate(file.fileno(), 0, needed)
                except OSError as error:
                    free = shutil.disk_usage(path.parent).free
                    raise OSError(
                        error.errno,
                        f"The replay needs {needed:,} bytes for {path.name}, {free:,} are free: {error.strerror}. "
                        "Give it another directory or a smaller capacity",
                        str(path.parent),
                    ) from error

    def _copy(self, first: int, end: int, latents: bool) -> TensorDictBase:
        slots = torch.arange(first, end) % self.sampler.capacity
        stored = self.buffer.storage[:]
        chosen = stored.select(*LATENTS) if latents else stored.exclude(*LATENTS)
        return chosen[slots].cpu()

    def _note_change(self, position: Tensor) -> None:
        self.revision += 1
        self._changed[position // self.block % len(self._changed)] = self.revision

    def _sizes(self) -> dict[str, int]:
        sampler = self.sampler
        return {
            "capacity": sampler.capacity * self.streams,
            "streams": self.streams,
            "slice length": sampler.slice_len,
            "block": self.block,
        }


def _last_of_each(values: Tensor) -> Tensor:
    """Where each of the values ``[N]`` stands for the last time."""
    distinct, inverse = values.unique(return_inverse=True)
    order = torch.arange(len(values), device=values.device)
    return torch.zeros_like(distinct).scatter_reduce_(0, inverse, order, "amax")


def bytes_per_step(agent: Agent) -> int:
    """What one stored step of an agent's environment takes.

    Example:
        >>> from dreamer_torchrl.agents.agent import build_agent
        >>> from torchrl.data import Composite, OneHot, Unbounded
        >>> bytes_per_step(build_agent(Composite(observation=Unbounded((4,))), OneHot(2), "nano"))
        1065
    """
    spaces: Mapping[NestedKey, Space] = agent.spaces | agent.action_space.spaces
    reward, flags = 4, 3
    return sum(_bytes(space) for space in spaces.values()) + reward + flags + latent_bytes_per_step(agent)


def latent_bytes_per_step(agent: Agent) -> int:
    """The part of `bytes_per_step` that changes."""
    return 4 * agent.size.belief + agent.size.stochastic


def _bytes(space: Space) -> int:
    return prod(space.shape) * (1 if isinstance(space, Image) else space.dtype.itemsize)
