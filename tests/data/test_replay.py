"""Replay: every draw is a true stretch of one stream, new ones come first, stale latents are left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torch.nn import functional as F
from torchrl.data import Bounded, Composite, OneHot, Unbounded

from dreamer_torchrl import Learner, build_agent
from dreamer_torchrl.data.replay import Replay, bytes_per_step
from dreamer_torchrl.learners.learner import example_batch

CLASSES = 3


def steps(first: int, count: int, streams: int = 2) -> TensorDict:
    """Steps that know their own time and stream."""
    time = torch.arange(first, first + count).view(-1, 1, 1).expand(-1, streams, 1)
    stream = torch.arange(streams).view(1, -1, 1).expand(count, -1, 1)
    state = F.one_hot((time + stream) % CLASSES, CLASSES).float()  # [time, streams, 1, K]
    entries = {"time": time, "stream": stream, "belief": time.float(), "state": state}
    return TensorDict({key: value.clone() for key, value in entries.items()}, [count, streams])


@pytest.fixture(params=["memory", "disk"])
def replay(request: pytest.FixtureRequest, tmp_path: Path) -> Replay:
    directory = tmp_path / "steps" if request.param == "disk" else None
    return Replay(capacity=40, streams=2, batch=4, length=4, directory=directory)


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
        assert torch.equal(where.position, batch["time"][:, 1:, 0])
        assert torch.equal(where.environment, batch["stream"][:, 1:, 0])


def test_new_stretches_come_first_and_once() -> None:
    replay = Replay(capacity=400, streams=2, batch=2, length=4)
    replay.extend(steps(0, 100))
    drawn = [tuple(row) for _ in range(20) for row in _starts(replay)]
    assert drawn == [(k * 5, stream) for k in range(20) for stream in range(2)]
    replay.extend(steps(100, 5))
    assert _starts(replay) == [(100, 0), (100, 1)]


def test_then_all_starts_are_as_likely() -> None:
    replay = Replay(capacity=16, streams=1, batch=1000, length=3)
    for first in range(0, 50):
        replay.extend(steps(first, 1, streams=1))
    replay.sample()  # empties the queue of new stretches
    starts = torch.tensor([start for start, _ in _starts(replay)])
    counts = torch.bincount(starts - 34, minlength=13)
    assert counts.shape == (13,)  # 16 steps hold 13 slices of 4
    assert counts.min() > 40
    assert counts.max() < 120


def test_latents_return_to_their_steps(replay: Replay) -> None:
    replay.extend(steps(0, 20))
    batch, where = replay.sample()
    fresh = TensorDict({"belief": -batch["belief"][:, 1:], "state": batch["state"][:, 1:] + 1}, [4, 4])
    assert replay.refresh(where, fresh) == 16
    stored = replay.buffer.storage[:]
    touched = torch.zeros(20, 2, dtype=torch.bool)
    touched[where.position, where.environment] = True
    time = stored["time"].float().squeeze(-1)
    assert torch.equal(stored["belief"].squeeze(-1), torch.where(touched, -time, time))


def test_of_a_step_drawn_twice_the_last_latents_stay_whole() -> None:
    """With more threads than one, too: torch writes duplicate indices in any order, and even halves of rows."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        outcomes = []
        for _ in range(20):
            replay = Replay(capacity=40, streams=1, batch=16, length=16)
            zeros = TensorDict({"belief": torch.zeros(40, 1, 256), "state": torch.zeros(40, 1, 32).byte()}, [40, 1])
            replay.extend(zeros)
            _, where = replay.sample()
            row = torch.arange(1, 17).view(16, 1, 1)  # each sequence writes its own number
            belief, state = row.expand(16, 16, 256).float(), row.expand(16, 16, 32).byte()
            replay.refresh(where, TensorDict({"belief": belief, "state": state}, [16, 16]))
            stored = replay.buffer.storage[:]
            expected = torch.zeros(40)
            for number, positions in enumerate(where.position, 1):
                expected[positions] = number
            for key in ("belief", "state"):
                outcomes.append(bool((stored[key][:, 0].float() == expected.unsqueeze(1)).all()))
        assert all(outcomes)
    finally:
        torch.set_num_threads(threads)


