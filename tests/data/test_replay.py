"""Replay: sequences of steps as they were collected, latents that return to their steps, any storage and sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch.nn import functional as F
from torchrl.data import (
    Bounded,
    Composite,
    LazyTensorStorage,
    OneHot,
    PrioritizedSliceSampler,
    SliceSampler,
    StreamingSliceSampler,
    Unbounded,
)
from torchrl.data.replay_buffers import Storage

from dreamer_torchrl import ActorLoss, Agent, Learner, build_agent
from dreamer_torchrl.data.device_storage import DeviceStorage
from dreamer_torchrl.data.replay import Replay, bytes_per_step, reserve
from dreamer_torchrl.data.samplers import StreamSampler
from dreamer_torchrl.learners.learner import example_batch

CLASSES = 3


def steps(first: int, count: int, streams: int = 2) -> TensorDict:
    """Steps ``[streams, count]`` that know their own time and stream."""
    time = torch.arange(first, first + count).view(1, -1, 1).expand(streams, -1, 1)
    stream = torch.arange(streams).view(-1, 1, 1).expand(streams, count, 1)
    state = F.one_hot((time + stream) % CLASSES, CLASSES).float()  # [streams, time, 1, K]
    entries = {"time": time, "stream": stream, "belief": time.float(), "state": state}
    return TensorDict({key: value.clone() for key, value in entries.items()}, [streams, count])


def example_steps(agent: Agent) -> TensorDict:
    """Steps ``[2, 32]`` that this agent could have collected."""
    stream = torch.arange(2).view(2, 1, 1).expand(2, 32, 1)
    return example_batch(agent, 2, 31).set("stream", stream.clone())


@pytest.fixture(params=["memory", "disk", "device"])
def replay(request: pytest.FixtureRequest, tmp_path: Path) -> Replay:
    """The CPU stands for the GPU whose memory a replay is in."""
    directory = tmp_path / "steps" if request.param == "disk" else None
    storage = DeviceStorage(40, torch.device("cpu")) if request.param == "device" else None
    return Replay(capacity=40, streams=2, batch=4, length=4, directory=directory, storage=storage)


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_every_draw_is_a_true_stretch(replay: Replay, chunk: int) -> None:
    """Also while the storage fills, right after a write, and across the end of the ring."""
    for first in range(0, 100 - chunk, chunk):
        replay.extend(steps(first, chunk))
        if not replay.ready:
            continue
        batch, where = replay.sample()
        newest = first + chunk - 1
        assert batch.shape == (4, 5)
        assert (batch["time"].diff(dim=1) == 1).all()
        assert (batch["stream"] == batch["stream"][:, :1]).all()
        assert batch["time"].min() > newest - 20
        assert batch["time"].max() <= newest
        assert torch.equal(replay.buffer.storage[:]["time"][where.index], batch["time"][:, 1:])


def test_streams_need_not_advance_together(replay: Replay) -> None:
    """Collectors that work asynchronously give steps ``[N]`` or ``[N, T]`` of any streams, whenever they have them."""
    generator, lengths = torch.Generator().manual_seed(0), [0, 0]
    for _ in range(60):
        stream = int(torch.rand((), generator=generator) < 0.7)
        count = int(torch.randint(1, 4, (), generator=generator))
        some = steps(lengths[stream], count)[stream]
        replay.extend(some if count == 3 else some.unsqueeze(0))
        lengths[stream] += count
        if replay.ready:
            batch, _ = replay.sample()
            assert (batch["time"].diff(dim=1) == 1).all()
            assert (batch["stream"] == batch["stream"][:, :1]).all()
    assert len(replay) == 40
    assert replay.written == sum(lengths)


def test_steps_of_one_call_arrive_in_the_order_of_time(replay: Replay) -> None:
    replay.extend(steps(0, 6))
    assert replay.copy(0, 12)["time"].flatten().tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_latents_return_to_their_steps(replay: Replay) -> None:
    replay.extend(steps(0, 20))
    batch, where = replay.sample()
    fresh = TensorDict({"belief": -batch["belief"][:, 1:], "state": batch["state"][:, 1:] + 1}, [4, 4])
    assert replay.refresh(where, fresh) == len(where.index.unique())
    stored = replay.buffer.storage[:]
    touched = torch.zeros(40, dtype=torch.bool)
    touched[where.index] = True
    time = stored["time"].float()
    assert torch.equal(stored["belief"], torch.where(touched.unsqueeze(1), -time, time))


def test_of_a_step_drawn_twice_the_last_latents_stay_whole() -> None:
    """With more threads than one, too: torch writes duplicate indices in any order, and even halves of rows."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        outcomes = []
        for _ in range(20):
            replay = Replay(capacity=40, streams=1, batch=16, length=16)
            zeros = {"belief": torch.zeros(40, 256), "state": torch.zeros(40, 32).byte()}
            replay.extend(TensorDict(zeros | {"stream": torch.zeros(40).int()}, [40]))
            _, where = replay.sample()
            row = torch.arange(1, 17).view(16, 1, 1)  # each sequence writes its own number
            belief, state = row.expand(16, 16, 256).float(), row.expand(16, 16, 32).byte()
            replay.refresh(where, TensorDict({"belief": belief, "state": state}, [16, 16]))
            stored = replay.buffer.storage[:]
            expected = torch.zeros(40)
            for number, slots in enumerate(where.index, 1):
                expected[slots] = number
            for key in ("belief", "state"):
                outcomes.append(bool((stored[key].float() == expected.unsqueeze(1)).all()))
        assert all(outcomes)
    finally:
        torch.set_num_threads(threads)


