"""Recorded transitions become steps: every observation once, every end told right."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch.testing import assert_close
from torchrl.collectors import Collector
from torchrl.collectors.utils import split_trajectories
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.envs import GymEnv, InitTracker, TransformedEnv

from dreamer_torchrl import build_agent
from dreamer_torchrl.data.offline import steps_from_transitions


def episode(start: int, length: int, terminated: bool = False, truncated: bool = False) -> TensorDict:
    """Transitions that count up: observation t leads to t + 1, is paid t + 1 and was left by action -t."""
    time = torch.arange(start, start + length).float().unsqueeze(1)
    ended = torch.zeros(length, 1, dtype=torch.bool)
    ended[-1] = True
    arrival = {"observation": time + 1, "reward": time + 1, "terminated": ended & terminated}
    arrival |= {"truncated": ended & truncated, "done": ended & (terminated or truncated)}
    return TensorDict({"observation": time, "action": -time, "next": arrival}, batch_size=[length])


def column(steps: TensorDictBase, key: str) -> list[float]:
    return steps[key].squeeze(1).tolist()


def two_episodes() -> TensorDictBase:
    return torch.cat([episode(0, 3, terminated=True), episode(10, 2, truncated=True)])


def test_first_and_last_observation_of_each_episode_are_kept() -> None:
    """With the reward received on arrival, none on the first step, and the action chosen there."""
    steps = steps_from_transitions(two_episodes())
    assert column(steps, "observation") == [0, 1, 2, 3, 10, 11, 12]
    assert column(steps, "reward") == [0, 1, 2, 3, 0, 11, 12]
    assert column(steps, "action") == [0, -1, -2, -2, -10, -11, -11]
    assert column(steps, "is_init") == [True, False, False, False, True, False, False]
    assert column(steps, "done") == [False, False, False, True, False, False, True]
    assert column(steps, "terminated") == [False, False, False, True, False, False, False]
    assert {steps[key].dtype for key in ("is_init", "terminated", "done")} == {torch.bool}
    assert steps.batch_size == (7,)
    assert set(steps.keys()) == {"observation", "action", "reward", "is_init", "terminated", "done", "stream"}


def test_what_is_cut_off_is_done_and_not_terminated() -> None:
    steps = steps_from_transitions(torch.cat([episode(0, 2, terminated=True), episode(5, 2)]))
    assert column(steps, "observation") == [0, 1, 2, 5, 6, 7]
    assert column(steps, "done") == [False, False, True, False, False, True]
    assert column(steps, "terminated") == [False, False, True, False, False, False]


def test_rows_are_trajectories_of_their_own() -> None:
    """Of several environments at once, where a row may end anywhere."""
    rows = torch.stack([episode(0, 3), episode(3, 3)])  # the second goes on where the first was cut
    steps = steps_from_transitions(rows)
    assert column(steps, "observation") == [0, 1, 2, 3, 3, 4, 5, 6]
    assert column(steps, "is_init") == [True, False, False, False] * 2
    assert_close(steps, steps_from_transitions(rows.reshape(2, 1, 3)))


@pytest.mark.parametrize("key", ["episode", ("collector", "traj_ids"), "mine"])
def test_trajectories_that_have_names_need_no_end(key: str | tuple[str, str]) -> None:
    """TorchRL's own keys are found, others are given."""
    transitions = torch.cat([episode(0, 2), episode(9, 1), episode(20, 2)])
    transitions[key] = torch.tensor([4, 4, 7, 4, 4])
    steps = steps_from_transitions(transitions, trajectory="mine" if key == "mine" else None)
    assert column(steps, "observation") == [0, 1, 2, 9, 10, 20, 21, 22]
    assert column(steps, "is_init") == [True, False, False, True, False, True, False, False]


@pytest.mark.parametrize("collected", [False, True])
def test_filled_up_rows_lose_what_was_filled_up(collected: bool) -> None:
    """As TorchRL's ``split_trajectories`` leaves them, under either name."""
    transitions = two_episodes()
    if collected:
        transitions["collector", "traj_ids"] = torch.tensor([0, 0, 0, 1, 1])
    split = split_trajectories(transitions, done_key="done")
    assert split.shape == (2, 3) and (("collector", "mask") in split.keys(True)) is collected
    assert_close(steps_from_transitions(split), steps_from_transitions(two_episodes()))


