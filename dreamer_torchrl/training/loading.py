"""Load a run or a pretrained agent from its folder; for a command, what is wrong becomes a message and an exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamer_torchrl.config.checks import ConfigError
from dreamer_torchrl.config.compose import read_saved, saved_settings
from dreamer_torchrl.training.pretrained import CARD, Card, located, read_card, read_weights

if TYPE_CHECKING:
    from tensordict import NestedKey, TensorDictBase
    from torch import Tensor

    from dreamer_torchrl.agents.agent import Agent
    from dreamer_torchrl.agents.player import Latents
    from dreamer_torchrl.agents.policy import Policy
    from dreamer_torchrl.checkpoint.checkpoints import Saved
    from dreamer_torchrl.config.schema import Settings
    from dreamer_torchrl.training.evaluation import Evaluation

FAILED, BAD_ARGUMENTS, NO_CHECKPOINT = 1, 2, 3
OWN_MODULES = "dreamer_torchrl.modules."


@dataclass
class LoadedRun:
    path: Path  # the folder of the run or of the pretrained agent
    settings: Settings
    agent: Agent  # with the weights of ``saved``
    saved: Saved | None  # None of a pretrained agent, which has weights and a ``card`` only
    action_bounds: Mapping[NestedKey, tuple[Tensor, Tensor]]  # of the environment; the agent's own are -1 and 1
    card: Card | None = None

    def __post_init__(self) -> None:
        from dreamer_torchrl.agents.player import Player
        from dreamer_torchrl.training.build import seed_for

        sample, seed = not self.settings.eval.deterministic, seed_for(self.settings.seed, "play")
        self._player = Player(self.agent, sample=sample, seed=seed, bounds=self.action_bounds)

    @property
    def policy(self) -> Policy:
        """For TorchRL rollouts and collectors; environments need `InitTracker`, actions are -1 to 1."""
        return self.agent.policy

    @property
    def step(self) -> int:
        return self.saved.step if self.saved else self.card.steps

    @property
    def name(self) -> str:
        """That of the checkpoint or of the pretrained agent, for files that are made with it."""
        return self.saved.path.name if self.saved else self.path.name

    @property
    def home(self) -> Path:
        """Where commands put such files: the run's folder, and the present one for a pretrained agent."""
        return self.path if self.saved else Path()

    def act(self, observation: Any, state: Latents | None = None) -> tuple[Any, Latents]:
        return self._player.act(observation, state)

    def recorded(self, steps: int) -> TensorDictBase:
        """The last ``steps`` of each environment that the run's replay holds, ``[T, N]``; reads no others."""
        if self.saved is None:
            raise ValueError(f"{self.path} is a pretrained agent, it has no replay: collect steps with its policy.")
        return self.saved.last_steps(steps)


def load(run: str | Path, checkpoint: str | None = None) -> LoadedRun:
    """Load an agent (``.agent``, ``.policy``, ``.act``) on the CPU; no environment is needed.

    Args:
        run: folder of a run or of a pretrained agent, or ``pretrained/NAME`` for one that comes with the package.
        checkpoint: name of one of the run's checkpoints, the newest sound one if left out.
    """
    from dreamer_torchrl.checkpoint.checkpoints import Checkpoints  # these need torch, which takes seconds
    from dreamer_torchrl.checkpoint.specs import Specs
    from dreamer_torchrl.training.build import make_agent

    path, card, saved = located(run), None, None
    if (path / CARD).is_file():
        card = read_card(path)
        settings = saved_settings(path, card.configuration)
        foreign = foreign_parts(settings)
        if checkpoint is not None or foreign:
            fault = f"no checkpoint {checkpoint!r}" if checkpoint is not None else f"no code for its agent.{foreign[0]}"
            raise ConfigError(f"{path} is a pretrained agent, with weights only: it has {fault}.")
        specs, weights = Specs.from_tree(card.specs), read_weights(path, card)
    else:
        settings = saved_settings(path)
        checkpoints = Checkpoints(path / "checkpoints", settings.checkpoint.keep)
        if checkpoint is not None and checkpoint not in checkpoints.names():
            names = ", ".join(checkpoints.names()) or "none"
            raise ConfigError(f"{path} has no checkpoint {checkpoint!r}; it has {names}.")
        # What was learned is of use without the replay, which may be large and slow to read.
        saved = checkpoints.load() if checkpoint is None else checkpoints.read(checkpoint)
        if saved is None:
            raise ConfigError(f"{path} has no checkpoint yet: let it train for a while.")
        specs, weights = Specs.from_tree(saved.parts["specs"]), saved.parts["learner"]["agent"]
    agent = make_agent(settings, specs, "cpu").eval()
    agent.load_state_dict(weights)
    return LoadedRun(path, settings, agent, saved, specs.bounds, card)


def foreign_parts(settings: Settings) -> list[str]:
    """Parts of the agent that are code of its own."""
    return [name for name, part in settings.agent.parts.items() if not ours(part)]


def ours(part: Any) -> bool:
    """Whether a part names modules of this package alone: a card from a stranger can make `load` call nothing else."""
    if isinstance(part, Mapping):
        named = str(part.get("_target_", OWN_MODULES)).startswith(OWN_MODULES)
        return named and all(map(ours, part.values()))
    return all(map(ours, part)) if isinstance(part, list | tuple) else True


def open_run(parser: argparse.ArgumentParser, folder: Path, checkpoint: str | None) -> LoadedRun:
    """The run in a folder, with as many threads of torch as its training had; without one the command ends here."""
    try:
        if not (located(folder) / CARD).is_file():
            read_saved(folder)
    except ConfigError as error:
        parser.error(str(error))

    import torch
    from torchrl import logger

    from dreamer_torchrl.checkpoint.checkpoints import NoSoundCheckpoint
    from dreamer_torchrl.checkpoint.manifest import DamagedFile

    logger.setLevel("WARNING")  # it tells of each storage that it makes
    try:
        run = load(folder, checkpoint)
    except ConfigError as error:
        parser.error(str(error))
    except (NoSoundCheckpoint, DamagedFile) as error:
        print(error, file=sys.stderr)
        sys.exit(NO_CHECKPOINT)
    for damage in run.saved.damaged if run.saved else ():
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
    except ConfigError as error:  # the agent does not need its environment, playing does
        print(error, file=sys.stderr)
        sys.exit(BAD_ARGUMENTS)
    try:
        with closing(evaluator):
            evaluation = evaluator.run()
    except TooManyFailures as error:
        print(error, file=sys.stderr)
        sys.exit(FAILED)
    for note in evaluation.notes:
        print(note)
    return evaluation
