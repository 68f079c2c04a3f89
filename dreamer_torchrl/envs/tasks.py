"""Two small environments that show at once whether an agent sees and whether it remembers."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""Up, down, left, right, as rows and columns."""

BACKGROUND, TARGET, AGENT = (40, 40, 40), (60, 200, 80), (230, 70, 70)


class GridReach(gymnasium.Env):
    """Walk a red square to a green one on a 5 x 5 grid, seen as a 64 x 64 picture.

    Each step costs 1 / 25, reaching the target gives 1 and ends the episode; after 25 steps it is cut off. Both squares
    start anywhere, on different cells, so that the shortest way is 2 * 5 / 3 steps long on average. An agent that
    always takes it gets `optimum` = 1 - (2 * 5 / 3) / 25 = 13 / 15 on average.

    Example:
        >>> round(GridReach.optimum, 4)
        0.8667
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012, this is how gymnasium wants it
    cells, limit = 5, 25
    optimum = 1 - 2 * cells / 3 / limit

    def __init__(self, render_mode: str | None = None):
        self.render_mode = render_mode
        self.observation_space = Box(0, 255, (64, 64, 3), np.uint8)
        self.action_space = Discrete(len(MOVES))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Put both squares somewhere."""
        super().reset(seed=seed)
        agent, target = self.np_random.choice(self.cells**2, 2, replace=False)
        self.agent, self.target = divmod(int(agent), self.cells), divmod(int(target), self.cells)
        self.steps = 0
        return self.render(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Move one cell; a wall stops the square."""
        row, column = (
            min(max(place + move, 0), self.cells - 1) for place, move in zip(self.agent, MOVES[action], strict=True)
        )
        self.agent = (row, column)
        self.steps += 1
        reached = self.agent == self.target
        reward = float(reached) - 1 / self.limit
        return self.render(), reward, reached, not reached and self.steps >= self.limit, {}

    def render(self) -> np.ndarray:
        """Draw the grid with a border of two pixels."""
        picture = np.full((64, 64, 3), BACKGROUND, np.uint8)
        for (row, column), color in ((self.target, TARGET), (self.agent, AGENT)):
            picture[2 + 12 * row : 14 + 12 * row, 2 + 12 * column : 14 + 12 * column] = color
        return picture


class Memory(gymnasium.Env):
    """See a cue, walk 30 steps through a corridor without information, then choose the action that matches the cue.

    The observation is the cue as a one-hot vector, shown at the first step only and zero afterwards, and a flag that
    asks for the choice ``corridor`` steps later. The right choice gives 1, any other 0, and the episode ends; what is
    done before the choice changes nothing. The `optimum` is 1, and 1 / ``cues`` is what one gets by chance.
    """

    optimum = 1.0

    def __init__(self, cues: int = 2, corridor: int = 30):
        self.cues, self.corridor = cues, corridor
        self.observation_space = Box(0, 1, (cues + 1,), np.float32)
        self.action_space = Discrete(cues)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Draw a cue and show it."""
        super().reset(seed=seed)
        self.cue = int(self.np_random.integers(self.cues))
        self.steps = 0
        seen = np.zeros(self.cues + 1, np.float32)
        seen[self.cue] = 1
        return seen, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Go on; the action counts where the flag was seen."""
        chosen = self.steps == self.corridor
        self.steps += 1
        seen = np.zeros(self.cues + 1, np.float32)
        seen[-1] = self.steps == self.corridor
        return seen, float(chosen and action == self.cue), chosen, False, {}
