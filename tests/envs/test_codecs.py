"""Every gymnasium space that an agent can read arrives as it was sent, and actions arrive as they were chosen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDictBase
from torchrl.envs import GymWrapper
from torchrl.envs.utils import check_env_specs

from dreamer_torchrl import build_agent
from dreamer_torchrl.collectors.stream_env import StreamEnv
from dreamer_torchrl.envs.codecs import codec_of
from dreamer_torchrl.envs.gym import Gymnasium
from tests.envs.toys import Replayed, Reused, gray

SPACES = {
    "floats": spaces.Box(-2, 2, (3,), np.float64),
    "unbounded": spaces.Box(-np.inf, np.inf, (2, 2), np.float32),
    "scalar": spaces.Box(-1, 1, (), np.float32),
    "image": spaces.Box(0, 255, (48, 64, 3), np.uint8),
    "gray": spaces.Box(0, 255, (48, 64), np.uint8),
    "few": spaces.Box(1, 6, (2,), np.int32),
    "counts": spaces.Box(0, 100_000, (2,), np.int64),
    "bool": spaces.Box(0, 1, (3,), bool),
    "class": spaces.Discrete(4, start=2),
    "classes": spaces.MultiDiscrete([2, 3, 4], start=[0, 5, 1]),
    "alike": spaces.MultiDiscrete([3, 3]),
    "table": spaces.MultiDiscrete([[2, 3], [4, 5]]),
    "bits": spaces.MultiBinary((2, 3)),
    "tuple": spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 1, (2,))]),
    "dict": spaces.Dict(inner=spaces.Dict(deep=spaces.Discrete(2)), other=spaces.Box(0, 1, (2,))),
}


@pytest.mark.parametrize("name", SPACES)
def test_values_come_back(name: str) -> None:
    """From a value to a tensor that its spec holds, and back to the same value."""
    space, codec = SPACES[name], codec_of(SPACES[name], name)
    space.seed(0)
    for _ in range(5):
        value = space.sample()
        tensor = codec.to_tensor(value)
        assert codec.spec.is_in(tensor)
        back = codec.to_value(tensor)
        flat, expected = spaces.flatten(space, back), spaces.flatten(space, value)
        assert np.asarray(flat) == pytest.approx(np.asarray(expected))
        assert space.contains(back)


@pytest.mark.parametrize("name", SPACES)
def test_an_agent_reads_and_acts(name: str) -> None:
    """As observation and, but for images and counts, as action: specs hold, a nano agent plays."""
    action = spaces.Discrete(2) if name in ("image", "gray", "counts", "unbounded") else SPACES[name]
    inner = Replayed(SPACES[name], action)
    check_env_specs(Gymnasium(inner))
    stream = StreamEnv(Gymnasium(inner))
    steps = stream.rollout(5, build_agent(stream.observation_spec, stream.full_action_spec, "nano").policy)
    assert steps["is_init"].flatten().tolist() == [True, False, False, False, True]
    assert not steps["terminated"].any()
    assert all(action.contains(done) for done in inner.actions)


def test_what_a_spec_says() -> None:
    """Floats become float32, gray images get a channel, numbers too many for classes become floats."""
    specs = {name: codec_of(space, name).spec for name, space in SPACES.items()}
    assert specs["floats"].dtype == specs["counts"].dtype == torch.float32
    assert (tuple(specs["gray"].shape), specs["gray"].dtype) == ((48, 64, 1), torch.uint8)
    assert specs["few"].dtype == torch.int64
    assert tuple(specs["scalar"].shape) == (1,)
    assert tuple(specs["classes"].shape) == (9,)


@pytest.mark.parametrize("name", ["floats", "image", "class", "classes", "alike"])
def test_specs_are_those_of_torchrl(name: str) -> None:
    """A policy trained here also runs in TorchRL's own wrapper: same keys, shapes and kinds of specs."""
    theirs, ours = (wrapper(Replayed(SPACES[name], spaces.Discrete(2))) for wrapper in (GymWrapper, Gymnasium))
    assert list(ours.observation_spec.keys()) == list(theirs.observation_spec.keys())
    assert [spec.shape for spec in ours.observation_spec.values()] == [
        spec.shape for spec in theirs.observation_spec.values()
    ]
    assert ours.action_spec.shape == theirs.action_spec.shape
    assert ours.action_keys == theirs.action_keys


def test_composite_actions_stand_under_action() -> None:
    """So that they cannot collide with observations of the same name; the environment gets them as its space says."""
    both = spaces.Dict(move=spaces.Box(-1, 1, (2,)), press=spaces.Discrete(3))
    inner = Replayed(both, both)
    env = Gymnasium(inner)
    assert set(env.action_keys) == {("action", "move"), ("action", "press")}
    step = env.reset()
    step["action", "move"] = torch.tensor([0.25, -0.5])
    step["action", "press"] = torch.tensor([False, False, True])
    env.step(step)
    assert inner.actions[0]["press"] == 2
    assert inner.actions[0]["move"].tolist() == [0.25, -0.5]


def test_taken_names_are_renamed_and_empty_ones_left_out() -> None:
    names = ("reward", "state", "observation", "belief", "position")
    space = spaces.Dict({name: spaces.Box(0, 1, (1,)) for name in names} | {"empty": spaces.Box(0, 1, (0,))})
    env = Gymnasium(Replayed(space, spaces.Discrete(2)))
    assert set(env.observation_spec.keys()) == {
        *("observed_reward", "observed_state", "observation", "observed_belief", "position")
    }
    build_agent(env.observation_spec, env.full_action_spec, "nano")


def test_observations_keep_no_memory_of_the_environment() -> None:
    """An environment that writes into one array does not change what was seen before."""
    steps = Gymnasium(Reused()).rollout(3)
    assert steps["observation"].flatten().tolist() == [1, 2, 3]
    assert steps["next", "truncated"].flatten().tolist() == [False, False, True]
    assert steps["next", "reward"].flatten().tolist() == [1, 1, 1]


def test_a_seed_costs_no_reset_and_counts_once() -> None:
    inner = gray()
    env = Gymnasium(inner)
    env.set_seed(7)
    assert inner.seeds == []
    first = env.reset()["pixels"]
    second: TensorDictBase = env.reset()["pixels"]
    assert inner.seeds == [7, None]
    assert not torch.equal(first, second)
    env.set_seed(7)
    assert torch.equal(env.reset()["pixels"], first)


def test_spaces_that_no_agent_reads_are_refused() -> None:
    with pytest.raises(TypeError, match=r"'observation/words' is a Text space"):
        Gymnasium(Replayed(spaces.Dict(words=spaces.Text(5)), spaces.Discrete(2)))
