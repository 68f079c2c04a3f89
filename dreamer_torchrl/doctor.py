"""Whether what is installed works, and whether an environment keeps the rules that training relies on."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module, metadata
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torchrl import logger
from torchrl.data import PrioritizedSampler
from torchrl.envs import EnvBase
from torchrl.envs.utils import check_env_specs

from dreamer_torchrl.agents import backend
from dreamer_torchrl.agents.agent import build_agent
from dreamer_torchrl.collectors.stream_env import StreamEnv
from dreamer_torchrl.config.checks import ConfigError
from dreamer_torchrl.config.compose import load
from dreamer_torchrl.data.replay import bytes_per_step
from dreamer_torchrl.envs import frame, make_env
from dreamer_torchrl.modules.spaces import key_name
from dreamer_torchrl.record.video import ENCODER, can_encode
from dreamer_torchrl.training.build import float_images

PACKAGES = ("torch", "torchrl", "tensordict", "gymnasium", "ale_py", "pillow", "wandb", "dreamer_torchrl")
EXTRAS = {"dm_control": "dmc", "mujoco": "dmc", "tensorboard": "tensorboard"}  # of ours, which bring these packages


class Finding(NamedTuple):
    level: Literal["ok", "warning", "problem"]
    subject: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.level:8} {self.subject}: {self.text}" + (f" -> {self.remedy}" if self.remedy else "")


def machine() -> Iterator[Finding]:
    yield Finding("ok", "python", f"{platform.python_version()} on {platform.platform()}")
    for package in (*PACKAGES, *EXTRAS):
        try:
            yield Finding("ok", package, metadata.version(package))
        except metadata.PackageNotFoundError:
            extra = EXTRAS.get(package)
            remedy = f"pip install 'dreamer_torchrl[{extra}]' if you need it" if extra else f"pip install {package}"
            yield Finding("warning" if extra else "problem", package, "not installed", remedy)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else 0
    text = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {memory:.1f} GiB memory"
    yield Finding("ok", "processor", text)
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    yield Finding("ok", "GPU", ", ".join(names) or "none that torch can use; training runs on the processor")
    if names and not find_spec("triton"):
        yield Finding("warning", "Triton", "not installed, so networks are not compiled", "pip install triton")
    status = backend.status()
    yield Finding("ok" if status == "Kernels in C run." else "warning", "kernels", status)
    checks = [
        ("TorchRL's priorities", lambda: PrioritizedSampler(8, 0.7, 0.5), "replay.sampler=prioritized needs none"),
        ("gymnasium pictures", _gymnasium_draws, "pip install 'gymnasium[classic-control]'"),
        ("Box2D", lambda: import_module("Box2D").__version__, "pip install 'gymnasium[box2d]'"),
        ("H.264 videos", _av_encodes, "pip install --force-reinstall --no-deps --only-binary=av av; else GIFs"),
    ]
    if find_spec("dm_control") and find_spec("mujoco"):
        remedy = "set MUJOCO_GL to egl or osmesa and install its library (apt install libegl1, or libosmesa6)"
        checks.append(("MuJoCo pictures", _mujoco_draws, remedy))
    for subject, check, remedy in checks:
        try:
            yield Finding("ok", subject, str(check()))
        except Exception as error:  # a library of which a part is missing may raise anything
            yield Finding("warning", subject, f"none ({error})", remedy)


def _gymnasium_draws() -> str:
    env = make_env("gym", {"id": "CartPole-v1", "render": True})
    env.reset()
    height, width, _ = frame(env).shape
    env.close()
    return f"CartPole gives one of {height} x {width}"


def _mujoco_draws() -> str:
    """In a process of its own: a broken graphics library can end it."""
    program = "import os; from dreamer_torchrl.envs import make_env; make_env('dmc', {'task': 'cartpole_balance',"
    program += "'image': True, 'proprio': False}).reset(); print('MUJOCO_GL=' + os.environ.get('MUJOCO_GL', ''))"
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    if outcome.returncode:
        raise RuntimeError((outcome.stderr.strip().splitlines() or [f"exit code {outcome.returncode}"])[-1])
    return f"drawn with {outcome.stdout.split()[-1]}"


def _av_encodes() -> str:
    import av

    if not can_encode():
        raise RuntimeError(f"av {av.__version__} has no {ENCODER}")
    return f"av {av.__version__} has {ENCODER}"


def examine(family: str, options: Mapping[str, Any], steps: int = 500) -> Iterator[Finding]:
    """Try an environment with random actions and tell what would break a training."""
    try:
        env = make_env(family, options)
    except Exception as error:  # whatever the environment's own code raises
        yield Finding("problem", "making it", _first_line(error))
        return
    for kind, specs in (("observation", env.observation_spec), ("action", env.full_action_spec)):
        for key, spec in specs.items(True, True):
            dtype = str(spec.dtype).removeprefix("torch.")
            yield Finding("ok", kind, f"{key_name(key)} {type(spec).__name__} {list(spec.shape)} {dtype}")
    checks = {"specs": _check_specs, "agent": _check_agent, "episodes": _check_episodes, "same seed": _check_seed}
    for subject, check in checks.items():
        try:
            yield from check(env, steps)
        except Exception as error:  # an environment may raise anything, and the other checks still tell something
            yield Finding("problem", subject, _first_line(error))
    env.close()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"


def _check_specs(env: EnvBase, _: int) -> Iterator[Finding]:
    try:
        check_env_specs(env)
        yield Finding("ok", "specs", "check_env_specs passes")
    except AssertionError as error:
        remedy = "what it returns must agree with its observation_space or observation_spec"
        yield Finding("problem", "specs", _first_line(error), remedy)


def _check_agent(env: EnvBase, _: int) -> Iterator[Finding]:
    stream = StreamEnv(env)
    agent = build_agent(stream.observation_spec, stream.full_action_spec, "nano")
    per_step = bytes_per_step(agent)
    text = f"{per_step:,} bytes per step with size=nano, {per_step * 1e6 / 2**30:.1f} GiB for a million steps"
    yield Finding("ok", "replay", text)
    for sentence in float_images(agent):
        yield Finding("warning", "image", sentence)
    for key, bounds in stream.bounds.items():
        low, high = ({f"{number:g}" for number in bound.flatten().tolist()} for bound in bounds)
        text = f"from {'..'.join(sorted(low, key=float))} to {'..'.join(sorted(high, key=float))}"
        yield Finding("ok", "action", f"{key_name(key)} {text}, seen by the agent as -1 to 1")


def _check_episodes(env: EnvBase, steps: int) -> Iterator[Finding]:
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        env.set_seed(0)
        arrived = env.rollout(steps, break_when_any_done=False)["next"]  # [steps]
    speed = steps / (time.perf_counter() - start)
    ends = [0, *(arrived["done"].flatten().nonzero().flatten() + 1).tolist()]
    rewards = arrived["reward"].flatten()
    returns = [rewards[first:end].sum().item() for first, end in pairwise(ends)]
    if returns:
        lengths = [end - first for first, end in pairwise(ends)]
        text = f"{len(lengths)} in {steps} random steps, length {_spread(lengths)}, return {_spread(returns)}"
        yield Finding("ok", "episodes", text)
    else:
        text = f"none ended in {steps} random steps, return so far {rewards.sum():.4g}"
        yield Finding("warning", "episodes", text, "fine if its limit is longer, else give it one")
    yield Finding("ok", "speed", f"{speed:,.0f} steps per second in a rollout")
    specs = env.observation_spec.items(True, True)
    outside = {key_name(key) for key, spec in specs if not all(map(spec.is_in, arrived[key]))}
    if outside:
        remedy = "correct the bounds of its observation space; training itself does not use them"
        yield Finding("warning", "bounds", f"{', '.join(sorted(outside))} left the declared bounds", remedy)
    floats = {key_name(key): value for key, value in arrived.items(True, True) if value.is_floating_point()}
    if not_finite := {name for name, value in floats.items() if not value.isfinite().all()}:
        remedy = "find the division by zero or the overflow in it: training stops such an episode"
        yield Finding("problem", "numbers", f"{', '.join(sorted(not_finite))} became NaN or infinite", remedy)


def _check_seed(env: EnvBase, _: int) -> Iterator[Finding]:
    runs = []
    for _ in range(2):
        env.set_seed(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            runs.append(env.rollout(100))
    if runs[0].shape == runs[1].shape and bool((runs[0] == runs[1]).all()):
        yield Finding("ok", "same seed", "the same episode, to the last bit")
    else:
        remedy = "draw all its random numbers from what reset(seed=...) seeds; until then a resumed run starts new ones"
        yield Finding("warning", "same seed", "two episodes of the same seed and actions differ", remedy)


def _spread(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dreamer_torchrl.doctor", description=__doc__)
    text = "try an environment instead, such as env=gym env.id=Taxi-v4"
    parser.add_argument("--env", nargs="+", metavar="KEY=VALUE", help=text)
    overrides = parser.parse_args(arguments).env
    try:
        env = load(overrides).settings.env if overrides else None
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2

    logger.setLevel("WARNING")  # its lines would stand between what is found
    problems = 0
    for finding in machine() if env is None else examine(env.family, env.options):
        print(finding)
        problems += finding.level == "problem"
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main())
