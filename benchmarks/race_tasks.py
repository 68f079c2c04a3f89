"""The tasks of `race.py` as gymnasium environments that write down each finished episode; all systems import them.

``race_tasks:race/cartpole-v0`` and so on. A line has the time, the frames and the return of an episode; the environment
variable `RACE_EPISODES` names the file. Of ours nothing is imported that needs more than gymnasium.
"""

from __future__ import annotations

import os
import time
from typing import Any

import gymnasium

from dreamer_torchrl.envs.registry import check_gym

TASKS = {
    "cartpole": "CartPole-v1",
    "pendulum": "Pendulum-v1",
    "grid_reach": "dreamer_torchrl/GridReach-v0",
}


class Recorded(gymnasium.Wrapper):
    """Appends a line to the file for each episode; several environments and processes may share it."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        self.frames, self.total = 0, 0.0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        observation, reward, terminated, truncated, info = super().step(action)
        self.frames += 1
        self.total += float(reward)
        if terminated or truncated:
            with open(os.environ["RACE_EPISODES"], "a") as file:
                file.write(f"{time.time():.3f} {self.frames} {self.total:.6g}\n")
        return observation, reward, terminated, truncated, info


def make(task: str, render_mode: str | None = None) -> Recorded:
    """One environment of the task."""
    check_gym(TASKS[task])  # registers ours
    return Recorded(gymnasium.make(TASKS[task], render_mode=render_mode, disable_env_checker=True))


for name in TASKS:
    gymnasium.register(f"race/{name}-v0", make, disable_env_checker=True, kwargs={"task": name})
