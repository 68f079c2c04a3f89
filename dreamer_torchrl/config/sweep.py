"""Several runs one after another, each a process and a folder of its own."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from dreamer_torchrl.config.checks import ConfigError
from dreamer_torchrl.config.compose import GROUPS, VALUES, Configuration, choices, load
from dreamer_torchrl.config.schema import Settings
from dreamer_torchrl.config.words import Combination, combinations, parse
from dreamer_torchrl.record.console import duration

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FAILED = 1
PATIENCE = 0.2
"""Seconds after which a signal is passed on at the latest."""


@dataclass(frozen=True)
class Member:
    """One run of a sweep: its name, which is that of its folder, its words and what they mean."""

    name: str
    words: list[str]
    configuration: Configuration


@dataclass(frozen=True)
class State:
    """What a run's folder tells, without torch.

    Args:
        step: of its newest checkpoint; none if there is none.
        value: the last evaluation's mean return.
        finished: whether there is nothing left to do.
    """

    step: int | None = None
    value: float | None = None
    finished: bool = False


def members(words: Sequence[str]) -> tuple[Path | None, list[Member]]:
    """The folder that the words name, if they do, and every run of the sweep, all of them checked."""
    folder = named_folder(words)
    offered = {group: list(choices(group)) for group in GROUPS}
    found = combinations([word for word in words if not is_run_dir(word)], offered)
    checked: dict[str, Configuration] = {}
    for one in in_telling_order(found):
        place = [] if folder is None else [f"run_dir={folder / one.name}"]
        try:
            checked[one.name] = load([*one.words, *place])
        except ConfigError as error:
            raise ConfigError(f"{error} (in the run {one.name})" if len(found) > 1 else str(error)) from None
    return folder, [Member(one.name, one.words, checked[one.name]) for one in found]


def named_folder(words: Sequence[str]) -> Path | None:
    """Where the runs go: what ``run_dir`` says."""
    paths = [word.partition("=")[2] for word in words if is_run_dir(word)]
    if not paths or paths[-1] in ("", "null"):
        return None
    if "${" in paths[-1]:
        raise ConfigError(f"run_dir={paths[-1]}: a sweep has one folder, and its runs have folders in it.")
    path = paths[-1]
    folder = Path(str(parse([f"run_dir={path}"])[0].value()) if path[0] in "'\"" else path).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run_dir={folder} is a file: give a folder, or a name that is not there yet.")
    if (folder / VALUES).is_file():
        raise ConfigError(f"run_dir={folder} is a run by itself: give the sweep another folder.")
    return folder


def is_run_dir(word: str) -> bool:
    """Whether a word sets ``run_dir``."""
    return word.partition("=")[0].lstrip("+") == "run_dir"


def in_telling_order(found: Sequence[Combination]) -> list[Combination]:
    """First those with a word that none before them has, so that a wrong one is soon found."""
    seen: set[str] = set()
    early, late = [], []
    for one in found:
        (late if seen.issuperset(one.words) else early).append(one)
        seen.update(one.words)
    return early + late


def state_of(run_dir: Path, settings: Settings) -> State:
    """How far a run is: finished when its last evaluation was the end, and its last checkpoint is of that step."""
    steps = [int(path.name[:12]) for path in (run_dir / "checkpoints").glob("[0-9]*") if path.name[:12].isdigit()]
    metrics = run_dir / "metrics.jsonl"
    if not steps:
        return State()
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    evaluation = next((json.loads(line) for line in reversed(lines) if '"eval/return": ' in line), {})
    step, value = max(steps), evaluation.get("eval/return")
    wanted, told = settings.eval.stop_at, evaluation.get("step") == step
    solved = told and None not in (wanted, value) and value >= wanted
    return State(step, value, solved or (step >= settings.total_steps and (told or not settings.eval.every)))


def say_now(text: str) -> None:
    """Print a line before the run prints its own."""
    print(text, flush=True)


class Sweep:
    """Train the members that are not finished, in their order.

    A process that is asked to stop (Ctrl-C, SIGTERM, or its terminal closes) asks the run, which saves itself, and
    starts no other; a second Ctrl-C reaches the run, too.

    Args:
        folder: holds a folder for each run.
        runs: all of them.
        say: prints a line.
    """

    def __init__(self, folder: Path, runs: Sequence[Member], say: Callable[[str], None] = say_now):
        self.folder, self.runs, self.say = folder, list(runs), say
        self.stopped: signal.Signals | None = None
        self._to_pass_on: list[signal.Signals] = []

    def run(self) -> int:
        """Train, and say how each went; the exit code: 130 after Ctrl-C, 1 if a run failed, else 0."""
        before = {number: signal.signal(number, self._stop) for number in STOPPING}
        codes: dict[str, int] = {}
        seconds: dict[str, float] = {}
        try:
            for number, one in enumerate(self.runs, 1):
                left = f"[{number}/{len(self.runs)}] {one.name}"
                if state_of(self.folder / one.name, one.configuration.settings).finished:
                    self.say(f"{left}: finished already")
                elif self.stopped is None:
                    self.say(left)
                    started = time.monotonic()
                    codes[one.name] = self._train(one)
                    seconds[one.name] = time.monotonic() - started
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return self._tell(codes, seconds)

    def _train(self, one: Member) -> int:
        command = [sys.executable, "-m", "dreamer_torchrl.train", *one.words, f"run_dir={self.folder / one.name}"]
        # In a session of its own a terminal's Ctrl-C does not reach it, so that it gets the signal once, from here.
        process = subprocess.Popen(command, start_new_session=True)
        while True:
            while self._to_pass_on:
                process.send_signal(self._to_pass_on.pop(0))
            with suppress(subprocess.TimeoutExpired):
                return process.wait(PATIENCE)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        # A run knows no SIGHUP: it would end without a checkpoint.
        self.stopped = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
        self._to_pass_on.append(self.stopped)

    def _tell(self, codes: dict[str, int], seconds: dict[str, float]) -> int:
        """A line for each run."""
        width = max(len(one.name) for one in self.runs)
        failed = False
        self.say(f"Sweep of {len(self.runs)} run{'s' * (len(self.runs) > 1)} in {self.folder}:")
        for one in self.runs:
            state, code = state_of(self.folder / one.name, one.configuration.settings), codes.get(one.name, 0)
            how = "finished" if state.finished else "not started" if state.step is None else "stopped"
            if code and not (state.finished or self.stopped):
                how, failed = f"failed (exit code {code})", True
            parts = [how]
            parts += [] if state.step is None else [f"step {state.step:,}"]
            parts += [] if state.value is None else [f"eval {state.value:,.1f}"]
            parts += [duration(seconds[one.name])] if one.name in seconds else []
            self.say(f"  {one.name:<{width}}  {', '.join(parts)}")
        if self.stopped is signal.SIGINT:
            return 128 + self.stopped
        return FAILED if failed else 0


def continue_command(words: Sequence[str], folder: Path) -> str:
    """What to type in a shell to go on with a sweep.

    Example:
        >>> continue_command(["seed=0,1", "env=choice(cartpole,pendulum)"], Path("runs/first"))
        "python -m dreamer_torchrl.train --multirun seed=0,1 'env=choice(cartpole,pendulum)' run_dir=runs/first"
    """
    kept = [word for word in words if not is_run_dir(word)]
    return shlex.join(["python", "-m", "dreamer_torchrl.train", "--multirun", *kept, f"run_dir={folder}"])
