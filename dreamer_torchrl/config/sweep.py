"""Sweeps: `hydra.main` with any sweeper and launcher; each run is a process and has a folder of its own.

Launchers use a process for several runs, and what one leaves behind (threads and memory of torch, CUDA graphs, worker
processes) would change or end the next. So a job starts ``python -m dreamer_torchrl.train``, which continues the run
that is in its folder.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import FrameType

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import CompactHydraException, HydraException
from omegaconf import DictConfig

from dreamer_torchrl.config.checks import ConfigError
from dreamer_torchrl.config.compose import CONFIGS, VALUES, load, own_hydra
from dreamer_torchrl.config.overrides import GROUPS, check_supported, free_section, parse, quoted
from dreamer_torchrl.config.schema import Settings
from dreamer_torchrl.envs.registry import atari_games

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 0.2  # seconds after which a signal is passed on at the latest


class RunFailed(CompactHydraException):
    """A run of a sweep ended with an exit code; Hydra prints the message without a traceback."""


class Stopped(KeyboardInterrupt):
    """A signal ended a run of a sweep, and with it the sweep."""


@dataclass(frozen=True)
class State:
    """What the folder of a run tells, without torch.

    Args:
        step: of its newest checkpoint; none if there is none.
        value: the last evaluation's mean return.
        finished: whether there is nothing left to do.
    """

    step: int | None = None
    value: float | None = None
    finished: bool = False

    def __str__(self) -> str:
        parts = ["not started" if self.step is None else "finished" if self.finished else "not finished"]
        parts += [] if self.step is None else [f"step {self.step:,}"]
        parts += [] if self.value is None else [f"eval {self.value:,.1f}"]
        return ", ".join(parts)


def members(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each run, one for each combination of values, as Hydra's basic sweeper has them.

    Example:
        >>> members(["seed=0,1", "env=pendulum"])
        [['seed=0', 'env=pendulum'], ['seed=1', 'env=pendulum']]
    """
    lists: dict[str, list[str]] = {}
    try:
        with own_hydra() as files:
            parsed = OverridesParser.create(files).parse_overrides(list(overrides))
            sweeper = {one.key_or_group for one in parsed}
            for one in parsed:
                key = one.key_or_group
                if key.partition("/")[0].partition(".")[0] == "hydra":
                    continue
                if one.is_sweep_override() and one.is_discrete_sweep():
                    lists[key] = [f"{key}={value}" for value in one.sweep_string_iterator()]
                elif one.is_sweep_override() and "hydra/sweeper" not in sweeper:
                    told = "is for another hydra/sweeper: list values, or give range(3)."
                    raise ConfigError(f"{one.input_line!r} {told}")
                elif not one.is_sweep_override():  # the values of another sweeper are checked by each run
                    lists[key] = [one.input_line]
    except HydraException as error:
        raise ConfigError(str(error).splitlines()[0]) from None
    return [list(chosen) for chosen in product(*lists.values())]


def check(overrides: Sequence[str]) -> tuple[Path | None, list[list[str]]]:
    """The folder that the overrides name, if they do, and the overrides of each run; every value is checked once."""
    rest = without_folder(overrides)
    given = [override for override in overrides if override not in rest]
    folder = named_folder(quoted(given[-1])) if given else None
    check_supported(parse(rest), multirun=True)
    found = members(rest)
    seen: set[str] = set()
    for one in found:
        if not seen.issuperset(one):
            try:
                load(one)
            except ConfigError as error:
                run_of = f" (in the run with {' '.join(one)})" if len(found) > 1 else ""
                raise ConfigError(f"{error}{run_of}") from None
        seen.update(one)
    if not found:
        raise ConfigError(f"{' '.join(rest)} asks for no run at all: one of the lists of values is empty.")
    return folder, found


def without_folder(overrides: Sequence[str]) -> list[str]:
    """The overrides but for ``run_dir``."""
    return [override for override in overrides if override.partition("=")[0].lstrip("+") != "run_dir"]


