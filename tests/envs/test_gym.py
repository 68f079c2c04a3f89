"""Gymnasium's environments and those of a user: specs, seeds, ends of episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase
from torchrl.envs.utils import check_env_specs

from dreamer_torchrl import build_agent
from dreamer_torchrl.collectors.stream_env import StreamEnv
from dreamer_torchrl.envs import make_env

IDS = [
    *("CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCarContinuous-v0", "LunarLander-v3"),
    *("LunarLanderContinuous-v3", "BipedalWalker-v3", "CarRacing-v3", "Taxi-v4", "Blackjack-v1", "FrozenLake-v1"),
    *("dreamer_torchrl/GridReach-v0", "dreamer_torchrl/Memory-v0"),
]
CASES: list[tuple[str, dict[str, Any]]] = [
    *(("gym", {"id": id}) for id in IDS),
    ("gym", {"id": "CarRacing-v3", "arguments": {"continuous": False}}),
    ("custom", {"factory": "tests.envs.toys:gray"}),
    ("custom", {"factory": "tests.envs.toys:Counter", "arguments": {"limit": 9}}),
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
    if "Counter" not in str(options):
        assert not alike(first, play(new, 6, steps))
    for env in (used, new):
        env.close()


def test_bipedalwalker_forgets_the_episode_before() -> None:
    """In gymnasium 1.4 about 8 of 20 episodes differ on an environment that was used before."""
    used = make_env("gym", {"id": "BipedalWalker-v3"})
    for seed in range(8):
        assert alike(play(make_env("gym", {"id": "BipedalWalker-v3"}), seed, 60), play(used, seed, 60))


@pytest.mark.parametrize(("id", "length"), [("Pendulum-v1", 200), ("dreamer_torchrl/GridReach-v0", 9)])
def test_time_limits_truncate(id: str, length: int) -> None:
    env = make_env("gym", {"id": id})
    ends = [play(env, seed, 1000)["next"][-1] for seed in range(8)]
    late = [end for end in ends if bool(end["truncated"])]
    assert late
    assert all(bool(end["done"]) and not bool(end["terminated"]) for end in late)
    assert len(play(env, 0, 1000)) <= length


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
