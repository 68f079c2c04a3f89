"""StreamEnv: nothing of an episode is lost, nothing is shown twice, TorchRL sees one endless environment."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Bounded, Categorical, Composite, OneHot, TensorSpec, Unbounded
from torchrl.envs import EnvBase, GymEnv, InitTracker, SerialEnv, TransformedEnv

from dreamer_torchrl.collectors.stream_env import NotFinite, StreamEnv, episode_seed
from dreamer_torchrl.modules.spaces import scale_action
from tests.collectors.troubles import walk


class Staircase(EnvBase):
    """Shows the episode and the time; the reward is 10 times the time of arrival; episode k ends after k + 1 actions.

    Even episodes end by the task (terminated), odd ones by a time limit. A seed changes nothing.
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

    def _set_seed(self, seed: int | None) -> None: ...

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
    assert not steps["next", "endless", "done"].any()


class Terse(Staircase):
    """Tells only one of the two flags."""

    def __init__(self, flag: str) -> None:
        super().__init__()
        self.flag = flag

    def _shown(self) -> TensorDict:
        shown = super()._shown()
        return TensorDict({"where": shown["where"], self.flag: shown["done"]})


@pytest.mark.parametrize("flag", ["done", "terminated"])
def test_of_two_flags_one_may_be_missing(flag: str) -> None:
    """As TorchRL reads it: what is done is then terminated, and the other way round."""
    steps = StreamEnv(Terse(flag)).rollout(9, break_when_any_done=False)
    for key in ("done", "terminated"):
        assert steps[key].squeeze(-1).tolist() == [episode + 1 == time for episode, time in steps["where"].tolist()]


LARGEST = torch.finfo(torch.float32).max


class Taking(Staircase):
    """Takes any kind of action, and remembers what it took."""

    def __init__(self, spec: TensorSpec):
        super().__init__()
        self.action_spec = spec
        self.taken: list[torch.Tensor] = []

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        self.taken.append(tensordict["action"])
        return super()._step(tensordict)


@pytest.mark.parametrize(
    ("low", "high"), [(-2.0, 2.0), (-0.4, 0.1), (-1.7, 0.3), (-1.3, 1e6), (3.0, 3.3), (1e-30, 1e30), (-1e37, 3e37)]
)
def test_scaled_actions_reach_both_bounds_exactly(low: float, high: float) -> None:
    bounds = torch.tensor([low, high])
    ends = scale_action(torch.tensor([-1.0, 1.0, -5.0, 5.0]), bounds[0], bounds[1])
    assert torch.equal(ends, bounds[[0, 1, 0, 1]])
    between = scale_action(torch.linspace(-1, 1, 1001), bounds[0], bounds[1])
    assert between.isfinite().all() and (between >= bounds[0]).all() and (between <= bounds[1]).all()
    assert (between.diff() >= 0).all()
    middle = scale_action(torch.tensor(0.0), bounds[0], bounds[1])
    torch.testing.assert_close(middle.double(), bounds.double().mean(), rtol=1e-6, atol=0)


def test_actions_with_finite_bounds_are_scaled_at_the_door() -> None:
    """Each component has bounds of its own; the step keeps what was chosen; the agent sees -1 to 1."""
    assert list(walk(0, {}).bounds) == [("action", "move")]  # of a composite action
    env = StreamEnv(Taking(Bounded(torch.tensor([0.0, -3.0]), torch.tensor([10.0, -1.0]), (2,))))
    assert env.action_spec.space.low.tolist() == [-1, -1]
    assert env.action_spec.space.high.tolist() == [1, 1]
    after = env.step(env.reset().set("action", torch.tensor([0.5, -7.0])))
    assert env.env.taken[0].tolist() == [7.5, -3.0]
    assert after["action"].tolist() == [0.5, -7.0]


@pytest.mark.parametrize(
    "spec",
    [
        Bounded(torch.tensor([0.0]), torch.tensor([float("inf")]), (1,)),
        Bounded(torch.tensor([-LARGEST]), torch.tensor([LARGEST]), (1,)),
        Bounded(torch.tensor([-LARGEST]), torch.tensor([1.0]), (1,)),
        Unbounded((1,)),
        Bounded(0, 9, (1,), dtype=torch.int64),
        Categorical(7, (1,)),
    ],
    ids=["one-sided", "largest float", "largest low", "unbounded", "bounded integers", "classes"],
)
def test_other_actions_are_left_alone(spec: TensorSpec) -> None:
    env = StreamEnv(Taking(spec))
    assert env.bounds == {}
    assert env.action_spec == spec
    action = torch.full((1,), 5, dtype=spec.dtype)
    env.step(env.reset().set("action", action))
    assert torch.equal(env.env.taken[0], action)


@pytest.mark.parametrize("repeat", [1, 2, 4])
def test_repeated_actions_add_their_rewards_and_end_with_the_episode(repeat: int) -> None:
    steps = StreamEnv(Staircase(), repeat).rollout(40, break_when_any_done=False)
    time, episode = 0, 0
    for step in steps:
        reward = 0.0
        if step["is_init"]:
            time = 0
        else:
            last = min(time + repeat, episode + 1)
            reward, time = sum(10.0 * own for own in range(time + 1, last + 1)), last
        assert step["where"].tolist() == [episode, time]
        assert float(step["reward"]) == reward
        assert bool(step["done"]) == (time == episode + 1)
        episode += int(step["done"])


def test_seeds_of_episodes_differ_by_run_stream_and_count() -> None:
    seeds = {episode_seed((run, place), count) for run in range(5) for place in range(5) for count in range(5)}
    assert len(seeds) == 125
    assert all(0 <= seed < 2**31 for seed in seeds)  # what gymnasium and numpy both take
    assert episode_seed((1, 2), 3) == episode_seed([1, 2], 3)


class Faulty(Staircase):
    """Gives what is not a number, at one place or the other."""

    def __init__(self, key: str, value: float):
        super().__init__()
        self.key, self.value = key, value

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        step = super()._step(tensordict)
        return step.set(self.key, step[self.key] * self.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("key", ["reward", "where"])
def test_what_is_not_finite_is_named(key: str, value: float) -> None:
    env = StreamEnv(Faulty(key, value))
    with pytest.raises(NotFinite, match=rf"gave {key} = \[.*({value}|nan)"):
        env.step(env.rand_action(env.reset()))


def test_a_batch_of_environments_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one environment.*\[2\].*SerialEnv"):
        StreamEnv(SerialEnv(2, lambda: GymEnv("CartPole-v1")))


def test_a_name_that_a_step_needs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'is_init'.*InitTracker"):
        StreamEnv(TransformedEnv(GymEnv("CartPole-v1"), InitTracker()))
