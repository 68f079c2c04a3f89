"""StreamEnv: nothing of an episode is lost, nothing is shown twice, TorchRL sees one endless environment."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.collectors import Collector
from torchrl.data import Bounded, Composite, OneHot, Unbounded
from torchrl.envs import EnvBase, GymEnv, InitTracker, SerialEnv, TransformedEnv
from torchrl.envs.utils import ExplorationType, check_env_specs, set_exploration_type

from dreamer_torchrl import build_agent
from dreamer_torchrl.data.stream import StreamEnv


class Staircase(EnvBase):
    """Shows the episode and the time; the reward is 10 times the time of arrival; episode k ends after k + 1 actions.

    Even episodes end by the task (terminated), odd ones by a time limit.
    """

    def __init__(self) -> None:
        super().__init__()
        self.observation_spec = Composite(where=Unbounded((2,)))
        self.action_spec = OneHot(2)
        self.reward_spec = Unbounded((1,))
        self.episode, self.time = -1, 0

    def _reset(self, tensordict: TensorDictBase | None = None) -> TensorDict:
        self.episode, self.time = self.episode + 1, 0
        return self._shown()

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        self.time += 1
        return self._shown().set("reward", torch.tensor([10.0 * self.time]))

    def _set_seed(self, seed: int | None) -> None:
        self.episode = -1

    def _shown(self) -> TensorDict:
        done = self.time == self.episode + 1
        terminated = done and self.episode % 2 == 0
        shown = {"where": torch.tensor([float(self.episode), float(self.time)])}
        shown |= {"done": torch.tensor([done]), "terminated": torch.tensor([terminated])}
        return TensorDict(shown)


def test_every_step_of_every_episode_is_there_once() -> None:
    """An episode of n actions has n + 1 steps, the terminal observation among them; the next episode follows."""
    steps = StreamEnv(Staircase()).rollout(9, break_when_any_done=False)
    expected = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (2, 3)]
    assert [tuple(where) for where in steps["where"].int().tolist()] == expected
    assert steps["reward"].squeeze(-1).tolist() == [10.0 * time for _, time in expected]
    assert steps["is_init"].squeeze(-1).tolist() == [time == 0 for _, time in expected]
    assert steps["done"].squeeze(-1).tolist() == [time == episode + 1 for episode, time in expected]
    ended = [time == episode + 1 and episode % 2 == 0 for episode, time in expected]
    assert steps["terminated"].squeeze(-1).tolist() == ended
    assert not steps["next", "stream", "done"].any()


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_specs_hold(name: str) -> None:
    check_env_specs(StreamEnv(GymEnv(name)))


def test_a_collector_runs_streams_with_the_agents_policy() -> None:
    """Root entries are steps: latents stand beside the observation that they saw, time goes on across batches."""
    env = SerialEnv(2, lambda: StreamEnv(GymEnv("CartPole-v1")))
    agent = build_agent(Composite(observation=Unbounded((4,))), env.action_spec_unbatched, "nano")
    with set_exploration_type(ExplorationType.RANDOM):
        collector = Collector(env, agent.policy, frames_per_batch=2 * 40, total_frames=2 * 120)
        batches = [batch.exclude("next").clone() for batch in collector]
    steps = torch.cat(batches, 1)
    collector.shutdown()
    assert steps.shape == (2, 120)
    assert torch.equal(steps["is_init"][:, 1:], steps["done"][:, :-1])
    assert steps["done"].sum() >= 4
    fresh = steps["is_init"].squeeze(-1)
    assert (steps["reward"].squeeze(-1)[fresh] == 0).all()
    t = 50
    rssm = agent.rssm
    expected = rssm.core(
        steps["belief"][:, t - 1] * ~fresh[:, t, None],
        steps["state"][:, t - 1].flatten(1) * ~fresh[:, t, None],
        steps["previous_action"][:, t - 1] * ~fresh[:, t, None],
    )
    torch.testing.assert_close(steps["belief"][:, t], expected)


class Echo(Staircase):
    """Shows the action that reached it."""

    def __init__(self) -> None:
        super().__init__()
        self.action_spec = Bounded(-1, 1, (2,))

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        return super()._step(tensordict).set("where", tensordict["action"])


def test_float_actions_are_clipped_at_the_door_and_kept_in_the_step() -> None:
    env = StreamEnv(Echo())
    step = env.reset().set("action", torch.tensor([0.5, -3.0]))
    after = env.step(step)
    assert after["next", "where"].tolist() == [0.5, -1.0]
    assert after["action"].tolist() == [0.5, -3.0]


def test_same_seed_gives_the_same_stream() -> None:
    streams = []
    for _ in range(2):
        env = StreamEnv(GymEnv("CartPole-v1"))
        env.set_seed(3)
        torch.manual_seed(0)
        streams.append(env.rollout(60, break_when_any_done=False))
    assert torch.equal(streams[0]["observation"], streams[1]["observation"])
    assert streams[0]["is_init"].sum() > 1


def test_a_batch_of_environments_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one environment.*\[2\].*SerialEnv"):
        StreamEnv(SerialEnv(2, lambda: GymEnv("CartPole-v1")))


def test_a_name_that_a_step_needs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'is_init'.*InitTracker"):
        StreamEnv(TransformedEnv(GymEnv("CartPole-v1"), InitTracker()))
