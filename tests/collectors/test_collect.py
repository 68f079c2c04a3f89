"""Collector: what a policy sees and does becomes complete steps, and a saved collector goes on to the last bit."""

from __future__ import annotations

import io
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from tensordict import TensorDictBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dreamer_torchrl import build_agent
from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.collectors.collect import Collector, Episode
from dreamer_torchrl.collectors.stream_env import StreamEnv, episode_seed
from dreamer_torchrl.collectors.stream_envs import Streams
from dreamer_torchrl.envs import make_env
from tests.agents.acting_examples import TINY
from tests.collectors.troubles import assert_equal, walks


def pole(place: int, repeat: int = 1) -> StreamEnv:
    return StreamEnv(make_env("gym", {"id": "CartPole-v1"}), repeat, (place,))


def poles(count: int, repeat: int = 1) -> Streams:
    return Streams([partial(pole, place, repeat) for place in range(count)])


def agent_for(streams: Streams) -> Agent:
    torch.manual_seed(0)
    return build_agent(streams.observation_spec, streams.action_spec, TINY)


def collector_for(streams: Streams, seed: int = 1, deterministic: bool = False) -> Collector:
    """A collector whose policy has the same weights each time."""
    policy = agent_for(streams).policy
    policy.generator = torch.Generator().manual_seed(seed)
    return Collector(streams, policy, deterministic)


def collect(collector: Collector, count: int) -> tuple[TensorDictBase, list[Episode]]:
    """The next ``count`` complete steps ``[count, N]`` and the episodes that they finish."""
    steps, episodes = [], []
    for _ in range(count):
        collector.send()
        steps.append(collector.receive())
        episodes += collector.finished
    return torch.stack(steps), episodes


def test_latents_and_actions_stand_beside_the_observation_they_saw() -> None:
    """Step by step, from the observation of a record and the latents of the one before to its own."""
    streams = poles(2)
    collector = collector_for(streams, deterministic=True)
    collector.start()
    steps, _ = collect(collector, 60)
    assert steps["is_init"].sum() > 3
    policy = collector.policy
    belief, state = policy.rssm.initial(2)
    action = torch.zeros(2, 2)
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        for step in steps:
            encoded = policy.encoder(step["observation"])
            belief, state, action = policy.step(encoded, action, step["is_init"], belief, state)
            torch.testing.assert_close(step["belief"], belief)
            assert torch.equal(step["state"].flatten(1), state.flatten(1))
            assert torch.equal(step["action"].float(), action)
    assert "previous_action" not in steps


def test_draws_come_from_the_policys_generator_alone() -> None:
    runs = []
    for seed in (1, 1, 2):
        collector = collector_for(poles(2), seed)
        collector.start()
        torch.manual_seed(len(runs))
        runs.append(collect(collector, 30)[0])
    assert_equal(runs[0], runs[1])
    assert not torch.equal(runs[0]["action"], runs[2]["action"])


@pytest.mark.parametrize("repeat", [1, 3])
def test_episodes_are_those_of_gymnasium_played_by_hand(repeat: int) -> None:
    """Observations, rewards, ends, sums of rewards and lengths follow from the recorded actions and the seeds."""
    collector = collector_for(poles(2, repeat))
    collector.start()
    steps, episodes = collect(collector, 70)
    expected, env = [], gymnasium.make("CartPole-v1")
    for place in range(2):
        number, total, length, over = -1, 0.0, 0, True
        for time, step in enumerate(steps[:, place]):
            reward, terminated = 0.0, False
            if over:
                number, total, length = number + 1, 0.0, 0
                seen, _ = env.reset(seed=episode_seed((place,), number))
                assert step["is_init"]
            else:
                for _ in range(repeat):
                    seen, own, terminated, _, _ = env.step(int(steps["action"][time - 1, place].int().argmax()))
                    reward += own
                    if terminated:
                        break
                length += 1
            total += reward
            over = terminated
            assert torch.equal(step["observation"], torch.from_numpy(seen))
            assert (float(step["reward"]), bool(step["done"]), bool(step["terminated"])) == (reward, over, over)
            if over:
                expected.append((time, Episode(place, total, length)))
    assert len(expected) >= 4
    assert episodes == [episode for _, episode in sorted(expected)]


@pytest.mark.parametrize("trouble", ["step", "reward", "reset"])
def test_a_failure_ends_the_episode_but_not_the_task(trouble: str, tmp_path: Path) -> None:
    """The last step that arrived is the last of its episode; only one that had ended anyway counts as finished."""
    streams = walks({"trouble": trouble, "mark": tmp_path / "mark"}, {})
    collector = collector_for(streams)
    collector.start()
    steps, finished, failed_at = [], [], None
    for time in range(50):
        collector.send()
        steps.append(collector.receive())
        finished.append([episode for episode in collector.finished if episode.environment == 0])
        if streams.failures and failed_at is None:
            failed_at = time
    data = torch.stack(steps)
    assert torch.equal(data["is_init"][1:], data["done"][:-1])
    ended = data["terminated"] if trouble == "reset" else torch.zeros_like(data["done"])
    assert torch.equal(data["terminated"][failed_at, 0], ended[failed_at, 0])
    assert data["done"][failed_at, 0]
    for time, episodes in enumerate(finished):
        whole = bool(data["done"][time, 0]) and (time != failed_at or trouble == "reset")
        assert len(episodes) == whole, time
        for episode in episodes:
            first = time - episode.length
            assert data["is_init"][first, 0]
            assert not data["is_init"][first + 1 : time + 1, 0].any()
            assert episode.total_reward == pytest.approx(float(data["reward"][first : time + 1, 0].sum()), rel=1e-5)


