"""``python -m dreamer_torchrl.train``: train an agent, or continue a run.

Usage:
  python -m dreamer_torchrl.train                        train CartPole-v1 on this machine
  python -m dreamer_torchrl.train env=pendulum seed=1    another environment, another seed
  python -m dreamer_torchrl.train run_dir=RUN            continue a run
  python -m dreamer_torchrl.train list                   what env, size, experiment and logger can be
  python -m dreamer_torchrl.train env=pong --cfg         print the configuration and stop
  python -m dreamer_torchrl.train -m seed=0,1,2 env=cartpole,pendulum
                                                         several runs, one for each combination of values;
                                                         the same command with run_dir=FOLDER continues them

On several GPUs or machines: torchrun --nproc-per-node 4 -m dreamer_torchrl.train run_dir=RUN ... (docs/cluster.md).

With -m or --multirun, Hydra's sweepers and launchers run them: seed=0,1,2, seed=range(3), size=choice(nano,size1m),
env=glob(*cart*), hydra/launcher=joblib. Every entry below can be set by key=value, an inner one as learner.horizon=100
or env.num_envs=4.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from importlib import metadata, resources
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from dreamer_torchrl.config import sweep
from dreamer_torchrl.config.checks import ConfigError, remarks
from dreamer_torchrl.config.compose import Configuration, describe, environment_name, load
from dreamer_torchrl.config.overrides import GROUPS, choices
from dreamer_torchrl.envs.registry import atari_games
from dreamer_torchrl.record.console import Console
from dreamer_torchrl.record.metrics import Metrics
from dreamer_torchrl.training.lock import RunLocked, RunNotWritable, run_lock
from dreamer_torchrl.training.signals import StopSignals

if TYPE_CHECKING:
    from dreamer_torchrl.checkpoint.checkpoints import Saved
    from dreamer_torchrl.config.schema import Settings
    from dreamer_torchrl.training.loop import Training
    from dreamer_torchrl.training.ranks import RunRanks

SHOW, SEVERAL = {"--cfg", "--cfg=job", "-c"}, {"-m", "--multirun"}  # Hydra's options

NOT_TRAINED, BAD_OVERRIDES, NO_CHECKPOINT = 1, 2, 3


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    only_show = bool(SHOW & set(arguments))
    try:
        if {"-h", "--help"} & set(arguments):
            return show(f"{__doc__}\n{resources.files('dreamer_torchrl.configs').joinpath('config.yaml').read_text()}")
        if arguments[:1] == ["list"]:
            return show(listing())
        overrides = overrides_in(arguments)
        if SEVERAL & set(arguments):
            return train_several(overrides, only_show)
        configuration = load(overrides)
        return show(configuration.text) if only_show else start(configuration)
    except (ConfigError, RunLocked, RunNotWritable) as error:
        print(error, file=sys.stderr)
        return BAD_OVERRIDES if isinstance(error, ConfigError) else NOT_TRAINED
    except KeyboardInterrupt:  # before there is anything to save
        return 130


def overrides_in(arguments: Sequence[str]) -> list[str]:
    """The arguments but for the options; one that is not there is refused."""
    pairs = zip(arguments, ["", *arguments], strict=False)
    kept = [one for one, before in pairs if one not in SHOW | SEVERAL and (one != "job" or before not in SHOW)]
    if unknown := next((one for one in kept if one.startswith("-")), None):
        known = "there are --help, --cfg and --multirun; settings have no dashes, as in seed=3 or experiment=NAME"
        raise ConfigError(f"There is no option {unknown.partition('=')[0]}: {known}.")
    return kept


def show(text: str) -> int:
    """Print to a reader that may leave, as ``head`` does; the exit code."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes at its end
    return 0


def listing() -> str:
    lines = []
    for group in GROUPS:
        lines += [f"{group}=", *(f"  {name:<24}{text}" for name, text in choices(group).items())]
        if group == "env":
            lines.append(f"  {'or any Atari game:':<24}{', '.join(atari_games())}")
    return "\n".join(lines)


def train_several(overrides: Sequence[str], only_show: bool) -> int:
    folder, members = sweep.check(overrides)
    configurations = [load(one) for one in members] if only_show or folder is None else []
    if only_show:
        return show("".join(f"--- # {' '.join(one.overrides)}\n{one.text}" for one in configurations))
    names = {environment_name(one.settings) for one in configurations}
    folder = folder or new_folder(names.pop() if len(names) == 1 else "sweep")
    print(f"Sweep of {len(members)} run{'s' * (len(members) > 1)} in run_dir={folder}", flush=True)
    code = sweep.run(overrides, folder)
    if code:
        again = [*sweep.without_folder(overrides), f"run_dir={folder}"]
        print("Continue with:", shlex.join(["python", "-m", "dreamer_torchrl.train", "--multirun", *again]), flush=True)
    return code


