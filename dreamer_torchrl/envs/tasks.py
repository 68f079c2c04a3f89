"""Small environments that test vision, memory and exploration."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # up, down, left, right, as rows and columns
BACKGROUND, TARGET, AGENT, WALL = (40, 40, 40), (60, 200, 80), (230, 70, 70), (150, 150, 150)


class GridReach(gymnasium.Env):
    """Walk a red square to a green one on a small grid, seen as a 64 x 64 image.

    Both start on random, different cells, of which a side has 2 to 10. Each step costs 1 / ``limit``, reaching the
    target gives 1; after ``limit`` steps the episode is truncated. The best path gives the `optimum` on average.

    Example:
        >>> round(GridReach(cells=5).optimum, 4)
        0.8667
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012, this is how gymnasium wants it

    def __init__(self, cells: int = 3, render_mode: str | None = None):
        if not 2 <= cells <= 10:
            raise ValueError(f"cells={cells} is impossible: give 2 to 10.")
        self.cells, self.limit, self.render_mode = cells, cells**2, render_mode
        self.side = 60 // cells  # of a cell, in pixels
        self.optimum = 1 - 2 / 3 * cells / self.limit
        self.observation_space = Box(0, 255, (64, 64, 3), np.uint8)
        self.action_space = Discrete(len(MOVES))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        agent, target = self.np_random.choice(self.cells**2, 2, replace=False)
        self.agent, self.target = divmod(int(agent), self.cells), divmod(int(target), self.cells)
        self.steps = 0
        return self.render(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        moved = [place + move for place, move in zip(self.agent, MOVES[action], strict=True)]
        self.agent = tuple(min(max(place, 0), self.cells - 1) for place in moved)  # a wall stops the square
        self.steps += 1
        reached = self.agent == self.target
        return self.render(), float(reached) - 1 / self.limit, reached, not reached and self.steps >= self.limit, {}

    def render(self) -> np.ndarray:
        picture = np.full((64, 64, 3), BACKGROUND, np.uint8)
        for (row, column), color in ((self.target, TARGET), (self.agent, AGENT)):
            top, left = 2 + self.side * row, 2 + self.side * column
            picture[top : top + self.side, left : left + self.side] = color
        return picture


class Maze(gymnasium.Env):
    """Walk a red square through one long corridor, seen as a 64 x 64 image, to its green end.

    The corridor runs to and fro through the rows of a grid, of which a side has 3 to 10 cells; each episode starts at
    its first cell. Reaching the end gives 1 and ends the episode, unless ``rewards`` is false: then nothing gives a
    reward, and episodes last ``limit`` steps. ``info["cell"]`` is how far along the corridor the square is.

    Example:
        >>> env = Maze(cells=3)
        >>> _ = env.reset(seed=0)
        >>> [env.step(action)[4]["cell"] for action in (3, 3, 0, 1, 2)]  # right, right, up, down, left
        [1, 2, 2, 3, 4]
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012
    optimum = 1.0

    def __init__(self, cells: int = 10, limit: int = 150, rewards: bool = True, render_mode: str | None = None):
        if not 3 <= cells <= 10:
            raise ValueError(f"cells={cells} is impossible: give 3 to 10.")
        self.cells, self.limit, self.rewards, self.render_mode = cells, limit, rewards, render_mode
        self.side = 60 // cells  # of a cell, in pixels
        self.observation_space = Box(0, 255, (64, 64, 3), np.uint8)
        self.action_space = Discrete(len(MOVES))
        self.empty = self._empty()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.cell = self.steps = 0
        return self.render(), {"cell": 0}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        there = tuple(place + move for place, move in zip(self._place(self.cell), MOVES[action], strict=True))
        for neighbour in (self.cell - 1, self.cell + 1):
            if 0 <= neighbour < self.cells**2 and self._place(neighbour) == there:
                self.cell = neighbour
                break
        self.steps += 1
        reached = self.rewards and self.cell == self.cells**2 - 1
        truncated = not reached and self.steps >= self.limit
        return self.render(), float(reached), reached, truncated, {"cell": self.cell}

    def render(self) -> np.ndarray:
        picture = self.empty.copy()
        self._fill(picture, self.cell, AGENT)
        return picture

    def _place(self, cell: int) -> tuple[int, int]:
        """Row and column of a cell of the corridor, which turns at the end of each row."""
        row, column = divmod(cell, self.cells)
        return row, column if row % 2 == 0 else self.cells - 1 - column

    def _fill(self, picture: np.ndarray, cell: int, color: tuple[int, int, int]) -> None:
        top, left = (2 + self.side * place for place in self._place(cell))
        picture[top + 1 : top + self.side, left + 1 : left + self.side] = color

    def _empty(self) -> np.ndarray:
        """The corridor and its end, with walls between rows but for the cell where they are joined."""
        picture = np.full((64, 64, 3), BACKGROUND, np.uint8)
        for row in range(1, self.cells):
            opening = self.cells - 1 if row % 2 else 0
            for column in (column for column in range(self.cells) if column != opening):
                left = 2 + self.side * column
                picture[2 + self.side * row, left : left + self.side] = WALL
        if self.rewards:
            self._fill(picture, self.cells**2 - 1, TARGET)
        return picture


class Memory(gymnasium.Env):
    """See a card of lamps, walk through a corridor without information, then say whether the first lamp was on.

    The observation holds the lamps, 1 or -1 where the card is shown and 0 elsewhere, and a flag that asks for the
    choice, ``corridor`` steps after the card (or at least ``shortest``, drawn anew in each episode). The right choice
    gives 1 and ends the episode; the card is shown again. The `optimum` is 1, by chance one gets 1 / 2.
    """

    optimum = 1.0

    def __init__(self, lamps: int = 4, corridor: int = 30, shortest: int | None = None):
        self.lamps, self.corridor = lamps, corridor
        self.shortest = corridor if shortest is None else shortest
        if not 1 <= self.shortest <= corridor:
            raise ValueError(f"shortest={shortest} is impossible: give 1 to corridor={corridor}.")
        self.observation_space = Box(-1, 1, (lamps + 1,), np.float32)
        self.action_space = Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.card = self.np_random.integers(2, size=self.lamps)
        self.left = int(self.np_random.integers(self.shortest, self.corridor + 1))
        return self._seen(card=True), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        chosen = self.left == 0
        self.left -= 1
        return self._seen(chosen, flag=self.left == 0), float(chosen and action == self.card[0]), chosen, False, {}

    def _seen(self, card: bool = False, flag: bool = False) -> np.ndarray:
        return np.append(2 * self.card - 1 if card else np.zeros(self.lamps), flag).astype(np.float32)
