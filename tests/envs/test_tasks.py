"""The two test environments: what they show, what they pay, and that their optimum is what they say."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest

from dreamer_torchrl.envs import frame, make_env
from dreamer_torchrl.envs.tasks import AGENT, MOVES, TARGET, GridReach, Memory


def test_grid_optimum_is_that_of_all_starts() -> None:
    cells = list(product(range(GridReach.cells), repeat=2))
    returns = [1 - (abs(a - c) + abs(b - d)) / GridReach.limit for (a, b), (c, d) in permutations(cells, 2)]
    assert np.mean(returns) == pytest.approx(GridReach.optimum) == pytest.approx(13 / 15)


def place_of(picture: np.ndarray, color: tuple[int, int, int]) -> tuple[int, int]:
    """Row and column of a square in a picture."""
    rows, columns = np.nonzero((picture == color).all(-1))
    assert len(rows) == 12 * 12
    return (rows[0] - 2) // 12, (columns[0] - 2) // 12


def test_grid_is_solved_by_what_the_picture_shows() -> None:
    """Reading only the picture, the shortest way pays 1 minus its length over 25."""
    env = GridReach()
    for seed in range(20):
        picture, _ = env.reset(seed=seed)
        start, target = place_of(picture, AGENT), place_of(picture, TARGET)
        distance, total, terminated, steps = sum(abs(a - b) for a, b in zip(start, target, strict=True)), 0.0, False, 0
        while not terminated:
            (row, column), (goal_row, goal_column) = place_of(picture, AGENT), target
            vertical = np.sign(goal_row - row)
            move = (vertical, 0) if vertical else (0, np.sign(goal_column - column))
            picture, reward, terminated, truncated, _ = env.step(MOVES.index(tuple(map(int, move))))
            total, steps = total + reward, steps + 1
            assert not truncated
            if terminated:
                break
        assert steps == distance
        assert total == pytest.approx(1 - distance / GridReach.limit)


def test_grid_cuts_off_and_has_walls() -> None:
    env = GridReach()
    env.reset(seed=0)
    env.agent, env.target = (0, 0), (4, 4)
    outcomes = [env.step(0) for _ in range(GridReach.limit)]
    assert env.agent == (0, 0)
    assert [outcome[3] for outcome in outcomes] == [False] * 24 + [True]
    assert not any(outcome[2] for outcome in outcomes)
    assert sum(outcome[1] for outcome in outcomes) == pytest.approx(-1)


@pytest.mark.parametrize(("cues", "corridor"), [(2, 30), (4, 5)])
def test_memory_shows_the_cue_once_and_pays_the_choice(cues: int, corridor: int) -> None:
    env = Memory(cues, corridor)
    for seed, right in product(range(10), (True, False)):
        seen = [env.reset(seed=seed)[0]]
        cue = int(seen[0][:cues].argmax())
        rewards, ends = [], []
        for _ in range(corridor + 1):
            observation, reward, terminated, truncated, _ = env.step(cue if right else (cue + 1) % cues)
            seen.append(observation)
            rewards.append(reward)
            ends.append(terminated)
            assert not truncated
        assert seen[0].sum() == 1
        assert not seen[0][-1]
        assert all(not observation[:cues].any() for observation in seen[1:])
        assert [bool(observation[-1]) for observation in seen].index(True) == corridor
        assert rewards == [0] * corridor + [float(right)]
        assert ends == [False] * corridor + [True]


def test_memory_draws_every_cue() -> None:
    env = Memory(cues=4)
    assert {int(env.reset(seed=seed)[0].argmax()) for seed in range(40)} == {0, 1, 2, 3}


def test_frames() -> None:
    """A picture where one was asked for and the environment can draw."""
    grid = make_env("gym", {"id": "dreamer_torchrl/GridReach-v0", "render": True})
    assert (frame(grid) if grid.reset() is not None else None).shape == (64, 64, 3)
    cartpole = make_env("gym", {"id": "CartPole-v1", "render": True})
    cartpole.reset()
    assert frame(cartpole).dtype == np.uint8
    for silent in (
        make_env("gym", {"id": "CartPole-v1"}),
        make_env("gym", {"id": "dreamer_torchrl/Memory-v0", "render": True}),
    ):
        silent.reset()
        assert frame(silent) is None