def start(configuration: Configuration) -> int:
    settings = configuration.settings
    with ExitStack() as cleanup:
        ranks, shown = None, sys.stdout
        if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun; its processes need torch at once
            from dreamer_torchrl.training.ranks import joined

            ranks = cleanup.enter_context(joined())
            if ranks.rank:
                shown = cleanup.enter_context(open(os.devnull, "w"))  # rank 0 tells for all
        console = Console(settings.end, shown, seconds=settings.log.every)
        stop = cleanup.enter_context(StopSignals(console.note))
        console.note(f"dreamer_torchrl {metadata.version('dreamer_torchrl')}: {describe(settings)}")
        run_dir = folder_for(settings, ranks)
        for note in (f"run_dir={run_dir}", *configuration.notes, *remarks(settings)):
            console.note(note)
        cleanup.enter_context(run_lock(ranks.folder(run_dir) if ranks else run_dir))
        return train(configuration, run_dir, console, stop, ranks)


def folder_for(settings: Settings, ranks: RunRanks | None) -> Path:
    """The folder of the run, on all ranks the same."""
    if settings.run_dir:
        return Path(settings.run_dir)
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        raise ConfigError("With --max-restarts a restart must find the run again: give run_dir=FOLDER.")
    if ranks is None:
        return new_folder(environment_name(settings))
    return ranks.told(None if ranks.rank else new_folder(environment_name(settings)))


def train(
    configuration: Configuration, run_dir: Path, console: Console, stop: StopSignals, ranks: RunRanks | None = None
) -> int:
    # Read when torch takes its first memory: large pages for large tensors, a seventh of the time of a large update.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    import torch  # this and what needs it takes seconds
    from torchrl import logger

    from dreamer_torchrl.checkpoint.checkpoints import NoSoundCheckpoint
    from dreamer_torchrl.learners.distributed import RankLost
    from dreamer_torchrl.training.build import make_metrics
    from dreamer_torchrl.training.loop import Training

    logger.setLevel("WARNING")  # it tells of each storage that it makes
    settings = configuration.settings
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with ExitStack() as cleanup:
        try:
            training = cleanup.enter_context(closing(Training(settings, run_dir, console, ranks)))
            saved = training.load()
            for damage in saved.damaged if saved else ():
                console.note(damage)
            if saved and saved.step > settings.end:
                told = "offline_updates" if settings.offline and settings.offline_only else "total_steps"
                console.note(f"{saved.step:,} steps are done already, more than {told}={getattr(settings, told)}.")
            if training.ranks.rank == 0:
                configuration.save(run_dir)
                metrics = make_metrics(
                    *(configuration, run_dir, console, saved.step if saved else None),
                    lambda: training.clock.elapsed / 3600,
                )
            else:
                metrics = Metrics([])
        except RankLost as error:
            print(error, file=sys.stderr)
            return NOT_TRAINED
        except NoSoundCheckpoint as error:
            console.note(str(error))
            return NO_CHECKPOINT
        except ValueError as error:  # too little memory, an environment or a logger that cannot be made
            console.note(str(error))
            return BAD_OVERRIDES
        except OSError as error:
            raise RunNotWritable(run_dir, error) from error
        return run(training, metrics, saved, stop)


def run(training: Training, metrics: Metrics, saved: Saved | None, stop: StopSignals) -> int:
    from dreamer_torchrl.collectors.stream_envs import ClusterLost, TooManyFailures
    from dreamer_torchrl.learners.distributed import RankLost
    from dreamer_torchrl.training.late import Diverged

    say, resume = training.console.note, resume_command(training.run_dir)
    try:
        with metrics:
            training.run(metrics, saved, stop)
    except Exception as error:
        training.checkpoints.wait()
        names = training.checkpoints.names()
        last = f"The last checkpoint is {names[-1]}." if names else "There is no checkpoint yet."
        known = isinstance(error, (ClusterLost, Diverged, TooManyFailures, RankLost))
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        if training.ranks.rank:  # rank 0 tells of what happens to all
            print(f"Rank {training.ranks.rank} stopped: {reason}", file=sys.stderr)
        say(f"Stopped: {reason}\n{last} Continue with: {resume}")
        if not known:
            raise
        return NOT_TRAINED
    steps = training.progress.position
    if training.checkpoints.failure:  # the console has said why
        say(f"Step {steps:,} is not saved. Make room, then continue from the last checkpoint: {resume}")
        return NOT_TRAINED
    if stop.requested:
        done = f"Stopped and saved at step {steps:,}." if steps else "Stopped before the first step."
        say(f"{done} Continue with: {resume}")
        return stop.exit_code
    learned = "" if training.progress.updates else " There were 0 updates: nothing was learned."
    evaluate = f"python -m dreamer_torchrl.evaluate {shlex.quote(str(training.run_dir))}"
    say(f"Finished and saved at step {steps:,}.{learned} Evaluate with: {evaluate}")
    return 0


def new_folder(name: str) -> Path:
    """Make a folder that was not there, named after what is trained and the time."""
    base = path = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in count(2):
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:  # several runs started in the same second
            path = base.with_name(f"{base.name}-{number}")
        except OSError as error:
            raise RunNotWritable(path.absolute(), error) from error


def resume_command(run_dir: Path) -> str:
    return f"python -m dreamer_torchrl.train {shlex.quote(f'run_dir={run_dir}')}"


if __name__ == "__main__":
    sys.exit(main())