def test_stale_slots_are_left_alone(replay: Replay) -> None:
    """What was overwritten since the draw keeps the latents of the step that is there now."""
    replay.extend(steps(0, 20))
    batch, where = replay.sample()
    replay.extend(steps(20, 8))
    fresh = TensorDict({"belief": torch.full((4, 4, 1), -1.0), "state": batch["state"][:, 1:]}, [4, 4])
    assert replay.refresh(where, fresh) == int((where.position >= 8).sum())
    stored = replay.buffer.storage[:]
    new = stored["time"] >= 20
    assert torch.equal(stored["belief"][new], stored["time"][new].float())


def test_states_are_kept_as_bytes(replay: Replay) -> None:
    replay.extend(steps(0, 20))
    batch, _ = replay.sample()
    assert batch["state"].dtype is torch.uint8
    assert torch.equal(batch["state"], ((batch["time"] + batch["stream"]) % CLASSES).to(torch.uint8))


def test_same_seed_gives_the_same_draws() -> None:
    draws = []
    for seed in (0, 0, 1):
        replay = Replay(capacity=40, streams=2, batch=4, length=4, seed=seed)
        replay.extend(steps(0, 20))
        draws.append([replay.sample()[0]["time"] for _ in range(5)][-1])
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_learner_takes_the_batch_as_it_is() -> None:
    agent = build_agent(Composite(observation=Unbounded((3,))), OneHot(2), "nano")
    replay = Replay(capacity=64, streams=2, batch=2, length=5)
    replay.extend(example_batch(agent, 2, 31).transpose(0, 1).contiguous())
    batch, where = replay.sample()
    _, latents = Learner(agent).update(batch)
    assert replay.refresh(where, latents) == 10


def test_bytes_per_step_is_what_is_stored() -> None:
    spec = Composite(observation=Unbounded((3,)), pixels=Bounded(0, 255, (48, 48, 3), dtype=torch.uint8))
    agent = build_agent(spec, OneHot(2), "nano")
    replay = Replay(capacity=64, streams=2, batch=2, length=5)
    example = example_batch(agent, 2, 31).transpose(0, 1).contiguous()
    replay.extend(example)
    stored = replay.buffer.storage[:]
    assert bytes_per_step(agent) == sum(value[0, 0].nbytes for value in stored.values(True, True))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Replay(capacity=9, streams=2, batch=1, length=4), "give at least 10"),
        (lambda: Replay(40, 2).extend(steps(0, 3, streams=1)), "shorter than one sequence"),
        (lambda: Replay(400, 2).extend(steps(0, 3, streams=1)), r"\[time, 2\]"),
    ],
    ids=["too_small", "too_small_by_default", "wrong_streams"],
)
def test_impossible_sizes_are_named(call, words: str) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match=words):
        call()


def test_drawing_before_there_is_a_sequence_is_named() -> None:
    replay = Replay(capacity=40, streams=2, batch=4, length=4)
    replay.extend(steps(0, 4))
    assert not replay.ready
    with pytest.raises(RuntimeError, match="holds 4 time steps, a slice needs 5"):
        replay.sample()


def _starts(replay: Replay) -> list[tuple[int, int]]:
    batch, _ = replay.sample()
    return list(zip(batch["time"][:, 0, 0].tolist(), batch["stream"][:, 0, 0].tolist(), strict=True))


def test_no_room_is_taken_for_steps_that_never_come(replay: Replay, tmp_path: Path) -> None:
    """A short run with a large capacity: draws are the same as with all the room."""
    directory = tmp_path / "few" if (tmp_path / "steps").exists() else None
    few = Replay(capacity=40, streams=2, batch=4, length=4, directory=directory, most=25)
    for both in (few, replay):
        both.extend(steps(0, 14))
    assert (few.buffer.storage.max_size, replay.buffer.storage.max_size) == (28, 40)
    for _ in range(3):
        assert torch.equal(few.sample()[0]["time"], replay.sample()[0]["time"])
    with pytest.raises(RuntimeError, match="made for 28 steps at most"):
        few.extend(steps(14, 1))


def test_a_longer_run_has_room_for_what_was_saved() -> None:
    """And one that was shortened."""
    saved = Replay(capacity=40, streams=2, batch=4, length=4)
    saved.extend(steps(0, 18))
    piece = saved.copy_steps(0, 18).update(saved.copy_latents(0, 18))
    for most in (4, 36, 4000):
        other = Replay(capacity=40, streams=2, batch=4, length=4, most=most)
        other.load_state_dict(saved.state_dict(), [piece])
        assert torch.equal(other.sample()[0]["time"], saved.sample()[0]["time"])
        saved.sampler.load_state_dict(other.sampler.state_dict())