def test_stale_slots_are_left_alone(replay: Replay) -> None:
    """What was overwritten since the draw keeps the latents of the step that is there now."""
    replay.extend(steps(0, 20))
    batch, where = replay.sample()
    replay.extend(steps(20, 8))
    fresh = TensorDict({"belief": torch.full((4, 4, 1), -1.0), "state": batch["state"][:, 1:]}, [4, 4])
    there = batch["time"][:, 1:] >= 8
    assert replay.refresh(where, fresh) == len(where.index[there.squeeze(-1)].unique())
    stored = replay.buffer.storage[:]
    new = stored["time"] >= 20
    assert torch.equal(stored["belief"][new], stored["time"][new].float())


@pytest.mark.parametrize(("classes", "dtype"), [(256, torch.uint8), (300, torch.int16)])
def test_states_of_many_classes_do_not_wrap(classes: int, dtype: torch.dtype) -> None:
    replay = Replay(capacity=10, streams=1, batch=1, length=4)
    state = torch.tensor([classes - 1, 0, 255, 5, 43]).view(5, 1)
    entries = {"stream": torch.zeros(5).int(), "belief": torch.zeros(5, 1), "state": F.one_hot(state, classes).float()}
    replay.extend(TensorDict(entries, [5]))
    batch, where = replay.sample()
    assert batch["state"].dtype is dtype
    assert torch.equal(batch["state"].flatten().long(), state.flatten())
    replay.refresh(where, TensorDict({"belief": torch.zeros(1, 4, 1), "state": state[:4].view(1, 4, 1)}, [1, 4]))
    assert replay.copy(1, 5)["state"].flatten().tolist() == state[:4].flatten().tolist()


def test_latents_in_bfloat16() -> None:
    """Those that come and those that return; the learner takes the batch as it is."""
    agent = build_agent(Composite(observation=Unbounded((3,))), OneHot(2), "nano")
    replay = Replay(capacity=64, streams=2, batch=2, length=5, latents=torch.bfloat16)
    replay.extend(example_steps(agent))
    batch, where = replay.sample()
    assert batch["belief"].dtype is torch.bfloat16
    _, latents = Learner(agent).update(batch)
    replay.refresh(where, latents)
    stored = replay.buffer.storage[:]
    assert torch.equal(stored["belief"][where.index], latents["belief"].bfloat16())
    assert bytes_per_step(agent, torch.bfloat16) == sum(value[0].nbytes for value in stored.values(True, True))


def test_priorities_beside_the_latents_go_to_the_sampler() -> None:
    class Listener(StreamSampler):
        def update_priority(self, index, priority, *, storage=None) -> None:  # noqa: ANN001
            self.heard = dict(zip(index.tolist(), priority.tolist(), strict=True))

    replay = Replay(capacity=40, streams=2, batch=2, length=4, sampler=Listener(5, 2))
    replay.extend(steps(0, 12))
    batch, where = replay.sample()
    replay.extend(steps(12, 14))
    latents = batch[:, 1:].select("belief", "state")
    latents["priority"] = torch.arange(8.0).view(2, 4)
    replay.refresh(where, latents)
    alive = batch["time"][:, 1:, 0] >= 6
    expected = dict(zip(where.index[alive].tolist(), latents["priority"][alive].tolist(), strict=True))
    assert replay.sampler.heard == expected


def test_torchrl_slice_sampler_and_another_storage_can_be_passed() -> None:
    sampler = SliceSampler(slice_len=5, traj_key="stream", fragmented=True, init_key=None, truncated_key=None)
    replay = Replay(40, 2, 4, 4, sampler=sampler, storage=LazyTensorStorage(40))
    for first in range(0, 60, 3):
        replay.extend(steps(first, 3))
        if replay.ready:
            batch, where = replay.sample()
            assert (batch["time"].diff(dim=1) == 1).all()
            assert (batch["stream"] == batch["stream"][:, :1]).all()
    fresh = TensorDict({"belief": -batch["belief"][:, 1:], "state": batch["state"][:, 1:]}, [4, 4])
    assert replay.refresh(where, fresh) == len(where.index.unique())


def prioritized_slice_sampler() -> PrioritizedSliceSampler:
    try:
        return PrioritizedSliceSampler(40, 0.7, 0.5, slice_len=5, traj_key="stream", init_key=None, truncated_key=None)
    except RuntimeError as error:  # it names what is missing
        pytest.skip(f"torchrl's C++ extension does not load with torch {torch.__version__}: {error}")


