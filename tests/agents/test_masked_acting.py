"""An environment's action mask holds wherever an agent acts, and is no observation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dreamer_torchrl.agents.agent import Agent, Size
from dreamer_torchrl.agents.backend import attach
from dreamer_torchrl.agents.exporting import compare, describe, export_policy
from dreamer_torchrl.agents.player import Player
from dreamer_torchrl.agents.policy import Policy
from dreamer_torchrl.collectors.stream_env import StreamEnv
from dreamer_torchrl.envs import make_env
from dreamer_torchrl.envs.gym import wrapped
from tests.objectives.examples import TINY

MODES = {False: ExplorationType.DETERMINISTIC, True: ExplorationType.RANDOM}
every_draw = pytest.mark.parametrize("sample", [False, True], ids=["modes", "draws"])


class Doors(gymnasium.Env):
    """Two doors of three and four; each step some are locked, and opening one of these is an error."""

    action_space = spaces.MultiDiscrete([3, 4])

    def __init__(self, dtype: type = np.int8, length: int = 9):
        self.observation_space = spaces.Dict(
            light=spaces.Box(0, 1, (2,), np.float32), action_mask=spaces.Box(0, 1, (7,), dtype)
        )
        self.dtype, self.length = dtype, length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self.show(), {}

    def show(self) -> dict[str, np.ndarray]:
        self.open = self.np_random.random(7) < 0.5
        self.open[[self.np_random.integers(3), 3 + self.np_random.integers(4)]] = True
        light = self.np_random.random(2, dtype=np.float32)
        return {"light": light, "action_mask": self.open.astype(self.dtype)}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.open[action[0]], "the first door is locked"
        assert self.open[3 + action[1]], "the second door is locked"
        self.time += 1
        return self.show(), 0.0, self.time == self.length, False, {}


def doors(size: Size = TINY) -> tuple[StreamEnv, Agent]:
    env = StreamEnv(wrapped(Doors()), entropy=(0,))
    return env, Agent(env.observation_spec, env.full_action_spec, size)


@every_draw
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_rollouts_keep_to_the_mask(sample: bool, noise: float) -> None:
    """The environment raises an error otherwise; the mask is in the steps, but not seen."""
    env, agent = doors()
    assert list(agent.spaces) == agent.encoder.in_keys == ["light"]
    policy = Policy(agent.encoder, agent.rssm, agent.actor, noise=noise)
    with set_exploration_type(MODES[sample]):
        steps = env.rollout(60, policy)
    assert steps["action_mask"].shape == (60, 7)
    assert steps["action"].shape == (60, 7)
    inside = ~steps["done"].squeeze(-1)
    assert (steps["action"].bool() & ~steps["action_mask"].bool())[inside].sum() == 0
    with pytest.raises(KeyError, match="action_mask"):
        policy(steps[0].exclude("action_mask"))


@every_draw
def test_kernels_step_aside(sample: bool) -> None:
    """With and without them the same actions, to the last bit."""
    env, agent = doors()
    found = []
    for native in (False, True):
        attach(agent, native)
        env.set_seed(1)
        policy = Policy(agent.encoder, agent.rssm, agent.actor, torch.Generator().manual_seed(3))
        with set_exploration_type(MODES[sample]):
            found.append(env.rollout(40, policy)["action"])
    assert torch.equal(*found)


@pytest.mark.parametrize("sample", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["modes", "draws"])
def test_player_and_export_agree_with_the_policy(sample: bool, tmp_path: Path) -> None:
    env, agent = doors(Size.named("nano"))
    env.set_seed(0)
    policy = Policy(agent.encoder, agent.rssm, agent.actor, torch.Generator().manual_seed(5))
    with set_exploration_type(MODES[sample]):
        steps = env.rollout(8, policy)
    player, state = Player(agent, sample=sample, seed=5), None
    for step in steps.unbind(0):
        seen = {"light": step["light"].numpy(), "action_mask": step["action_mask"].numpy()}
        action, state = player.act(seen, state)
        assert torch.equal(state.previous_action[0], step["action"].float())
        assert action.tolist() == [step["action"][:3].int().argmax(), step["action"][3:].int().argmax()]
    with pytest.raises(KeyError, match="action_mask"):
        player.act({"light": seen["light"]}, state)
    with pytest.raises(ValueError, match=r"'action_mask' has shape \[6\]"):
        player.act(seen | {"action_mask": np.ones(6, bool)}, state)
    path = export_policy(agent, tmp_path / "policy.pt2", sample)
    assert compare(agent, path) < 1e-5
    assert describe(agent)["inputs"]["observations"]["action_mask"]["shape"] == ["N", 7]


def test_gymnasium_shows_the_mask_of_its_info() -> None:
    """Taxi forbids to drive into walls and to pick up nobody: 6 actions, of which some never change the state."""
    env = StreamEnv(make_env("gym", {"id": "Taxi-v4", "action_mask": True}), entropy=(0,))
    agent = Agent(env.observation_spec, env.full_action_spec, TINY)
    with set_exploration_type(ExplorationType.RANDOM):
        steps = env.rollout(50, agent.policy)
    taxi = env.env._env.unwrapped
    states = steps["observation"].int().argmax(-1).tolist()
    assert [taxi.action_mask(state).tolist() for state in states] == steps["action_mask"].int().tolist()
    assert not (steps["action"] & ~steps["action_mask"])[~steps["done"].squeeze(-1)].any()
    assert "action_mask" not in make_env("gym", {"id": "Taxi-v4"}).reset()


@pytest.mark.parametrize(
    ("info", "message"), [({}, "no info"), ({"action_mask": [1, 1, 1]}, r"shape \[3\].*2 classes")]
)
def test_a_missing_or_misshapen_mask_is_named(info: dict[str, Any], message: str) -> None:
    class Informed(gymnasium.Wrapper):
        def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
            return super().reset(**options)[0], info

    env = wrapped(Informed(gymnasium.make("CartPole-v1")), action_mask=True)
    with pytest.raises(ValueError, match=f"{message}.*env.action_mask=false"):
        env.reset()
