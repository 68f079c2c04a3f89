"""Gymnasium's environments and those of a user: specs, seeds, ends of episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from tensordict import TensorDictBase
from torchrl.envs import EnvBase
from torchrl.envs.utils import check_env_specs

from dreamer_torchrl import build_agent
from dreamer_torchrl.collectors.stream_env import StreamEnv
from dreamer_torchrl.envs import make_env
from dreamer_torchrl.envs.gym import wrapped
from tests.envs.toys import Replayed

IDS = [
    *("CartPole-v1", "Pendulum-v1", "LunarLander-v3", "BipedalWalker-v3", "CarRacing-v3", "Taxi-v4", "Blackjack-v1"),
    *("dreamer_torchrl/GridReach-v0", "dreamer_torchrl/Maze-v0", "dreamer_torchrl/Memory-v0"),
    *("dreamer_torchrl/MiniGrid-v0", "dreamer_torchrl/CarRacing-v0"),
]
RACING = "dreamer_torchrl/CarRacing-v0"
CASES: list[tuple[str, dict[str, Any]]] = [
    *(("gym", {"id": id}) for id in IDS),
    ("gym", {"id": "dreamer_torchrl/MiniGrid-v0", "arguments": {"name": "Empty-8x8", "pixels": True}}),
    ("custom", {"factory": "tests.envs.toys:gray"}),
    ("custom", {"factory": "tests.envs.toys:gray", "size": 48}),
    ("custom", {"factory": "torchrl.envs:GymEnv", "arguments": {"env_name": "CartPole-v1"}}),
]


def play(env: EnvBase, seed: int, steps: int) -> TensorDictBase:
    """An episode of random actions; both follow from the seed."""
    env.set_seed(seed)
    torch.manual_seed(seed)
    return env.rollout(steps)


def alike(first: TensorDictBase, second: TensorDictBase) -> bool:
    """To the last bit."""
    return first.shape == second.shape and bool((first == second).all())


@pytest.mark.parametrize(("family", "options"), CASES, ids=str)
def test_specs_agent_and_seed(family: str, options: dict[str, Any]) -> None:
    """Specs hold, an agent plays, and an episode follows from its seed, on a used environment as on a new one."""
    used, new = make_env(family, options), make_env(family, options)
    steps = 15 if "CarRacing" in str(options) else 60
    check_env_specs(used)
    stream = StreamEnv(used)
    stream.rollout(5, build_agent(stream.observation_spec, stream.full_action_spec, "nano").policy)
    first = play(used, 5, steps)
    assert alike(first, play(new, 5, steps))
    assert alike(first, play(used, 5, steps))
    assert not alike(first, play(new, 6, steps))
    for env in (used, new):
        env.close()


def test_car_racing_drawn_once_in_four_frames_is_the_same() -> None:
    """Bytes of observations, rewards and ends of CarRacing-v3 with an action held for four frames."""
    make_env("gym", {"id": RACING})  # registers it
    envs = [
        gymnasium.make(f"{name}", disable_env_checker=True) for name in ("CarRacing-v3", "dreamer_torchrl/CarRacing-v0")
    ]
    assert np.array_equal(*(env.reset(seed=3)[0] for env in envs))
    generator = np.random.default_rng(0)
    for _ in range(30):
        action = np.array([generator.uniform(-1, 1), generator.uniform(0, 1), 0], np.float32)
        frames = [envs[0].step(action) for _ in range(4)]
        picture, reward, *ends = envs[1].step(action)[:4]
        assert np.array_equal(picture, frames[-1][0])
        assert reward == pytest.approx(sum(frame[1] for frame in frames))
        assert ends == list(frames[-1][2:4])
    for env in envs:
        env.close()


def test_car_racing_ends_inside_four_frames_with_the_picture_of_the_end() -> None:
    env = make_env("gym", {"id": RACING})._env
    env.reset(seed=0)
    before = env.step(np.array([0, 1, 0], np.float32))[0]
    env.unwrapped.car.hull.position = (1e4, 0.0)  # far outside
    picture, reward, terminated, *_ = env.step(np.array([0, 1, 0], np.float32))
    assert terminated and reward == -100
    assert not np.array_equal(picture, before) and np.array_equal(picture, env.unwrapped._render("state_pixels"))


def test_crafter_follows_from_its_seed() -> None:
    env = make_env("gym", {"id": "dreamer_torchrl/Crafter-v0"})
    first = play(env, 5, 4)
    assert first["pixels"].shape == (4, 64, 64, 3) and first["pixels"].float().std() > 10
    assert alike(first, play(env, 5, 4))


def test_images_are_resized() -> None:
    """Each by itself, inside a dictionary too; one of that size stays as it is; a mean color stays."""
    left, map = Box(0, 255, (30, 96, 3), np.uint8), Box(0, 255, (48, 48), np.uint8)
    space = gymnasium.spaces.Dict(eye=gymnasium.spaces.Dict(left=left), map=map, speed=Box(-1, 1, (2,)))
    plain, small = (wrapped(Replayed(space, Discrete(2)), size) for size in (None, 48))
    check_env_specs(small)
    before, after = (play(env, 3, 1)[0] for env in (plain, small))
    assert after["eye", "left"].shape == (48, 48, 3) and after["eye", "left"].dtype == torch.uint8
    assert torch.equal(after["map"], before["map"]) and torch.equal(after["speed"], before["speed"])
    assert after["eye", "left"].float().mean().sub(before["eye", "left"].float().mean()).abs() < 2
    assert after["eye", "left"].float().std() < before["eye", "left"].float().std()  # averaged, since it is narrower


def test_bipedalwalker_forgets_the_episode_before() -> None:
    """In gymnasium 1.4 about 8 of 20 episodes differ on an environment that was used before."""
    used = make_env("gym", {"id": "BipedalWalker-v3"})
    for seed in range(8):
        assert alike(play(make_env("gym", {"id": "BipedalWalker-v3"}), seed, 60), play(used, seed, 60))


@pytest.mark.parametrize(("id", "length"), [("Pendulum-v1", 200), ("dreamer_torchrl/GridReach-v0", 9)])
def test_time_limits_truncate(id: str, length: int) -> None:
    env = make_env("gym", {"id": id})
    episodes = [play(env, seed, 1000) for seed in range(2 if length == 200 else 8)]
    late = [end for end in (episode["next"][-1] for episode in episodes) if bool(end["truncated"])]
    assert late and all(bool(end["done"]) and not bool(end["terminated"]) for end in late)
    assert max(map(len, episodes)) == length


def test_a_factory_in_the_present_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "of_mine"
    folder.mkdir()
    (folder / "maze_of_mine.py").write_text(
        "import gymnasium\n\ndef make(id):\n    return gymnasium.make(id)\n\ndef nothing():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # taken back after the test
    env = make_env("custom", {"factory": "of_mine.maze_of_mine:make", "arguments": {"id": "CartPole-v1"}})
    assert env.rollout(2)["observation"].shape == (2, 4)
    with pytest.raises(TypeError, match=r"'of_mine.maze_of_mine:nothing' gave a int"):
        make_env("custom", {"factory": "of_mine.maze_of_mine:nothing"})


class Sound(gymnasium.Env):
    """Three zeros, whatever is done."""

    observation_space, action_space = Box(-1, 1, (3,), np.float32), Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return np.zeros(3), {}

    def step(self, action: int) -> tuple[Any, ...]:
        return np.zeros(3), 1.0, False, False, {}


class OldStep(Sound):
    def step(self, action: int) -> tuple[Any, ...]:
        return np.zeros(3), 1.0, False, {}


class NoInfo(Sound):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return np.zeros(3)


class NoSeed(Sound):
    def reset(self) -> Any:
        return np.zeros(3), {}


class NoSpace(Sound):
    action_space = None


class WrongShape(Sound):
    def step(self, action: int) -> tuple[Any, ...]:
        return np.zeros(4), 1.0, False, False, {}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (OldStep, r"OldStep.step returned 4 values, as old .*: return observation, reward, terminated"),
        (NoInfo, r"NoInfo.reset returned no info"),
        (NoSeed, r"NoSeed.reset takes no seed.*call `super\(\).reset\(seed=seed\)`"),
        (NoSpace, r"NoSpace has no action_space: set self.action_space"),
        (WrongShape, r"Observation 'observation' is float64 \[4\], its space says \[3\]"),
    ],
)
def test_common_mistakes_are_named_with_the_remedy(kind: type[Sound], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        wrapped(kind()).rollout(2)