@pytest.mark.parametrize("missing", ["terminated", "truncated", "done"])
def test_two_of_the_three_words_for_an_end_are_enough(missing: str) -> None:
    transitions = two_episodes()
    del transitions["next", missing]
    assert_close(steps_from_transitions(transitions), steps_from_transitions(two_episodes()))


def test_what_is_missing_or_out_of_order_is_named() -> None:
    with pytest.raises(KeyError, match="next/reward"):
        steps_from_transitions(two_episodes().exclude(("next", "reward")))
    with pytest.raises(KeyError, match="mine"):
        steps_from_transitions(two_episodes(), trajectory="mine")
    with pytest.raises(ValueError, match="no time axis"):
        steps_from_transitions(two_episodes()[0])
    with pytest.raises(KeyError, match="name the observations"):
        steps_from_transitions(two_episodes().exclude("observation"))
    with pytest.raises(KeyError, match="ran out of time"):
        steps_from_transitions(two_episodes().exclude(("next", "terminated"), ("next", "truncated")))
    with pytest.raises(ValueError, match=r"transition 1 begins.*order of time"):  # shuffled: episodes that never were
        steps_from_transitions(two_episodes()[torch.tensor([1, 0, 2, 3, 4])])


def test_pictures_stay_bytes_and_keys_may_be_nested() -> None:
    pictures = torch.randint(256, (4, 3, 3, 1), dtype=torch.uint8)
    arrival = {"camera": {"left": pictures[1:]}, "reward": torch.ones(3), "done": torch.zeros(3, dtype=torch.bool)}
    arrival["terminated"] = arrival["done"]
    data = {"camera": {"left": pictures[:-1]}, "move": torch.zeros(3, 2), "next": arrival}
    steps = steps_from_transitions(TensorDict(data, batch_size=[3]), actions=["move"])
    assert torch.equal(steps["camera", "left"], pictures)
    assert steps["reward"].shape == (4, 1)


def test_a_collector_a_replay_buffer_and_a_minari_data_set_give_the_same_steps() -> None:
    """Each observation once, the latents of the policy beside the observation that they saw."""
    env = TransformedEnv(GymEnv("CartPole-v1"), InitTracker())
    agent = build_agent(env.observation_spec, env.action_spec, "nano")
    collector = Collector(env, agent.policy, frames_per_batch=120, total_frames=120, trust_policy=True)
    (collected,) = [batch.clone() for batch in collector]
    collector.shutdown()
    steps = steps_from_transitions(collected)
    ends = collected["next", "done"].squeeze(-1)
    assert len(steps) == collected.numel() + int(ends.sum()) + int(not ends[-1])
    inner = ~steps["is_init"].squeeze(1)
    assert torch.equal(steps["reward"].squeeze(1), inner.float())  # CartPole pays 1 for each arrival
    seen = ~steps["done"].squeeze(1)
    for key in ("observation", "action", "belief", "state", "previous_action"):
        assert torch.equal(steps[key][seen], collected[key]), key

    buffer = ReplayBuffer(storage=LazyTensorStorage(200))
    buffer.extend(collected)
    assert_close(steps_from_transitions(buffer[:]), steps)

    episodes = []
    for part in steps.split(
        (steps["done"].flatten().nonzero().flatten() + 1).diff(prepend=torch.zeros(1).long()).tolist()
    ):
        observations, acted = part["observation"].numpy(), part["action"][:-1].numpy()  # as Minari has them
        over = {"terminated": part["terminated"][1:], "done": part["done"][1:], "reward": part["reward"][1:]}
        arrival = over | {"truncated": over["done"] & ~over["terminated"], "observation": observations[1:]}
        episodes.append(TensorDict({"observation": observations[:-1], "action": acted, "next": arrival}, [len(acted)]))
    assert_close(steps_from_transitions(torch.cat(episodes)), steps.exclude("belief", "state", "previous_action"))
