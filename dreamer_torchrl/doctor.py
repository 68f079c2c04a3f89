"""What is installed here and does it work; and whether an environment keeps the rules that training counts on."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tensordict import TensorDictBase
    from torchrl.envs import EnvBase

PACKAGES = (
    *("torch", "torchrl", "tensordict", "gymnasium", "ale_py", "pillow", "dm_control", "mujoco", "wandb"),
    *("tensorboard", "dreamer_torchrl"),
)
EXTRAS = {"dm_control": "dmc", "mujoco": "dmc", "tensorboard": "tensorboard"}
"""Packages that an extra of ours brings."""

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line: how it stands, what was looked at, what was found and how to mend it."""

    level: Level
    subject: str
    text: str
    mend: str = ""

    def __str__(self) -> str:
        mend = f" -> {self.mend}" if self.mend else ""
        return f"{self.level:8} {self.subject}: {self.text}{mend}"


@dataclass
class Report:
    """What was found, in the order in which it was looked at.

    Example:
        >>> report = Report()
        >>> report.add("problem", "disk", "no space left", "delete old runs")
        >>> print(report)
        problem  disk: no space left -> delete old runs
        >>> report.exit_code
        1
    """

    findings: list[Finding] = field(default_factory=list)

    def add(self, level: Level, subject: str, text: str, mend: str = "") -> None:
        """Note one thing."""
        self.findings.append(Finding(level, subject, text, mend))

    @property
    def exit_code(self) -> int:
        """1 if there is a problem, else 0."""
        return int(any(finding.level == "problem" for finding in self.findings))

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))


