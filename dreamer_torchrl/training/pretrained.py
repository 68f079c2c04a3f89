"""Pretrained agents: a folder with weights and a card, from which an agent is built without a run or an environment."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamer_torchrl.checkpoint.manifest import DamagedFile
from dreamer_torchrl.config.compose import CONFIGS
from dreamer_torchrl.limits import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

CARD, WEIGHTS = "card.json", "agent.safetensors"
FORMAT = 1
PRETRAINED = Path(CONFIGS).parent / "pretrained"  # beside configs, in the repository as in an installed package


@dataclass(frozen=True)
class Card:
    """What is known of a pretrained agent; ``card.json`` holds it."""

    task: str
    seed: int  # of the training
    steps: int
    size: str
    parameters: int
    score: dict[str, float] | None  # of `evaluate`: mean, deviation, episodes, and their seed
    minutes: float
    command: str
    commit: str | None
    licence: str
    versions: dict[str, str]  # of the libraries that trained it
    sha256: str  # of the weights
    specs: dict[str, Any]
    configuration: dict[str, Any]  # of the run

    def text(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"


def located(run: str | Path) -> Path:
    """The folder; of ``pretrained:NAME``, or of ``pretrained/NAME`` where that is no folder, the one in the package."""
    path = Path(run)
    named = re.fullmatch(r"pretrained[:/]([\w-]+)", path.as_posix())
    if named is None or path.is_dir():
        return path
    if named[1] not in pretrained_names():
        there = ", ".join(pretrained_names()) or "none"
        raise ConfigError(f"There is no pretrained agent {named[1]!r}; there are: {there}.")
    return PRETRAINED / named[1]


def pretrained_names() -> list[str]:
    return sorted(file.parent.name for file in PRETRAINED.glob(f"*/{CARD}"))


def read_card(folder: Path) -> Card:
    file = folder / CARD
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
        if body.pop("format") != FORMAT:
            raise DamagedFile(f"{file} has another format than {FORMAT}: install the newest dreamer_torchrl")
        return Card(**body)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        fault = f"{file} is not the card of a pretrained agent ({type(error).__name__})"
        raise DamagedFile(f"{fault}: install the package again, or copy or download the folder again") from error


def read_weights(folder: Path, card: Card) -> dict[str, Tensor]:
    """The weights, if they are those of the card; raises `DamagedFile` otherwise."""
    from safetensors.torch import load

    file = folder / WEIGHTS
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DamagedFile(f"{file} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != card.sha256:
        fault = f"{file} has another checksum than its card says"
        raise DamagedFile(f"{fault}: install the package again, or copy or download the folder again")
    return load(content)
