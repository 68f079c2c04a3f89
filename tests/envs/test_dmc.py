"""DeepMind Control: vectors and pictures, ends and seeds."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torchrl.envs.utils import check_env_specs

pytest.importorskip("dm_control", reason="dm_control is not installed: pip install 'dreamer_torchrl[dmc]'")

from dreamer_torchrl import build_agent
from dreamer_torchrl.collectors.stream_env import StreamEnv
from dreamer_torchrl.envs import UnknownEnvironment, check_env, frame, make_env
from dreamer_torchrl.envs.dmc import ControlTask
from tests.envs.test_gym import alike, play

FLOATS = {"walker_walk": 24, "cup_catch": 8}


@pytest.mark.parametrize("task", FLOATS)
def test_vectors(task: str) -> None:
    used, new = make_env("dmc", {"task": task}), make_env("dmc", {"task": task})
    check_env_specs(used)
    leaves = list(used.observation_spec.values(True, True))
    assert {leaf.dtype for leaf in leaves} == {torch.float32}
    assert sum(leaf.shape.numel() for leaf in leaves) == FLOATS[task]
    stream = StreamEnv(used)
    build_agent(stream.observation_spec, stream.full_action_spec, "nano")
    first = play(used, 3, 40)
    assert alike(first, play(new, 3, 40))
    assert alike(first, play(used, 3, 40))
    assert not alike(first, play(used, 4, 40))


@pytest.mark.parametrize(
    ("renderer", "call", "told"),
    [
        ("nothing", "check_env", "dm_control cannot be imported with MUJOCO_GL=nothing: Environment variable MUJOCO"),
        ("glfw", "make_env", "MuJoCo cannot draw with MUJOCO_GL=glfw ("),
    ],
    ids=["no such renderer", "no screen"],
)
def test_a_renderer_that_is_not_there_is_a_sentence(renderer: str, call: str, told: str) -> None:
    """The one is found before torch is imported, the other when the environment first draws."""
    surroundings = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    program = f"from dreamer_torchrl.envs import {call}; {call}('dmc', {{'task': 'walker_walk', 'image': True}})"
    outcome = subprocess.run(
        [sys.executable, "-c", program], env=surroundings | {"MUJOCO_GL": renderer}, capture_output=True, text=True
    )
    assert f"UnknownEnvironment: {told}" in outcome.stderr and "libegl1" in outcome.stderr


def test_pictures() -> None:
    try:
        env = make_env("dmc", {"task": "walker_walk", "image": True, "proprio": False, "render": True})
    except UnknownEnvironment as error:
        pytest.skip(str(error))
    assert list(env.observation_spec.keys()) == ["pixels"]
    assert env.observation_spec["pixels"].shape == (64, 64, 3)
    check_env_specs(env)
    build_agent(env.observation_spec, env.full_action_spec, "nano")
    first = play(env, 1, 4)
    assert alike(first, play(env, 1, 4))
    assert first["pixels"].float().std() > 10
    assert frame(env).shape == (240, 320, 3)
    both = make_env("dmc", {"task": "walker_walk", "image": True})
    assert set(both.observation_spec.keys()) == {"pixels", "height", "orientations", "velocity"}


def test_cameras_are_the_official_ones() -> None:
    cases = (("quadruped", "walk", -1), ("cartpole", "swingup", -1), ("quadruped", "walk", 1))
    assert [ControlTask(domain, task, False, True, 64, camera).camera for domain, task, camera in cases] == [2, 0, 1]


def test_the_time_limit_truncates() -> None:
    end = make_env("dmc", {"task": "cartpole_swingup"}).rollout(2000)
    assert len(end) == 1000
    assert bool(end["next", "truncated"][-1])
    assert not end["next", "terminated"].any()


def test_discount_zero_terminates() -> None:
    """In lqr an episode ends by itself when the state is at rest."""
    task = ControlTask("lqr", "lqr_2_1", False, True, 64, -1)
    task.reset(seed=0)
    with task.env.physics.reset_context():
        task.env.physics.data.qpos[:] = 0
        task.env.physics.data.qvel[:] = 0
    _, _, terminated, truncated, _ = task.step([0.0])
    assert (terminated, truncated) == (True, False)


def test_wrong_tasks_are_answered() -> None:
    with pytest.raises(UnknownEnvironment, match="'walker_wolk': did you mean 'walker_walk'"):
        check_env("dmc", {"task": "walker_wolk"})
    with pytest.raises(UnknownEnvironment, match="image and proprio are both false"):
        make_env("dmc", {"task": "walker_walk", "proprio": False})
