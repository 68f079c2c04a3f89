"""The numbers that make an agent small or large."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from importlib import resources
from typing import Annotated, Literal

from dreamer_torchrl.limits import Within

Units = Annotated[int, Within(ge=1)]


@dataclass(frozen=True)
class Size:
    """The numbers that make an agent small or large; named ones lie in ``configs/size``."""

    belief: Units
    hidden: Units
    stochastic: Units
    classes: Annotated[int, Within(ge=1, le=256)]  # class indices are stored as bytes
    blocks: Units
    depth: Units
    units: Units
    patch: Literal[1, 2, 4, 8] = 1

    def __post_init__(self) -> None:
        if self.belief % self.blocks:
            remedy = f"give a multiple of {math.lcm(self.blocks, 8)}"
            raise ValueError(f"belief={self.belief} does not split into {self.blocks} blocks: {remedy}.")

    @classmethod
    def named(cls, name: str) -> Size:
        folder = resources.files("dreamer_torchrl.configs").joinpath("size")
        file = folder.joinpath(f"{name}.yaml")
        if not file.is_file():
            known = sorted((path.name.removesuffix(".yaml") for path in folder.iterdir()), key=lambda n: (len(n), n))
            raise ValueError(f"Unknown size {name!r}: there are {', '.join(known)}.")
        # Without a YAML library, which is not there where only torch and TorchRL are.
        values = dict(re.findall(r"^(\w+): *(\d+)", file.read_text(), re.MULTILINE))
        return cls(**{field.name: int(values[field.name]) for field in fields(cls) if field.name in values})
