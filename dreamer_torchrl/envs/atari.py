"""Atari games with the preprocessing of the official agent."""

from __future__ import annotations

from typing import Any

import ale_py
import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from PIL import Image

from dreamer_torchrl.envs.gym import Gymnasium
from dreamer_torchrl.envs.registry import check_atari

LUMINANCE = (0.299, 0.587, 1 - (0.299 + 0.587))
STICKY = 0.25


class AtariGame(gymnasium.Env):
    """One game, directly on ALE.

    A step holds an action for ``frame_skip`` frames and shows the maximum of the last two, made smaller and then gray.
    Sticky: on each frame the previous action is held with probability 0.25. An episode starts with up to ``noops``
    frames of doing nothing and is cut off after ``max_frames``. Lives and rewards are left as they are.

    ALE reads its own seed only when it loads a game (85 ms), so sticky actions are drawn here, by the episode's seed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012, this is how gymnasium wants it

    def __init__(
        self, game: str, size: int, gray: bool, sticky: bool, actions: str, noops: int, frame_skip: int, max_frames: int
    ):
        self.size, self.gray, self.sticky = size, gray, sticky
        self.noops, self.frame_skip, self.max_frames = noops, frame_skip, max_frames
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.ale = ale_py.ALEInterface()
        self.ale.setInt("random_seed", 0)
        self.ale.setFloat("repeat_action_probability", 0.0)
        self.ale.loadROM(ale_py.roms.get_rom_path(game))
        self.loaded = self.ale.cloneState(include_rng=True)
        self.actions = self.ale.getLegalActionSet() if actions == "all" else self.ale.getMinimalActionSet()
        height, width = self.ale.getScreenDims()
        self.screens = [np.zeros((height, width, 3), np.uint8) for _ in range(2)]
        self.observation_space = Box(0, 255, (size, size, 1 if gray else 3), np.uint8)
        self.action_space = Discrete(len(self.actions))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._restart()
        for _ in range(self.np_random.integers(self.noops + 1)):
            self._act(ale_py.Action.NOOP)
            if self.ale.game_over():
                self._restart()
        self.frames = 0
        self.ale.getScreenRGB(self.screens[0])
        self.screens[1][:] = self.screens[0]
        return self._picture(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = 0.0
        for index in range(self.frame_skip):
            reward += self._act(self.actions[action])
            self.frames += 1
            if index >= self.frame_skip - 2:
                self.screens.reverse()
                self.ale.getScreenRGB(self.screens[0])
            over, late = self.ale.game_over(), self.frames >= self.max_frames
            if over or late:
                break
        return self._picture(), reward, over, late and not over, {}

    def render(self) -> np.ndarray:
        return self.ale.getScreenRGB()

    def _restart(self) -> None:
        self.ale.restoreState(self.loaded)
        self.ale.reset_game()
        self.held = ale_py.Action.NOOP

    def _act(self, action: ale_py.Action) -> int:
        if not (self.sticky and self.np_random.random() < STICKY):
            self.held = action
        return self.ale.act(self.held)

    def _picture(self) -> np.ndarray:
        screen = np.maximum(*self.screens)  # [210, 160, 3]
        picture = np.asarray(Image.fromarray(screen).resize((self.size, self.size), Image.Resampling.BILINEAR))
        if not self.gray:
            return picture
        red, green, blue = (picture[..., channel] * weight for channel, weight in enumerate(LUMINANCE))
        return (red + green + blue).astype(np.uint8)[..., None]


def atari_env(
    game: str,
    size: int = 96,
    gray: bool = True,
    sticky: bool = True,
    actions: str = "all",
    noops: int = 30,
    frame_skip: int = 4,
    max_frames: int = 108000,
    render: bool = False,
) -> Gymnasium:
    """Make an Atari game such as ``pong``; ``actions`` is ``all`` (18 of them) or ``needed`` (those the game uses).

    Example:
        >>> atari_env("pong", size=64, gray=False, actions="needed").reset()["pixels"].shape
        torch.Size([64, 64, 3])
    """
    env = AtariGame(check_atari(game), size, gray, sticky, actions, noops, frame_skip, max_frames)
    env.render_mode = "rgb_array" if render else None
    return Gymnasium(env)