@pytest.mark.parametrize(
    "make",
    [
        prioritized_slice_sampler,
        lambda: StreamingSliceSampler(slice_len=5, traj_key="stream", init_key=None, truncated_key=None),
    ],
    ids=["prioritized", "streaming"],
)
def test_other_slice_samplers_of_torchrl_work_on_one_stream(make) -> None:  # noqa: ANN001
    replay = Replay(capacity=40, streams=1, batch=4, length=4, sampler=make())
    for first in range(0, 60, 6):
        replay.extend(steps(first, 6, streams=1))
        batch, where = replay.sample()
        assert (batch["time"].diff(dim=1) == 1).all()
        latents = batch[:, 1:].select("belief", "state").set("priority", torch.rand(4, 4))
        assert replay.refresh(where, latents) == len(where.index.unique())


def test_batches_can_be_prefetched() -> None:
    """They are what the buffer held when they were drawn; latents of steps that left meanwhile are dropped."""
    replay = Replay(capacity=40, streams=2, batch=4, length=4, prefetch=2)
    for first in range(0, 60, 4):
        replay.extend(steps(first, 4))
        if replay.ready:
            batch, where = replay.sample()
            assert (batch["time"].diff(dim=1) == 1).all()
            replay.refresh(where, batch[:, 1:].select("belief", "state"))
    replay.state_dict()
    stored = replay.buffer.storage[:]
    assert torch.equal(stored["belief"], stored["time"].float())


def test_disk_is_reserved_without_posix_fallocate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS; what the file holds stays."""
    monkeypatch.delattr("os.posix_fallocate", raising=False)
    path, size = tmp_path / "file", 3 << 20
    with path.open("w+b") as file:
        file.truncate(size)
        file.seek(100)
        file.write(b"first")
        file.flush()
        assert path.stat().st_blocks * 512 < size
        reserve(file.fileno(), size)
    assert path.stat().st_blocks * 512 >= size
    assert path.read_bytes() == bytes(100) + b"first" + bytes(size - 105)


def test_bytes_per_step_is_what_is_stored() -> None:
    spec = Composite(observation=Unbounded((3,)), pixels=Bounded(0, 255, (48, 48, 3), dtype=torch.uint8))
    agent = build_agent(spec, OneHot(2), "nano")
    replay = Replay(capacity=64, streams=2, batch=2, length=5)
    replay.extend(example_steps(agent))
    stored = replay.buffer.storage[:]
    assert bytes_per_step(agent) == sum(value[0].nbytes for value in stored.values(True, True))


def test_too_small_a_replay_and_drawing_too_early_are_named() -> None:
    with pytest.raises(ValueError, match="less than one sequence of 5 steps of each environment: give at least 10"):
        Replay(capacity=9, streams=2, batch=1, length=4)
    replay = Replay(capacity=40, streams=2, batch=4, length=4)
    replay.extend(steps(0, 4))
    assert not replay.ready
    with pytest.raises(RuntimeError, match="holds 8 steps, none of its streams the 5"):
        replay.sample()


def test_no_room_is_taken_for_steps_that_never_come(replay: Replay, tmp_path: Path) -> None:
    """A short run with a large capacity: draws are the same as with all the room."""
    directory = tmp_path / "few" if (tmp_path / "steps").exists() else None
    few = Replay(capacity=40, streams=2, batch=4, length=4, directory=directory, most=25)
    for both in (few, replay):
        both.extend(steps(0, 13))
    assert (few.slots, replay.slots) == (27, 40)
    for _ in range(3):
        assert torch.equal(few.sample()[0]["time"], replay.sample()[0]["time"])
    with pytest.raises(RuntimeError, match="made for 27 steps at most"):
        few.extend(steps(14, 1))


def test_a_longer_run_has_room_for_what_was_saved() -> None:
    """And one that was shortened."""
    saved = Replay(capacity=40, streams=2, batch=4, length=4)
    saved.extend(steps(0, 18))
    piece = saved.copy(0, 36)
    for most in (4, 36, 4000):
        other = Replay(capacity=40, streams=2, batch=4, length=4, most=most)
        other.load_state_dict(saved.state_dict(), [piece])
        assert torch.equal(other.sample()[0]["time"], saved.sample()[0]["time"])


class Weighted(StreamSampler):
    """Gives an importance weight for each step, as TorchRL's prioritized samplers do."""

    def sample(self, storage: Storage, batch_size: int) -> tuple[Any, dict[str, Any]]:
        index, info = super().sample(storage, batch_size)
        return index, info | {"priority_weight": torch.arange(batch_size) / batch_size}


def test_importance_weights_of_a_sampler_come_where_the_losses_read_them() -> None:
    replay = Replay(capacity=40, streams=2, batch=2, length=4, sampler=Weighted(5, 2))
    replay.extend(steps(0, 8))
    weight = replay.sample()[0][ActorLoss.default_keys.priority_weight]
    assert torch.equal(weight, torch.arange(10).reshape(2, 5) / 10)
