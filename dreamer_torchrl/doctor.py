"""Whether what is installed works, and whether an environment keeps the rules that training relies on."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torchrl.envs import EnvBase

PACKAGES = ("torch", "torchrl", "tensordict", "gymnasium", "ale_py", "pillow", "wandb", "dreamer_torchrl")
EXTRAS = {"dm_control": "dmc", "mujoco": "dmc", "tensorboard": "tensorboard"}
"""Packages that an extra of ours brings; the rest works without."""


Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of a report."""

    level: Level
    subject: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.level:8} {self.subject}: {self.text}" + (f" -> {self.remedy}" if self.remedy else "")


@dataclass
class Report:
    """What was found, in the order in which it was looked at.

    Example:
        >>> report = Report()
        >>> report.add("problem", "disk", "no space left", "delete old runs")
        >>> print(report, report.exit_code)
        problem  disk: no space left -> delete old runs 1
    """

    findings: list[Finding] = field(default_factory=list)

    def add(self, level: Level, subject: str, text: str, remedy: str = "") -> None:
        """Note one thing."""
        self.findings.append(Finding(level, subject, text, remedy))

    def look(self, subject: str, check: Callable[[], str], remedy: str) -> None:
        """Note what a check returns; where it raises, a warning."""
        try:
            self.add("ok", subject, check())
        except Exception as error:  # a library of which a part is missing may raise anything
            self.add("warning", subject, f"none ({error})", remedy)

    @property
    def exit_code(self) -> int:
        """1 if there is a problem, else 0."""
        return int(any(finding.level == "problem" for finding in self.findings))

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))