def machine() -> Report:
    """Look at versions, devices, rendering, films and the compiler."""
    import torch

    report = Report()
    report.add("ok", "python", f"{platform.python_version()} on {platform.platform()}")
    for package in PACKAGES:
        try:
            report.add("ok", package, metadata.version(package))
        except metadata.PackageNotFoundError:
            extra = EXTRAS.get(package)
            mend = f"pip install 'dreamer_torchrl[{extra}]' if you need it" if extra else f"pip install {package}"
            report.add("warning" if extra else "problem", package, "not installed", mend)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else 0
    report.add("ok", "processor", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {memory:.1f} GiB memory")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    report.add("ok", "GPU", ", ".join(names) or "none that torch can use; training runs on the processor")
    _look(report, "gymnasium pictures", _gymnasium_draws, "pip install 'gymnasium[classic-control]'")
    if find_spec("dm_control") and find_spec("mujoco"):
        mend = "set MUJOCO_GL to egl or osmesa and install its library (apt install libegl1, or libosmesa6)"
        _look(report, "MuJoCo pictures", _mujoco_draws, mend)
    _look(report, "Box2D", _box2d_loads, "pip install 'gymnasium[box2d]'")
    mend = "pip install --force-reinstall --no-deps --only-binary=av av; until then films are GIFs"
    _look(report, "H.264 films", _av_encodes, mend)
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if compiler:
        report.add("ok", "compiler", f"{compiler}, for compile=true")
    else:
        report.add("warning", "compiler", "none found", "leave compile=false, or install g++ (apt install g++)")
    return report


def _look(report: Report, subject: str, check: Callable[[], str], mend: str) -> None:
    try:
        report.add("ok", subject, check())
    except Exception as error:  # a library of which a part is missing may raise anything
        report.add("warning", subject, f"none ({error})", mend)


def _gymnasium_draws() -> str:
    from dreamer_torchrl.envs import frame, make_env

    env = make_env("gym", {"id": "CartPole-v1", "render": True})
    env.reset()
    shape = frame(env).shape
    env.close()
    return f"CartPole gives one of {shape[0]} x {shape[1]}"


def _mujoco_draws() -> str:
    """In a process of its own: a broken graphics library can end it."""
    program = (
        "from dreamer_torchrl.envs import make_env;"
        "make_env('dmc', {'task': 'cartpole_balance', 'image': True, 'proprio': False}).reset();"
        "import os; print('MUJOCO_GL=' + os.environ.get('MUJOCO_GL', ''))"
    )
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    if outcome.returncode:
        raise RuntimeError((outcome.stderr.strip().splitlines() or [f"exit code {outcome.returncode}"])[-1])
    return f"drawn with {outcome.stdout.split()[-1]}"


def _box2d_loads() -> str:
    import Box2D

    return f"{Box2D.__version__}, for lunarlander, bipedalwalker and carracing"


def _av_encodes() -> str:
    import av

    from dreamer_torchrl.record.video import ENCODER, can_encode

    if not can_encode():
        raise RuntimeError(f"av {av.__version__} has no {ENCODER}")
    return f"av {av.__version__} has {ENCODER}"


def examine(family: str, options: Mapping[str, Any], steps: int = 500) -> Report:
    """Try an environment with random actions and report what training would stumble over.

    Example:
        >>> examine("gym", {"id": "CartPole-v1"}, steps=50).exit_code
        0
    """
    from dreamer_torchrl.envs import make_env

    report = Report()
    try:
        env = make_env(family, options)
    except Exception as error:  # whatever the environment's own code raises
        report.add("problem", "making it", f"{type(error).__name__}: {error}")
        return report
    for key, spec in env.observation_spec.items(True, True):
        report.add("ok", "observation", f"{_name(key)} {list(spec.shape)} {_dtype(spec)}")
    for key, spec in env.full_action_spec.items(True, True):
        report.add("ok", "action", f"{_name(key)} {type(spec).__name__} {list(spec.shape)} {_dtype(spec)}")
    checks = (
        ("specs", _check_specs, "what it returns must agree with its observation_space or observation_spec"),
        ("agent", _check_agent, ""),
        ("episodes", lambda env, report: _check_episodes(env, report, steps), ""),
        ("same seed", _check_seed, ""),
    )
    for subject, check, mend in checks:
        try:
            check(env, report)
        except Exception as error:  # an environment may raise anything, and the other checks still tell something
            text = str(error).strip().splitlines()
            report.add("problem", subject, f"{type(error).__name__}: {text[0] if text else 'no message'}", mend)
    env.close()
    return report


def _check_specs(env: EnvBase, report: Report) -> None:
    from torchrl.envs.utils import check_env_specs

    check_env_specs(env)
    report.add("ok", "specs", "check_env_specs passes")


def _check_agent(env: EnvBase, report: Report) -> None:
    from dreamer_torchrl.agents.agent import build_agent
    from dreamer_torchrl.collectors.stream_env import StreamEnv
    from dreamer_torchrl.data.replay import bytes_per_step

    stream = StreamEnv(env)
    agent = build_agent(stream.observation_spec, stream.full_action_spec, "nano")
    per_step = bytes_per_step(agent)
    total = per_step * 1_000_000 / 2**30
    report.add("ok", "replay", f"{per_step:,} bytes per step with size=nano, {total:.1f} GiB for a million steps")
    for key, (low, high) in stream.bounds.items():
        report.add("ok", "action", f"{_name(key)} from {_short(low)} to {_short(high)}, seen by the agent as -1 to 1")


def _check_episodes(env: EnvBase, report: Report, steps: int) -> None:
    import torch

    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    env.set_seed(0)
    lengths, returns, outside, not_finite = [0], [0.0], set(), set()
    arrived, seconds = env.reset(), 0.0
    for _ in range(steps):
        arrived.update(env.full_action_spec.rand())
        start = time.perf_counter()
        arrived = env.step(arrived)["next"]
        seconds += time.perf_counter() - start
        lengths[-1], returns[-1] = lengths[-1] + 1, returns[-1] + float(arrived["reward"])
        outside |= _outside(env, arrived)
        not_finite |= _not_finite(arrived)
        if arrived["done"].any():
            arrived = env.reset()
            lengths.append(0)
            returns.append(0.0)
    torch.set_rng_state(generator_state)
    ended = len(lengths) - 1
    if ended:
        text = f"{ended} in {steps} random steps, length {_spread(lengths[:-1])}, return {_spread(returns[:-1])}"
        report.add("ok", "episodes", text)
    else:
        report.add(
            "warning",
            "episodes",
            f"none ended in {steps} random steps",
            "fine if its limit is longer, else give it one",
        )
    report.add("ok", "speed", f"{steps / seconds:,.0f} steps per second in one process")
    if outside:
        mend = "correct the bounds of its observation space; training itself does not use them"
        report.add("warning", "bounds", f"{', '.join(sorted(outside))} left the declared bounds", mend)
    if not_finite:
        mend = "find the division by zero or the overflow in it: training stops such an episode"
        report.add("problem", "numbers", f"{', '.join(sorted(not_finite))} became NaN or infinite", mend)


def _check_seed(env: EnvBase, report: Report) -> None:
    import torch

    runs = []
    for _ in range(2):
        env.set_seed(1)
        generator = torch.get_rng_state()
        torch.manual_seed(1)
        runs.append(env.rollout(100))
        torch.set_rng_state(generator)
    first, second = runs
    same = first.shape == second.shape and bool((first == second).all())
    if same:
        report.add("ok", "same seed", "the same episode, to the last bit")
        return
    mend = "draw all its random numbers from what reset(seed=...) seeds; until then a resumed run starts new episodes"
    report.add("warning", "same seed", "two episodes of the same seed and actions differ", mend)


def _outside(env: EnvBase, arrived: TensorDictBase) -> set[str]:
    return {_name(key) for key, spec in env.observation_spec.items(True, True) if not spec.is_in(arrived[key])}


def _not_finite(arrived: TensorDictBase) -> set[str]:
    floats = {_name(key): value for key, value in arrived.items(True, True) if value.is_floating_point()}
    return {name for name, value in floats.items() if not value.isfinite().all()}


def _name(key: str | tuple[str, ...]) -> str:
    from dreamer_torchrl.modules.spaces import key_name

    return key_name(key)


def _dtype(spec: Any) -> str:
    return str(spec.dtype).removeprefix("torch.")


def _short(bound: Any) -> str:
    values = sorted(set(bound.flatten().tolist()))
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g}..{values[-1]:g}"


def _spread(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def _environment(words: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
    """Family and options that configuration words such as ``env=pendulum`` ask for."""
    from dreamer_torchrl.config.compose import load

    settings = load(list(words)).settings
    return settings.env.family, settings.env.options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command ``python -m dreamer_torchrl.doctor``; its exit code is 1 if there is a problem."""
    parser = argparse.ArgumentParser(prog="python -m dreamer_torchrl.doctor", description=__doc__)
    parser.add_argument(
        "--env", nargs="+", metavar="WORD", help="try an environment instead, such as env=gym env.id=Taxi-v4"
    )
    words = parser.parse_args(arguments).env
    try:
        chosen = None if words is None else _environment(words)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2

    from torchrl import logger  # takes seconds

    logger.setLevel("WARNING")  # its lines would stand before what is found
    report = machine() if chosen is None else examine(*chosen)
    print(report)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
