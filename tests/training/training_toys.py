"""Environments for whole trainings: with several actions at once, and with faults."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

EPISODE = 12


class Counted(gymnasium.Env):
    """Counts the steps of an episode, and shows what `_see` gives."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.count = 0
        return self._see(), {}


class Drive(Counted):
    """Two actions at a time, and two things to see."""

    observation_space = spaces.Dict(speed=spaces.Box(-1, 1, (2,), np.float32), light=spaces.Discrete(3))
    action_space = spaces.Dict(gear=spaces.Discrete(3), wheel=spaces.Box(-2, 2, (2,), np.float32))

    def step(self, action: dict[str, Any]) -> tuple[Any, float, bool, bool, dict]:
        self.count += 1
        assert set(action) == {"gear", "wheel"} and np.abs(action["wheel"]).max() <= 2
        return self._see(), float(action["gear"]), False, self.count == EPISODE, {}

    def _see(self) -> dict[str, Any]:
        return {"speed": self.np_random.uniform(-1, 1, 2).astype(np.float32), "light": int(self.np_random.integers(3))}


class Faulty(Counted):
    """Does what it should not, in some of its steps: which ones depends on the seed of the episode alone.

    Args:
        fault: ``nan_reward``, ``nan_observation``, ``raise``, ``hang``, or ``none``.
        share: of the steps.
        only_once: a file whose presence makes the environment sound; a fault makes the file first.
        only_while: a file whose absence makes it sound.
    """

    observation_space = spaces.Box(-2, 2, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(
        self, fault: str = "none", share: float = 0.05, only_once: str | None = None, only_while: str | None = None
    ):
        self.fault, self.share = fault, share
        self.only_once, self.only_while = only_once and Path(only_once), only_while and Path(only_while)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.count += 1
        seen, reward, now = self._see(), 1.0, self.np_random.random() < self.share
        if self.only_while:
            now = now and self.only_while.exists()
        if now and self.only_once:
            now = not self.only_once.exists()
            self.only_once.touch()
        if now and self.fault == "nan_reward":
            reward = float("nan")
        elif now and self.fault == "nan_observation":
            seen[0] = np.nan
        elif now and self.fault == "raise":
            raise RuntimeError("the gearbox broke")
        elif now and self.fault == "hang":
            time.sleep(60)
        return seen, reward, False, self.count == EPISODE, {}

    def _see(self) -> np.ndarray:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)


class Unseeded(Faulty):
    """Shows something else each time, whatever the seed."""

    def _see(self) -> np.ndarray:
        return np.random.default_rng().uniform(-1, 1, 2).astype(np.float32)


class Button(Counted):
    """Eight steps with two buttons, one of which pays; or ``deaf``: it pays by chance, whatever is pressed."""

    observation_space = spaces.Box(0, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, deaf: bool = False):
        self.deaf = deaf

    def _see(self) -> np.ndarray:
        return np.zeros(2, np.float32)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.count += 1
        pays = self.np_random.integers(2) if self.deaf else action
        return np.array([self.count / 8, pays], np.float32), float(pays), self.count == 8, False, {}