def machine() -> Report:
    """Look at versions, devices, kernels, compilation, samplers, rendering and videos."""
    import torch
    from torchrl.data import PrioritizedSampler

    from dreamer_torchrl.agents import backend

    report = Report()
    report.add("ok", "python", f"{platform.python_version()} on {platform.platform()}")
    for package in (*PACKAGES, *EXTRAS):
        try:
            report.add("ok", package, metadata.version(package))
        except metadata.PackageNotFoundError:
            extra = EXTRAS.get(package)
            remedy = f"pip install 'dreamer_torchrl[{extra}]' if you need it" if extra else f"pip install {package}"
            report.add("warning" if extra else "problem", package, "not installed", remedy)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else 0
    report.add("ok", "processor", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {memory:.1f} GiB memory")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    report.add("ok", "GPU", ", ".join(names) or "none that torch can use; training runs on the processor")
    if names and not find_spec("triton"):
        report.add("warning", "Triton", "not installed, so networks are not compiled", "pip install triton")
    status = backend.status()
    report.add("ok" if status == "Kernels in C run." else "warning", "kernels", status)
    remedy = "use replay.sampler=prioritized, which does not need it; its C++ extension takes torch 2.14 or later"
    report.look("TorchRL's prioritized samplers", lambda: f"{PrioritizedSampler(8, 0.7, 0.5)} loads", remedy)
    report.look("gymnasium pictures", _gymnasium_draws, "pip install 'gymnasium[classic-control]'")
    if find_spec("dm_control") and find_spec("mujoco"):
        remedy = "set MUJOCO_GL to egl or osmesa and install its library (apt install libegl1, or libosmesa6)"
        report.look("MuJoCo pictures", _mujoco_draws, remedy)
    report.look("Box2D", _box2d_loads, "pip install 'gymnasium[box2d]'")
    remedy = "pip install --force-reinstall --no-deps --only-binary=av av; until then videos are GIFs"
    report.look("H.264 videos", _av_encodes, remedy)
    return report


def _gymnasium_draws() -> str:
    from dreamer_torchrl.envs import frame, make_env

    env = make_env("gym", {"id": "CartPole-v1", "render": True})
    env.reset()
    height, width, _ = frame(env).shape
    env.close()
    return f"CartPole gives one of {height} x {width}"


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
    return f"{import_module('Box2D').__version__}, for lunarlander, bipedalwalker and carracing"


def _av_encodes() -> str:
    import av

    from dreamer_torchrl.record.video import ENCODER, can_encode

    if not can_encode():
        raise RuntimeError(f"av {av.__version__} has no {ENCODER}")
    return f"av {av.__version__} has {ENCODER}"


def examine(family: str, options: Mapping[str, Any], steps: int = 500) -> Report:
    """Try an environment with random actions and report what would break a training.

    Example:
        >>> examine("gym", {"id": "CartPole-v1"}, steps=50).exit_code
        0
    """
    from dreamer_torchrl.envs import make_env
    from dreamer_torchrl.modules.spaces import key_name

    report = Report()
    try:
        env = make_env(family, options)
    except Exception as error:  # whatever the environment's own code raises
        report.add("problem", "making it", _first_line(error))
        return report
    for kind, specs in (("observation", env.observation_spec), ("action", env.full_action_spec)):
        for key, spec in specs.items(True, True):
            dtype = str(spec.dtype).removeprefix("torch.")
            report.add("ok", kind, f"{key_name(key)} {type(spec).__name__} {list(spec.shape)} {dtype}")
    checks = {"specs": _check_specs, "agent": _check_agent, "episodes": _check_episodes, "same seed": _check_seed}
    for subject, check in checks.items():
        try:
            check(env, report, steps)
        except Exception as error:  # an environment may raise anything, and the other checks still tell something
            report.add("problem", subject, _first_line(error))
    env.close()
    return report


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"


def _check_specs(env: EnvBase, report: Report, _: int) -> None:
    from torchrl.envs.utils import check_env_specs

    try:
        check_env_specs(env)
    except AssertionError as error:
        remedy = "what it returns must agree with its observation_space or observation_spec"
        report.add("problem", "specs", _first_line(error), remedy)
    else:
        report.add("ok", "specs", "check_env_specs passes")


def _check_agent(env: EnvBase, report: Report, _: int) -> None:
    from dreamer_torchrl.agents.agent import build_agent
    from dreamer_torchrl.collectors.stream_env import StreamEnv
    from dreamer_torchrl.data.replay import bytes_per_step
    from dreamer_torchrl.modules.spaces import key_name
    from dreamer_torchrl.training.startup import float_images

    stream = StreamEnv(env)
    agent = build_agent(stream.observation_spec, stream.full_action_spec, "nano")
    per_step = bytes_per_step(agent)
    total = per_step * 1_000_000 / 2**30
    report.add("ok", "replay", f"{per_step:,} bytes per step with size=nano, {total:.1f} GiB for a million steps")
    for sentence in float_images(agent):
        report.add("warning", "image", sentence)
    for key, bounds in stream.bounds.items():
        low, high = ({f"{number:g}" for number in bound.flatten().tolist()} for bound in bounds)
        text = f"from {'..'.join(sorted(low, key=float))} to {'..'.join(sorted(high, key=float))}"
        report.add("ok", "action", f"{key_name(key)} {text}, seen by the agent as -1 to 1")


def _check_episodes(env: EnvBase, report: Report, steps: int) -> None:
    import torch

    from dreamer_torchrl.modules.spaces import key_name

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
        specs = env.observation_spec.items(True, True)
        outside |= {key_name(key) for key, spec in specs if not spec.is_in(arrived[key])}
        floats = {key_name(key): value for key, value in arrived.items(True, True) if value.is_floating_point()}
        not_finite |= {name for name, value in floats.items() if not value.isfinite().all()}
        if arrived["done"].any():
            arrived = env.reset()
            lengths.append(0)
            returns.append(0.0)
    torch.set_rng_state(generator_state)
    if ended := len(lengths) - 1:
        text = f"{ended} in {steps} random steps, length {_spread(lengths[:-1])}, return {_spread(returns[:-1])}"
        report.add("ok", "episodes", text)
    else:
        text = f"none ended in {steps} random steps, return so far {returns[0]:.4g}"
        report.add("warning", "episodes", text, "fine if its limit is longer, else give it one")
    report.add("ok", "speed", f"{steps / seconds:,.0f} steps per second in one process")
    if outside:
        remedy = "correct the bounds of its observation space; training itself does not use them"
        report.add("warning", "bounds", f"{', '.join(sorted(outside))} left the declared bounds", remedy)
    if not_finite:
        remedy = "find the division by zero or the overflow in it: training stops such an episode"
        report.add("problem", "numbers", f"{', '.join(sorted(not_finite))} became NaN or infinite", remedy)


def _check_seed(env: EnvBase, report: Report, _: int) -> None:
    import torch

    runs = []
    for _ in range(2):
        env.set_seed(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            runs.append(env.rollout(100))
    first, second = runs
    if first.shape == second.shape and bool((first == second).all()):
        report.add("ok", "same seed", "the same episode, to the last bit")
        return
    remedy = "draw all its random numbers from what reset(seed=...) seeds; until then a resumed run starts new episodes"
    report.add("warning", "same seed", "two episodes of the same seed and actions differ", remedy)


def _spread(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command ``python -m dreamer_torchrl.doctor``; its exit code is 1 if there is a problem."""
    parser = argparse.ArgumentParser(prog="python -m dreamer_torchrl.doctor", description=__doc__)
    text = "try an environment instead, such as env=gym env.id=Taxi-v4"
    parser.add_argument("--env", nargs="+", metavar="KEY=VALUE", help=text)
    overrides = parser.parse_args(arguments).env
    try:
        if overrides is not None:
            from dreamer_torchrl.config.compose import load

            env = load(overrides).settings.env
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2

    from torchrl import logger  # takes seconds

    logger.setLevel("WARNING")  # its lines would stand before what is found
    report = machine() if overrides is None else examine(env.family, env.options)
    print(report)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
