"""Sweeps: `hydra.main` with any sweeper and launcher; each run is a process and has a folder of its own.

Launchers use a process for several runs, and what one leaves behind (memory, CUDA graphs) would change the next.
"""

from __future__ import annotations

import ctypes
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from types import FrameType

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig

from dreamer_torchrl.config.checks import ConfigError
from dreamer_torchrl.config.compose import CONFIGS, VALUES, load, own_hydra, run_folder
from dreamer_torchrl.config.overrides import NULL, free_section, is_hydras, parse, quoted
from dreamer_torchrl.config.schema import Settings
from dreamer_torchrl.envs.registry import atari_games

ADVANCE = (signal.SIGUSR1, signal.SIGUSR2)  # a launcher's handler puts the job back into the queue
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *ADVANCE)
PARENT_DEATH_SIGNAL = 1  # of Linux's prctl


def members(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each run, one for each combination of values, as Hydra's basic sweeper has them."""
    lists: dict[str, list[str]] = {}
    with own_hydra() as files:
        parsed = parse(overrides, files)
        for one in (one for one in parsed if not is_hydras(one)):
            key = one.key_or_group
            if not one.is_sweep_override():
                lists[key] = [one.input_line]
            elif one.is_discrete_sweep():
                lists[key] = [f"{key}={value}" for value in one.sweep_string_iterator()]
            elif not any(other.key_or_group == "hydra/sweeper" for other in parsed):  # each run checks its values
                raise ConfigError(f"{one.input_line!r} is for another hydra/sweeper: list values, or give range(3).")
    return [list(chosen) for chosen in product(*lists.values())]


def check(overrides: Sequence[str]) -> tuple[Path | None, list[list[str]]]:
    """The folder that the overrides name, if they do, and the overrides of each run; every value is checked once."""
    rest = without_folder(overrides)
    given = [quoted(override) for override in overrides if override not in rest]
    if any("${" in override for override in given):
        raise ConfigError(f"{given[-1]}: a sweep has one folder, and its runs have folders in it.")
    folder = run_folder(given)
    if folder is not None and (folder / VALUES).is_file():
        raise ConfigError(f"run_dir={folder} is a run by itself: give the sweep another folder.")
    found, seen = members(rest), set()
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
    return [override for override in overrides if override.partition("=")[0].lstrip("+") != "run_dir"]


def run(overrides: Sequence[str], folder: Path) -> int:
    """Train all runs of a sweep in a folder; the exit code: 130 after Ctrl-C, 1 if a run failed, else 0."""
    with own_hydra() as files:
        rest = parse(without_folder(overrides), files)
    same = {one.key_or_group for one in rest} - {one.key_or_group for one in rest if one.is_sweep_override()}
    for game in atari_games():  # what `chosen` takes beside the files
        ConfigStore.instance().store(name=game, node={"defaults": ["atari", "_self_"], "game": game}, group="env")
    sys.argv[1:] = [
        "--multirun",
        *("hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none"),
        f"hydra.sweep.dir='{folder!s}'",
        "hydra.sweep.subdir=${hydra.job.override_dirname}",
        f"hydra.job.config.override_dirname.exclude_keys=[{','.join(sorted(same))}]",
    ]
    for one in rest:
        line = one.input_line if is_hydras(one) else one.input_line.lstrip("+")
        if one.key_or_group in NULL:
            line = re.sub(r"\bnull\b", NULL[one.key_or_group], line)
        sys.argv.append("++" * bool(free_section(one.key_or_group, rest)) + line)
    try:
        hydra.main(CONFIGS, "config", "1.3")(job)()
    except KeyboardInterrupt as stopped:  # ours tells of the signal, a launcher's does not
        return 0 if stopped.args == (signal.SIGTERM,) else 130
    except SystemExit as error:  # Hydra has printed what failed
        return int(error.code or 0)
    return 0


def job(config: DictConfig) -> float | None:
    """Train one run of a sweep unless it is finished; its mean return, for sweepers that optimize."""
    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.sweep.dir) / hydra_config.sweep.subdir
    overrides = [override.lstrip("+") for override in hydra_config.overrides.task] + [f"run_dir={run_dir}"]
    settings = load(overrides).settings
    finished, value, _ = state_of(run_dir, settings)
    print(f"{run_dir}: finished already" if finished else run_dir, flush=True)
    if finished:
        return value
    code, stopped = train(overrides)
    _, value, state = state_of(run_dir, settings)
    failed = f"failed (exit code {code}), " if code and not stopped else ""
    print(f"{run_dir}: {failed}{state}", flush=True)
    if stopped:
        raise KeyboardInterrupt(stopped)  # which ends the sweep
    if failed:
        raise CompactHydraException(f"{run_dir} failed (exit code {code}).")  # printed without a traceback
    return value


def train(overrides: Sequence[str]) -> tuple[int, signal.Signals | None]:
    """Train in a process, to which signals are passed on; its exit code and the first of these.

    What a launcher does at SIGUSR1 or SIGUSR2 waits until the run is saved. If this process is killed, the run is
    stopped with SIGTERM.
    """
    process, received = None, []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(signal.SIGTERM if number == signal.SIGHUP else number))
        if process:
            process.send_signal(received[-1])

    before = {number: signal.signal(number, pass_on) for number in STOPPING}
    try:
        # In a session of its own a terminal's Ctrl-C does not reach it, so that it gets the signal once, from here.
        command = [sys.executable, "-m", "dreamer_torchrl.train", *overrides]
        process = subprocess.Popen(command, start_new_session=True, preexec_fn=ends_with_parent())
        if received:  # while it started
            process.send_signal(received[0])
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    first = next(iter(received), None)
    if first in ADVANCE:
        signal.raise_signal(first)
    return code, first


def ends_with_parent() -> Callable[[], object] | None:
    """What a child process calls to get SIGTERM when its parent dies; Linux has that."""
    if sys.platform != "linux":
        return None
    return partial(ctypes.CDLL(None).prctl, PARENT_DEATH_SIGNAL, signal.SIGTERM)


def state_of(run_dir: Path, settings: Settings) -> tuple[bool, float | None, str]:
    """Whether a run's last evaluation and checkpoint were its end, its last mean return, and both in words."""
    steps = [int(path.name[:12]) for path in (run_dir / "checkpoints").glob("[0-9]*") if path.name[:12].isdigit()]
    if not steps:
        return False, None, "not started"
    metrics, step, wanted = run_dir / "metrics.jsonl", max(steps), settings.eval.stop_at
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    evaluation = next((json.loads(line) for line in reversed(lines) if '"eval/return": ' in line), {})
    value, evaluated = evaluation.get("eval/return"), evaluation.get("step") == step
    solved = evaluated and None not in (wanted, value) and value >= wanted
    finished = solved or (step >= settings.end and (evaluated or not settings.eval.every))
    evaluated = "" if value is None else f", eval {value:,.1f}"
    return finished, value, f"{'' if finished else 'not '}finished, step {step:,}{evaluated}"