def named_folder(override: str) -> Path | None:
    """The folder of a sweep, which ``run_dir`` names."""
    (one,) = parse([override])
    if one.value() is None:
        return None
    folder = Path(str(one.value()))
    if "${" in str(folder):
        raise ConfigError(f"run_dir={folder}: a sweep has one folder, and its runs have folders in it.")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run_dir={folder} is a file: give a folder, or a name that is not there yet.")
    if (folder / VALUES).is_file():
        raise ConfigError(f"run_dir={folder} is a run by itself: give the sweep another folder.")
    return folder


def run(overrides: Sequence[str], folder: Path) -> int:
    """Train all runs of a sweep in a folder; the exit code: 130 after Ctrl-C, 1 if a run failed, else 0."""
    rest = parse(without_folder(overrides))
    swept = {one.key_or_group for one in rest if one.is_sweep_override()}
    same = sorted({one.key_or_group for one in rest} - swept)
    for game in atari_games():  # what `chosen` takes beside the files
        ConfigStore.instance().store(name=game, node={"defaults": ["atari", "_self_"], "game": game}, group="env")
    sys.argv[1:] = [
        "--multirun",
        *("hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none"),
        f"hydra.sweep.dir='{folder!s}'",
        "hydra.sweep.subdir=${hydra.job.override_dirname}",
        f"hydra.job.config.override_dirname.exclude_keys=[{','.join(same)}]",
        *(_for_hydra(one, rest) for one in rest),
    ]
    try:
        hydra.main(CONFIGS, "config", "1.3")(job)()
    except KeyboardInterrupt as stopped:  # ours tells of the signal, a launcher's does not
        return 0 if stopped.args == (signal.SIGTERM,) else 130
    except SystemExit as error:  # Hydra has printed what failed
        return int(error.code or 0)
    return 0


def _for_hydra(override: Override, others: Sequence[Override]) -> str:
    line = override.input_line.lstrip("+")
    if override.key_or_group in GROUPS:
        return re.sub(r"\bnull\b", "none", line)
    return "++" * bool(free_section(override.key_or_group, others)) + line


def job(config: DictConfig) -> float | None:
    """Train one run of a sweep unless it is finished; its mean return, for sweepers that optimize."""
    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.sweep.dir) / hydra_config.sweep.subdir
    overrides = [override.lstrip("+") for override in hydra_config.overrides.task] + [f"run_dir={run_dir}"]
    settings = load(overrides).settings
    state = state_of(run_dir, settings)
    if state.finished:
        print(f"{run_dir}: finished already", flush=True)
        return state.value
    print(f"{run_dir}", flush=True)
    code, stopped = train(overrides)
    state = state_of(run_dir, settings)
    failed = f"failed (exit code {code}), " if code and not stopped else ""
    print(f"{run_dir}: {failed}{state}", flush=True)
    if stopped:
        raise Stopped(stopped)
    if failed:
        raise RunFailed(f"{run_dir} failed (exit code {code}).")
    return state.value


def train(overrides: Sequence[str]) -> tuple[int, signal.Signals | None]:
    """Train in a process, to which signals are passed on; its exit code and the first of these."""
    received: list[signal.Signals] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    before = {number: signal.signal(number, note) for number in STOPPING}
    try:
        # In a session of its own a terminal's Ctrl-C does not reach it, so that it gets the signal once, from here.
        process = subprocess.Popen([sys.executable, "-m", "dreamer_torchrl.train", *overrides], start_new_session=True)
        first = None
        while True:
            while received:
                process.send_signal(received[0])
                first = first or received[0]
                del received[0]
            with suppress(subprocess.TimeoutExpired):
                return process.wait(PATIENCE), first
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def state_of(run_dir: Path, settings: Settings) -> State:
    """How far a run is: finished when its last evaluation was the end, and its last checkpoint is of that step."""
    steps = [int(path.name[:12]) for path in (run_dir / "checkpoints").glob("[0-9]*") if path.name[:12].isdigit()]
    metrics = run_dir / "metrics.jsonl"
    if not steps:
        return State()
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    evaluation = next((json.loads(line) for line in reversed(lines) if '"eval/return": ' in line), {})
    step, value = max(steps), evaluation.get("eval/return")
    wanted, evaluated = settings.eval.stop_at, evaluation.get("step") == step
    solved = evaluated and None not in (wanted, value) and value >= wanted
    return State(step, value, solved or (step >= settings.total_steps and (evaluated or not settings.eval.every)))
