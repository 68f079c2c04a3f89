"""Open a run for a command: what is wrong becomes a message and an exit code."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from dreamer_torchrl.config.checks import ConfigError
from dreamer_torchrl.config.compose import read_saved
from dreamer_torchrl.envs.registry import UnknownEnvironment

if TYPE_CHECKING:
    from dreamer_torchrl.agents.agent import Agent
    from dreamer_torchrl.config.schema import Settings
    from dreamer_torchrl.training.build import LoadedRun
    from dreamer_torchrl.training.evaluation import Evaluation

FAILED, BAD_ARGUMENTS, NO_CHECKPOINT = 1, 2, 3


def open_run(parser: argparse.ArgumentParser, folder: Path, checkpoint: str | None) -> LoadedRun:
    """The run in a folder, with as many threads of torch as its training had; without one the command ends here."""
    try:
        read_saved(folder)
    except ConfigError as error:
        parser.error(str(error))

    import torch  # this and what needs it takes seconds
    from torchrl import logger

    from dreamer_torchrl.checkpoint.checkpoints import NoSoundCheckpoint
    from dreamer_torchrl.checkpoint.manifest import DamagedFile
    from dreamer_torchrl.training.build import load

    logger.setLevel("WARNING")  # it tells of each storage that it makes
    try:
        run = load(folder, checkpoint)
    except (ConfigError, UnknownEnvironment) as error:
        parser.error(str(error))
    except (NoSoundCheckpoint, DamagedFile) as error:
        print(error, file=sys.stderr)
        sys.exit(NO_CHECKPOINT)
    for damage in run.saved.damaged:
        print(damage, file=sys.stderr)
    if run.settings.threads:  # the same numbers as in training take the same arithmetic
        torch.set_num_threads(run.settings.threads)
    return run


def play(settings: Settings, agent: Agent, film: bool = False, record: int = 0) -> Evaluation:
    """Play the episodes of ``settings.eval`` as training does; environments that keep failing end the command."""
    from dreamer_torchrl.collectors.stream_envs import TooManyFailures
    from dreamer_torchrl.training.evaluation import Evaluator

    try:
        evaluator = Evaluator(settings, agent, film, record)
    except (ConfigError, UnknownEnvironment) as error:  # the agent does not need its environment, playing does
        print(error, file=sys.stderr)
        sys.exit(BAD_ARGUMENTS)
    with closing(evaluator):
        try:
            evaluation = evaluator.run()
        except TooManyFailures as error:
            print(error, file=sys.stderr)
            sys.exit(FAILED)
    for note in evaluation.notes:
        print(note)
    return evaluation
