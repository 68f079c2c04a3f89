"""Samplers of sequences: every slice is a true stretch of one stream, drawn as often as the sampler promises."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, ReplayBuffer

from dreamer_torchrl.data.prioritized import PrioritizedSampler, SumTree
from dreamer_torchrl.data.replay import Replay
from dreamer_torchrl.data.samplers import MixedSampler, OnlineSampler, RecencySampler, StreamSampler

LENGTH, CAPACITY = 3, 24
SAMPLERS = {
    "uniform": lambda: StreamSampler(LENGTH, 3),
    "online": lambda: OnlineSampler(LENGTH, 3),
    "recency": lambda: RecencySampler(LENGTH, 3),
    "prioritized": lambda: PrioritizedSampler(LENGTH, 3),
    "mixed": lambda: OnlineSampler(
        LENGTH,
        3,
        then=MixedSampler(
            {"uniform": StreamSampler(LENGTH, 3), "prioritized": PrioritizedSampler(LENGTH, 3, initial=2.0)},
            {"uniform": 0.3, "prioritized": 0.7},
        ),
    ),
}


class Streams:
    """Writes steps of three streams that advance at different rates, and knows what is there."""

    def __init__(self, sampler: StreamSampler, batch: int = 4):
        self.buffer = ReplayBuffer(
            storage=LazyTensorStorage(CAPACITY),
            sampler=sampler,
            batch_size=batch * LENGTH,
            generator=torch.Generator().manual_seed(1),
        )
        self.there: list[tuple[int, int]] = []  # (stream, time), the oldest first
        self.lengths, self.chance = [0, 0, 0], torch.Generator().manual_seed(0)

    def write(self, count: int) -> None:
        streams = torch.multinomial(torch.tensor([1.0, 2.0, 3.0]), count, replacement=True, generator=self.chance)
        new = []
        for stream in streams.tolist():
            new.append((stream, self.lengths[stream]))
            self.lengths[stream] += 1
        self.there = [*self.there, *new][-CAPACITY:]
        self.buffer.extend(TensorDict({"stream": streams, "time": torch.tensor([time for _, time in new])}, [count]))

    @property
    def slices(self) -> set[tuple[int, int]]:
        """Streams and starts of all slices that are there."""
        whole = {(stream, time + LENGTH - 1) for stream, time in self.there}
        return {(stream, end - LENGTH + 1) for stream, end in whole & set(self.there)}

    def sample(self) -> list[tuple[int, int]]:
        batch = self.buffer.sample().reshape(-1, LENGTH)
        assert (batch["time"].diff(dim=1) == 1).all()
        assert (batch["stream"] == batch["stream"][:, :1]).all()
        return list(zip(batch["stream"][:, 0].tolist(), batch["time"][:, 0].tolist(), strict=True))


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_draw_is_a_slice_that_is_there(name: str) -> None:
    streams = Streams(SAMPLERS[name]())
    for count in [1, 2, 5, 1, 7, 24, 3, 1, 1, 9, 13, 2, 2, 24, 1] * 3:
        streams.write(count)
        assert streams.buffer.can_sample() == bool(streams.slices)
        if streams.slices:
            assert set(streams.sample()) <= streams.slices


@pytest.mark.parametrize("name", ["uniform", "online"])
def test_all_slices_are_equally_likely(name: str) -> None:
    streams = Streams(SAMPLERS[name](), batch=3000)
    for _ in range(3):
        streams.write(20)
    streams.sample()  # the new ones, each once
    counts = Counter(streams.sample())
    assert counts.keys() == streams.slices
    expected = 3000 / len(streams.slices)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


def test_new_stretches_come_first_and_once() -> None:
    streams = Streams(OnlineSampler(LENGTH, 3), batch=2)
    streams.write(CAPACITY)
    stretches = [(stream, time) for stream, length in enumerate(streams.lengths) for time in range(0, length - 2, 3)]
    drawn = [pair for _ in range(len(stretches) // 2) for pair in streams.sample()]
    assert sorted(drawn) == sorted(stretches)[: len(drawn)] or set(drawn) <= set(stretches)
    assert len(set(drawn)) == len(drawn)


def test_new_stretches_that_were_overwritten_are_dropped() -> None:
    sampler = OnlineSampler(LENGTH, 3)
    streams = Streams(sampler)
    for _ in range(50):
        streams.write(7)
    assert len(sampler.fresh) <= CAPACITY // LENGTH  # without any draw
    assert set(streams.sample()) <= streams.slices


def test_recency_follows_the_weights_of_ages() -> None:
    """The official formula: 1 / (1 + age), where the newest slice has age 0."""
    replay = Replay(20, 1, batch=20_000, length=2, sampler=RecencySampler(LENGTH, 1, capacity=18))
    replay.extend(TensorDict({"stream": torch.zeros(50).int(), "time": torch.arange(50).unsqueeze(1)}, [50]))
    batch, _ = replay.sample()
    counts = (49 - batch["time"][:, -1]).flatten().bincount(minlength=18) / 20_000  # by age
    weights = 1 / torch.arange(1, 19)
    assert torch.allclose(counts, weights / weights.sum(), atol=0.015)


def test_recency_scales_ages_to_what_is_there() -> None:
    replay = Replay(100, 1, batch=2000, length=2, sampler=RecencySampler(LENGTH, 1, exponent=0.0))
    replay.extend(TensorDict({"stream": torch.zeros(12).int(), "time": torch.arange(12).unsqueeze(1)}, [12]))
    counts = replay.sample()[0]["time"][:, 0].flatten().bincount()
    assert counts.shape == (10,)
    assert counts.min() > 140
    assert counts.max() < 260


@pytest.mark.parametrize("leaves", [5, 16, 17, 300])
def test_the_tree_of_sums_is_a_plain_loop(leaves: int) -> None:
    chance = torch.Generator().manual_seed(0)
    tree, weights = SumTree(leaves, branching=4), {}
    for _ in range(30):
        chosen = torch.randint(leaves, (7,), generator=chance).unique()
        if torch.rand((), generator=chance) < 0.3:
            tree.remove(chosen)
            for leaf in chosen.tolist():
                weights.pop(leaf, None)
        else:
            new = torch.rand(len(chosen), generator=chance, dtype=torch.float64)
            tree.set(chosen, new)
            weights |= dict(zip(chosen.tolist(), new.tolist(), strict=True))
        assert tree.levels[-1][0].sum().item() == pytest.approx(sum(weights.values()))
        assert tree.levels[-1][1].sum() == len(weights)
    tree.set(torch.tensor([1]), torch.tensor([0.5]))
    weights[1] = 0.5
    counts = tree.sample(20_000, chance).bincount(minlength=leaves) / 20_000
    expected = torch.tensor([weights.get(leaf, 0.0) for leaf in range(leaves)])
    assert torch.allclose(counts, expected / expected.sum(), atol=0.02)
    assert (counts[expected == 0] == 0).all()


@pytest.mark.parametrize("weight", [0.0, torch.inf])
def test_leaves_of_weight_zero_or_infinity_are_drawn_alike(weight: float) -> None:
    tree = SumTree(40, branching=4)
    tree.set(torch.tensor([3, 17]), torch.tensor([weight, weight]))
    if weight:
        tree.set(torch.tensor([5]), torch.tensor([7.0]))
    counts = tree.sample(2000).bincount(minlength=40)
    assert set(counts.nonzero().flatten().tolist()) == {3, 17}
    assert counts[3].item() == pytest.approx(1000, abs=150)


@pytest.mark.parametrize("maxfrac", [0.0, 0.5])
def test_priorities_weigh_as_in_the_official_selector(maxfrac: float) -> None:
    """Against a loop over all slices that keeps the priority of each step, while steps come and go."""
    sampler = PrioritizedSampler(LENGTH, 3, initial=2.0, zero_on_sample=False, maxfrac=maxfrac)
    streams, chance, known = Streams(sampler), torch.Generator().manual_seed(3), {}
    for _ in range(25):
        before = set(streams.there)
        streams.write(int(torch.randint(1, 9, (), generator=chance)))
        known |= dict.fromkeys(set(streams.there) - before, 2.0)
        stored = streams.buffer.storage[:]
        slots = torch.randint(len(streams.buffer), (5,), generator=chance)
        priority = torch.rand(5, generator=chance)
        streams.buffer.update_priority(slots, priority)
        for slot, value in zip(slots.tolist(), priority.tolist(), strict=True):
            known[int(stored["stream"][slot]), int(stored["time"][slot])] = value
        total = 0.0
        for stream, start in streams.slices:
            powers = [known[stream, start + number] ** 0.8 for number in range(LENGTH)]
            total += maxfrac * max(powers) + (1 - maxfrac) * sum(powers) / LENGTH
        weights, leaves = sampler.tree.levels[-1].sum(1).tolist()
        assert weights == pytest.approx(total, rel=1e-6)
        assert leaves == len(streams.slices)


def test_what_was_drawn_comes_back_after_all_others() -> None:
    """Steps that were never drawn have infinite priority, those that were have none until they are updated."""
    streams = Streams(PrioritizedSampler(LENGTH, 3), batch=1)
    streams.write(CAPACITY)
    undrawn = set(streams.there)
    while any((stream, start + number) in undrawn for stream, start in streams.slices for number in range(LENGTH)):
        ((stream, start),) = streams.sample()
        steps = {(stream, start + number) for number in range(LENGTH)}
        assert steps & undrawn
        undrawn -= steps
    streams.buffer.update_priority(torch.arange(CAPACITY), torch.zeros(CAPACITY))
    streams.buffer.update_priority(torch.tensor([10]), torch.tensor([1.0]))
    ((stream, start),) = streams.sample()
    assert streams.there[10] in {(stream, start + number) for number in range(LENGTH)}


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_go_on_where_they_were_saved(name: str) -> None:
    """With steps of two streams in other slots than before, as after a restart."""

    def steps(first: int, count: int) -> TensorDict:
        time = torch.arange(first, first + count).view(1, -1, 1).expand(3, -1, 1)
        stream = torch.arange(3).view(-1, 1, 1).expand(3, count, 1)
        latents = {"belief": torch.zeros(3, count, 1), "state": torch.zeros(3, count, 1, dtype=torch.uint8)}
        return TensorDict({"time": time, "stream": stream, **latents}, [3, count])

    def go_on(replay: Replay) -> list[torch.Tensor]:
        drawn = []
        for first in range(25, 40):
            batch, where = replay.sample()
            priority = batch["time"][:, 1:, 0] % 7 / 7.0
            replay.refresh(where, batch[:, 1:].select("belief", "state").set("priority", priority))
            drawn.append(batch["time"][..., 0] * 3 + batch["stream"])
            replay.extend(steps(first, 1))
        return drawn

    one, other = (Replay(CAPACITY, 3, 4, LENGTH - 1, sampler=SAMPLERS[name](), seed=5) for _ in range(2))
    for first in range(25):
        one.extend(steps(first, 1))
        if one.ready:
            one.sample()
    other.load_state_dict(one.state_dict(), [one.copy(one.oldest, one.written)])
    assert all(torch.equal(a, b) for a, b in zip(go_on(one), go_on(other), strict=True))


def test_a_stream_that_was_not_announced_is_named() -> None:
    buffer = ReplayBuffer(storage=LazyTensorStorage(10), sampler=StreamSampler(2, streams=2), batch_size=2)
    with pytest.raises(ValueError, match=r"Streams are 0 to 1, these steps are of \[1, 5\]"):
        buffer.extend(TensorDict({"stream": torch.tensor([1, 5])}, [2]))


def test_samplers_write_themselves_to_a_folder(tmp_path) -> None:  # noqa: ANN001
    one, other = OnlineSampler(LENGTH, 3), OnlineSampler(LENGTH, 3)
    streams = Streams(one)
    streams.write(20)
    one.dumps(tmp_path)
    other.loads(tmp_path)
    assert other.fresh == one.fresh
