"""Atari: the official preprocessing, and episodes that follow from their seed."""

from __future__ import annotations

import ale_py
import numpy as np
import pytest
import torch
from PIL import Image
from torchrl.envs.utils import check_env_specs

from dreamer_torchrl import build_agent
from dreamer_torchrl.collectors.stream_env import stream_env
from dreamer_torchrl.config.compose import load
from dreamer_torchrl.envs import frame, make_env
from dreamer_torchrl.envs.atari import AtariGame

DEFAULTS = {"size": 96, "gray": True, "sticky": True, "actions": "all", "noops": 30, "frame_skip": 4}
LIMIT = {"max_frames": 108000}


def play(env: AtariGame, seed: int, actions: list[int]) -> list[tuple[bytes, float, bool, bool]]:
    """What an episode shows and pays."""
    shown = [(env.reset(seed=seed)[0].tobytes(), 0.0, False, False)]
    for action in actions:
        picture, reward, terminated, truncated, _ = env.step(action)
        shown.append((picture.tobytes(), reward, terminated, truncated))
        if terminated or truncated:
            break
    return shown


@pytest.mark.parametrize("options", [{}, {"size": 64, "gray": False, "actions": "needed", "sticky": False}], ids=str)
def test_specs_and_agent(options: dict) -> None:
    env = make_env("atari", {"game": "pong", "render": True, **options})
    check_env_specs(env)
    size, channels, actions = (64, 3, 6) if options else (96, 1, 18)
    assert env.observation_spec["pixels"].shape == (size, size, channels)
    assert env.observation_spec["pixels"].dtype == torch.uint8
    assert env.action_spec.shape == (actions,)
    build_agent(env.observation_spec, env.full_action_spec, "nano")
    assert frame(env).shape == (210, 160, 3)


@pytest.mark.parametrize("game", ["pong", "assault", "tennis"])
def test_an_episode_follows_from_its_seed(game: str) -> None:
    """Also after another one; assault and tennis remember it in ALE unless they go back to their first state."""
    actions = np.random.default_rng(0).integers(18, size=60).tolist()
    used = AtariGame(game, **DEFAULTS, **LIMIT)
    play(used, 0, actions)
    first = play(used, 1, actions)
    assert first == play(AtariGame(game, **DEFAULTS, **LIMIT), 1, actions)
    assert first != play(used, 2, actions)


def test_pictures_are_made_as_the_official_agent_makes_them() -> None:
    """Maximum of the last two frames, Pillow's bilinear resize in color, then the luminance, rounded down."""
    env = AtariGame("ms_pacman", **DEFAULTS | {"sticky": False, "noops": 0}, **LIMIT)
    env.reset(seed=0)
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.loadROM(ale_py.roms.get_rom_path("ms_pacman"))
    ale.reset_game()
    for action in (2, 3, 4, 3):
        shown, total = env.step(action)[:2]
        screens, reward = [], 0
        for _ in range(4):
            reward += ale.act(ale.getLegalActionSet()[action])
            screens.append(ale.getScreenRGB())
        small = np.array(Image.fromarray(np.max(screens[-2:], 0)).resize((96, 96), Image.Resampling.BILINEAR))
        weights = np.array([0.299, 0.587, 1 - (0.299 + 0.587)])
        assert np.array_equal(shown, (small * weights).sum(-1).astype(np.uint8)[..., None])
        assert total == reward


def test_sticky_frames_hold_the_action_before() -> None:
    """A quarter of the frames, and what they hold is the action that was really done last."""
    env = AtariGame("pong", **DEFAULTS | {"noops": 0}, **LIMIT)
    env.reset(seed=0)
    done: list[ale_py.Action] = []
    asked: list[ale_py.Action] = []
    act = env._act

    def record(action: ale_py.Action) -> int:
        reward = act(action)
        asked.append(action)
        done.append(env.held)
        return reward

    env._act = record
    for action in np.random.default_rng(0).integers(18, size=300).tolist():
        env.step(action)
    differ = [index for index in range(1, len(done)) if done[index] != asked[index]]
    assert all(done[index] == done[index - 1] for index in differ)
    # A held frame differs only until the new action takes over: per step of 4, 1/4 + 1/16 + ... of frames, 17/18 of it.
    expected = sum(0.25**k for k in range(1, 5)) / 4 * 17 / 18
    assert len(differ) / len(done) == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("words", ["", "env.frame_skip=1", "env.frame_skip=2 env.action_repeat=3"])
def test_what_a_game_skips_is_what_is_counted(words: str) -> None:
    """Frames as ALE itself counts them, of a stream as training has it."""
    env = load(["env=pong", "env.noops=0", *words.split()]).settings.env
    stream = stream_env(env.family, env.options, env.action_repeat, entropy=0, index=0)
    stream.rollout(10)
    assert stream.env._env.ale.getEpisodeFrameNumber() == 10 * env.frames_per_step
    assert env.frames_per_step == {"": 4, "env.frame_skip=1": 1}.get(words, 6)


def test_noops_and_limit() -> None:
    """Up to 30 frames of nothing; the limit of frames truncates."""
    env = AtariGame("pong", **DEFAULTS, max_frames=40)
    waited = []
    for seed in range(25):
        env.reset(seed=seed)
        waited.append(env.ale.getEpisodeFrameNumber())
    assert len(set(waited)) > 8
    assert max(waited) - min(waited) <= 30
    outcomes = play(env, 0, [0] * 20)
    assert len(outcomes) == 11
    assert outcomes[-1][2:] == (False, True)


def test_a_game_that_is_over_terminates() -> None:
    env = AtariGame("breakout", **DEFAULTS, **LIMIT)
    assert play(env, 0, [1, 3, 4] * 400)[-1][2:] == (True, False)