def saved(collector: Collector) -> dict[str, Any]:
    """What a checkpoint keeps of it, by the way of a file."""
    file = io.BytesIO()
    torch.save({"collector": collector.state_dict(), "generator": collector.policy.generator.get_state()}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def loaded(collector: Collector, state: dict[str, Any]) -> list[int]:
    collector.policy.generator.set_state(state["generator"])
    return collector.load_state_dict(state["collector"])


@pytest.mark.parametrize("processes", [False, True])
def test_a_saved_collector_goes_on_to_the_last_bit(processes: bool) -> None:
    """At any moment, with nested observations and composite actions, and a second time from where it was resumed."""
    collector = collector_for(walks({}, {}, {}))
    collector.start()
    states = [saved(collector)]
    steps, episodes = [], []
    for _ in range(24):
        step, ended = collect(collector, 1)
        steps.append(step)
        episodes.append(ended)
        states.append(saved(collector))
    expected = torch.cat(steps)
    other = collector_for(walks({}, {}, {}, processes=processes), seed=9)
    for when in (0, 3, 11) if processes else range(0, 23, 2):
        assert loaded(other, states[when]) == []
        step, ended = collect(other, 1)
        assert_equal(step[0], expected[when])
        again = saved(other)
        other = other if processes else collector_for(walks({}, {}, {}), seed=9)
        assert loaded(other, again) == []
        later, more = collect(other, 23 - when)
        assert_equal(later, expected[when + 1 :])
        assert ended + more == list(chain.from_iterable(episodes[when:]))
    other.streams.close()


def test_failures_are_counted_over_the_whole_run(tmp_path: Path) -> None:
    collector = collector_for(walks({"trouble": "step", "mark": tmp_path / "mark"}))
    collector.start()
    collect(collector, 20)
    assert collector.streams.failures == 1
    other = collector_for(walks({}))
    assert loaded(other, saved(collector)) == []
    assert other.streams.failures == 1


def test_an_episode_that_does_not_come_back_is_closed() -> None:
    """Its last recorded step is kept and ends it without `terminated`; a new one starts; the others go on as ever."""
    kinds: tuple[dict[str, Any], ...] = ({}, {"private": True}, {})
    collector = collector_for(walks(*kinds))
    collector.start()
    while True:
        collect(collector, 1)
        if not (collector.now["done"].any() or collector.now["is_init"].any()):
            break
    state, recorded = saved(collector), collector.now.clone()
    length = int(collector.length[1])
    expected, _ = collect(collector, 12)
    other = collector_for(walks(*kinds))
    assert loaded(other, state) == [1]
    assert loaded(other, saved(other)) == [1]  # saved again before it acted
    first, episodes = collect(other, 1)
    for key in ("place", "reward", "is_init", ("inside", "level")):
        assert torch.equal(first[0, 1][key], recorded[1][key])
    assert first["done"][0].flatten().tolist() == [False, True, False]
    assert not first["terminated"][0, 1]
    assert [(episode.environment, episode.length) for episode in episodes] == [(1, length + 1)]
    later, _ = collect(other, 11)
    assert later["is_init"][0].flatten().tolist()[1]
    steps = torch.cat([first, later])
    # Chance is drawn for all streams together, so that the others act as they did.
    assert_equal(steps[:, [0, 2]].exclude("belief"), expected[:, [0, 2]].exclude("belief"))
    torch.testing.assert_close(steps["belief"][:, [0, 2]], expected["belief"][:, [0, 2]])


def test_resumed_steps_are_the_same_in_a_process_of_their_own(tmp_path: Path) -> None:
    """A file written here and read by another process, as a resumed run does."""
    collector = collector_for(walks({}, {}))
    collector.start()
    collect(collector, 13)
    torch.save(saved(collector), tmp_path / "state.pt")
    expected, _ = collect(collector, 15)
    context = torch.multiprocessing.get_context("forkserver")
    process = context.Process(target=go_on, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    values = torch.load(tmp_path / "steps.pt", weights_only=True)
    assert_equal(expected.flatten_keys(), type(expected)(values, expected.batch_size))


def go_on(folder: Path) -> None:
    """The other process."""
    collector = collector_for(walks({}, {}), seed=5)
    assert loaded(collector, torch.load(folder / "state.pt", weights_only=True)) == []
    torch.save(collect(collector, 15)[0].flatten_keys().to_dict(), folder / "steps.pt")
