"""Replay of streams on a TorchRL replay buffer: sequences of steps out, refreshed latents back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, ReplayBuffer, RoundRobinWriter, SliceSampler
from torchrl.data.replay_buffers import Sampler, Storage, Writer

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.data.device_storage import DeviceStorage
from dreamer_torchrl.data.samplers import OnlineSampler, last_of_each
from dreamer_torchrl.modules.latents import CategoricalLatent
from dreamer_torchrl.modules.spaces import Image
from dreamer_torchrl.ranges import part

LATENTS = ("belief", "state")
SCRATCH = "replay-scratch"  # a folder of its own for steps on disk, so that nothing else can be removed with it


class Where(NamedTuple):
    index: Tensor  # [B, T], slots that the trained steps of a batch came from
    generation: Tensor  # [B, T], how often these had been written


class Replay:
    """Store the steps of N streams, draw sequences, take their new latents back.

    All steps lie in one ring of a TorchRL `ReplayBuffer` (``buffer``) in order of arrival, each with its ``stream``, on
    the CPU, on disk or on another ``device``. States are kept as class indices. Only latents change later; which ones
    did is remembered for the checkpoints.

    Args:
        capacity: steps kept, of all streams together.
        batch, length: sequences per batch, trained steps per sequence.
        context: leading steps that only lend their latents.
        directory: where to keep the steps on disk. What an earlier process left there is removed.
        block: steps that are saved together.
        most: steps that will ever be written; no memory is taken for more of them.
        sampler: of slices of ``context + length`` steps, `OnlineSampler` if left out. TorchRL's `SliceSampler` with
            ``traj_key="stream", fragmented=True`` works as well; with one stream, so do its other slice samplers.
        storage, writer: others, of ``capacity`` steps and tracking generations.
        prefetch: batches drawn ahead in threads; with any, runs do not repeat to the last bit.
        latents: dtype of stored floating-point latents; as they come if left out.
        device: where the steps are. Not on the CPU, no method waits for the device but those that checkpoints need.

    Example:
        >>> from tensordict import TensorDict
        >>> replay = Replay(capacity=100, streams=2, batch=3, length=4)
        >>> state = torch.nn.functional.one_hot(torch.zeros(2, 10, 5, dtype=torch.long), 3).float()
        >>> stream = torch.arange(2).expand(10, 2).T
        >>> replay.extend(TensorDict({"stream": stream, "belief": torch.zeros(2, 10, 8), "state": state}, [2, 10]))
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
        batch: int = 4,
        length: int = 32,
        context: int = 1,
        directory: str | Path | None = None,
        seed: int = 0,
        block: int = 4096,
        most: int | None = None,
        *,
        sampler: Sampler | None = None,
        storage: Storage | None = None,
        writer: Writer | None = None,
        prefetch: int = 0,
        pin_memory: bool = False,
        latents: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ):
        self.slice_len = context + length
        if capacity // streams < self.slice_len:
            told = f"replay.capacity={capacity} is less than one sequence of {self.slice_len} steps of each environment"
            raise ValueError(f"{told}: give at least {self.slice_len * streams}.")
        self.scratch = None if directory is None else Path(directory) / SCRATCH
        if self.scratch and self.scratch.exists():
            shutil.rmtree(self.scratch)
        self.capacity, self.streams, self.batch, self.context, self.block = capacity, streams, batch, context, block
        self.sizes = {"capacity": capacity, "streams": streams, "slice length": self.slice_len, "block": block}
        self.sampler = sampler or OnlineSampler(self.slice_len, streams)
        self.generator = torch.Generator().manual_seed(seed)
        self.prefetch, self.pin_memory, self.latents, self.device = prefetch, pin_memory, latents, torch.device(device)
        self.written = 0  # steps ever written; a step keeps its number, its position
        self.history = object()  # another one once other steps were loaded in place of these
        self.revision = 0  # of the latents: one more with each change
        self._storage, self._writer = storage, writer
        self._build(min(capacity, capacity if most is None else most + streams))

    def _build(self, slots: int) -> None:
        if (storage := self._storage) is None:
            if self.device.type != "cpu":
                storage = DeviceStorage(slots, self.device)
            else:
                on_disk = self.scratch is not None
                storage = LazyMemmapStorage(slots, scratch_dir=self.scratch) if on_disk else LazyTensorStorage(slots)
        self.slots = storage.max_size
        self.buffer = ReplayBuffer(
            storage=storage,
            sampler=self.sampler,
            writer=self._writer or RoundRobinWriter(track_generations=True),
            batch_size=self.batch * self.slice_len,
            prefetch=self.prefetch or None,
            pin_memory=self.pin_memory,
            generator=self.generator,
        )
        self._origin = 0  # position of the step that was written into slot 0 first
        self._changed = torch.zeros(self.slots, dtype=torch.int32)  # revision of the latents in each slot
        self._lengths = [0] * self.streams  # of the streams, for samplers that need a number at each step

    def __len__(self) -> int:
        return len(self.buffer)

    @property
    def oldest(self) -> int:
        return self.written - len(self)

    @property
    def ready(self) -> bool:
        return len(self) > 0 and self.buffer.can_sample()

    def extend(self, steps: TensorDictBase) -> None:
        """Append steps ``[N]`` or ``[N, T]`` with their ``stream``; ``state`` is one-hot ``[..., S, K]`` or indices."""
        # What came first goes first  [M]
        steps = steps.copy() if steps.ndim == 1 else steps.transpose(0, 1).reshape(-1)
        if self.written + len(steps) > self.slots < self.capacity:
            raise RuntimeError(
                f"The replay was made for {self.slots} steps at most, and more of them come: give it a larger `most`."
            )
        for some in steps.split(self.slots) if len(steps) > self.slots else [steps]:
            self._append(some)

    def _append(self, steps: TensorDictBase) -> None:
        new = not self.buffer.storage.initialized
        steps["stream"] = steps["stream"].reshape(-1).to(torch.int32)  # [M], as TorchRL's samplers take it
        state = steps.get("state", None)
        if state is not None and state.is_floating_point() and state.ndim == 3 and state.shape[-1] > 1:  # one-hot
            steps["state"] = CategoricalLatent(*state.shape[1:]).pack(state)
        for key in LATENTS:
            latent = steps.get(key, None)
            if latent is not None and latent.is_floating_point() and self.latents is not None:
                steps[key] = latent.to(self.latents)
        if isinstance(self.sampler, SliceSampler) and self.sampler.fragmented:
            numbers = []
            for stream in steps["stream"].tolist():
                numbers.append(self._lengths[stream])
                self._lengths[stream] += 1
            steps[self.sampler.step_key] = torch.tensor(numbers)
        index = self.buffer.extend(steps)
        self.written += len(steps)
        self._note_change(index)
        if new and isinstance(self.buffer.storage, LazyMemmapStorage):
            self._reserve()

    def sample(self) -> tuple[TensorDictBase, Where]:
        """A batch ``[B, context + T]``, with a sampler's ``priority_weight``, and where its trained steps came from."""
        with part("sample"):
            data, info = self.buffer.sample(return_info=True)
        rows = (self.batch, self.slice_len)
        index = info["index"][0] if isinstance(info["index"], tuple) else info["index"]
        batch, trained = data.reshape(rows), (slice(None), slice(self.context, None))
        if "priority_weight" in info:
            batch["priority_weight"] = info["priority_weight"].reshape(rows)
        return batch, Where(index.reshape(rows)[trained], info["index_generation"].reshape(rows)[trained])

    def brought(self, latents: TensorDictBase) -> TensorDictBase:
        """New latents on their way to where `refresh` reads them: priorities on the host, the rest in the storage.

        The copies are made by the device that has them, in its order; the host has to wait before it reads any.
        """
        places = {"priority": torch.device("cpu")}
        moved = {key: value.to(places.get(key, self.device), non_blocking=True) for key, value in latents.items()}
        return TensorDict(moved, batch_size=latents.batch_size)

    def refresh(self, where: Where, latents: TensorDictBase) -> int:
        """Write new latents ``[B, T]``, and priorities, where their steps are still stored; returns how many are.

        Of a step that is there twice, the last counts: else belief and state could be of different sequences.
        """
        index = where.index.flatten()
        last = torch.zeros_like(index, dtype=torch.bool)
        last[last_of_each(index)] = True
        generation = where.generation.flatten().where(last, -1)  # as if the others were overwritten
        storage, stored = self.buffer.storage, self.buffer.storage[:]
        patch = {key: latents[key].to(stored[key].device, stored[key].dtype).flatten(0, 1) for key in LATENTS}
        with part("refresh"):
            if isinstance(storage, DeviceStorage):
                there = (generation >= 0) & (generation == self.buffer.writer.generations_of(index))
                storage.overwrite(index[there], there.nonzero().flatten(), patch)
            else:
                there = self.buffer.update_if_present(index=index, generation=generation, patch=patch).updated
        self._note_change(index[there])
        priority = latents.get("priority", None)
        if priority is not None:
            self.buffer.update_priority(index[there], priority.to(index.device).flatten()[there])
        return int(there.sum())

    def changed_since(self, revision: int) -> list[int]:
        """Blocks of the steps that are there whose latents changed after a `revision`; block k starts at k * block."""
        positions = torch.arange(self.oldest, self.written)
        return (positions[self._changed[self._slots_of(positions)] > revision] // self.block).unique().tolist()

    def copy(self, first: int, end: int, steps: bool = True, latents: bool = True) -> TensorDictBase:
        """A copy ``[end - first]`` of the steps at these positions, of their latents or of both."""
        stored = self.buffer.storage[:]
        stored = stored if latents else stored.exclude(*LATENTS)
        return (stored if steps else stored.select(*LATENTS))[self._slots_of(torch.arange(first, end))].cpu()

    def state_dict(self) -> dict[str, Any]:
        self.buffer.synchronize()
        counts = {"sizes": self.sizes, "written": self.written, "stored": len(self)}
        return counts | {"sampler": self.sampler.state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any], pieces: Iterable[TensorDictBase]) -> None:
        """Continue exactly from a `state_dict`, with the steps and latents of then in ``pieces``, the oldest first."""
        for name, size in self.sizes.items():
            if state["sizes"][name] != size:
                told = f"The saved replay has {name} {state['sizes'][name]}, this one {size}:"
                raise ValueError(f"{told} build it with the saved {name}, or start a new run.")
        if state["written"] > self.slots < self.capacity:
            self._build(min(state["written"], self.capacity))
        self.buffer.empty()
        self._origin = self.written = state["written"] - state["stored"]
        self._lengths = [0] * self.streams
        self.sampler.load_state_dict(state["sampler"])
        for piece in pieces:
            self._append(piece)
        self.sampler.load_state_dict(state["sampler"])
        self.generator.set_state(state["generator"])
        self.history = object()

    def _reserve(self) -> None:
        """Take the disk space now: a file with holes kills the process that writes into it when the disk is full."""
        for tensor in self.buffer.storage[:].values(True, True):
            path = Path(tensor.filename)
            needed = path.stat().st_size
            try:
                with path.open("r+b") as file:
                    reserve(file.fileno(), needed)
            except OSError as error:
                free = shutil.disk_usage(path.parent).free
                told = f"The replay needs {needed:,} bytes for {path.name}, {free:,} are free: {error.strerror}."
                remedy = "Give it another directory or a smaller capacity"
                raise OSError(error.errno, f"{told} {remedy}", str(path.parent)) from error

    def _slots_of(self, positions: Tensor) -> Tensor:
        return (positions - self._origin) % self.slots

    def _note_change(self, slots: Tensor) -> None:
        self.revision += 1
        self._changed[slots.cpu()] = self.revision


def reserve(descriptor: int, size: int) -> None:
    """Take ``size`` bytes of disk for an open file of that size with holes; what is in it stays."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    for start in range(0, size, 1 << 20):  # macOS
        os.pwrite(descriptor, os.pread(descriptor, min(1 << 20, size - start), start), start)


def bytes_per_step(agent: Agent, latents: torch.dtype = torch.float32) -> int:
    spaces = (agent.spaces | agent.action_space.masks | agent.action_space.spaces).values()
    sizes = [prod(space.shape) * (1 if isinstance(space, Image) else space.dtype.itemsize) for space in spaces]
    reward, flags, stream = 4, 3, 4
    return sum(sizes) + reward + flags + stream + latent_bytes(agent, latents)


def latent_bytes(agent: Agent, latents: torch.dtype = torch.float32) -> int:
    """The part of `bytes_per_step` that changes."""
    latent = agent.rssm.latent
    return latents.itemsize * agent.size.belief + latent.packed_dtype.itemsize * prod(latent.packed_shape)
