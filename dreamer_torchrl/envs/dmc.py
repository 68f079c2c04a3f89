"""The DeepMind Control suite: vectors, images or both."""

from __future__ import annotations

import os
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from dreamer_torchrl.envs.gym import Gymnasium
from dreamer_torchrl.envs.registry import UnknownEnvironment, check_dmc

CAMERAS = {"quadruped": 2}  # of the official agent, where not 0
FRAME = (240, 320)  # height and width of video frames


class ControlTask(gymnasium.Env):
    """One task of the suite as a gymnasium environment, whose time limit truncates and whose discount 0 terminates."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012, this is how gymnasium wants it

    def __init__(self, domain: str, task: str, image: bool, proprio: bool, size: int, camera: int):
        from dm_control import suite

        self.random = np.random.RandomState(0)  # the task keeps it, and each seeded reset reseeds it
        self.env = suite.load(domain, task, task_kwargs={"random": self.random})
        self.image, self.proprio, self.size = image, proprio, size
        self.camera = CAMERAS.get(domain, 0) if camera == -1 else camera
        action = self.env.action_spec()
        self.action_space = Box(action.minimum, action.maximum, action.shape, np.float64)
        seen = {}
        if proprio:
            shapes = {key: spec.shape for key, spec in self.env.observation_spec().items()}
            seen = {key: Box(-np.inf, np.inf, shape, np.float32) for key, shape in shapes.items()}
        if image:
            seen["pixels"] = Box(0, 255, (size, size, 3), np.uint8)
        self.observation_space = Dict(seen)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.random.seed(seed % 2**32)
        return self._seen(self.env.reset().observation), {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        step = self.env.step(action)
        terminated = step.last() and step.discount == 0
        return self._seen(step.observation), step.reward, terminated, step.last() and not terminated, {}

    def render(self) -> np.ndarray:
        return self.env.physics.render(*FRAME, camera_id=self.camera)

    def close(self) -> None:
        self.env.close()

    def _seen(self, observation: dict[str, Any]) -> dict[str, Any]:
        seen = dict(observation) if self.proprio else {}
        if self.image:
            seen["pixels"] = self.env.physics.render(self.size, self.size, camera_id=self.camera)
        return seen


def dmc_env(
    task: str, image: bool = False, proprio: bool = True, size: int = 64, camera: int = -1, render: bool = False
) -> Gymnasium:
    """Make a task such as ``walker_walk``, with pictures under ``pixels``; camera -1 is the official agent's."""
    import mujoco

    domain, name = check_dmc(task)
    env = ControlTask(domain, name, image, proprio, size, camera)
    env.render_mode = "rgb_array" if render else None
    if image or render:
        try:
            env.render()
        except (AttributeError, ImportError, OSError, RuntimeError, mujoco.FatalError) as error:
            raise UnknownEnvironment(
                f"MuJoCo cannot draw with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')} ({error}): set it to egl (needs "
                "libEGL: `apt install libegl1` on Debian and Ubuntu) or osmesa (`apt install libosmesa6`)."
            ) from error
    return Gymnasium(env)
