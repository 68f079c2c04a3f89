"""The two test environments: what they show, what they pay, and that their optimum is what they say."""

from __future__ import annotations

import copy
from itertools import permutations, product

import numpy as np
import pytest

from dreamer_torchrl.envs import frame, make_env
from dreamer_torchrl.envs.tasks import AGENT, MOVES, TARGET, GridReach, Maze, Memory


@pytest.mark.parametrize(("cells", "optimum"), [(3, 7 / 9), (5, 13 / 15)])
def test_grid_optimum_is_that_of_all_starts(cells: int, optimum: float) -> None:
    env = GridReach(cells)
    places = list(product(range(cells), repeat=2))
    returns = [1 - (abs(a - c) + abs(b - d)) / env.limit for (a, b), (c, d) in permutations(places, 2)]
    assert np.mean(returns) == pytest.approx(env.optimum) == pytest.approx(optimum)


def place_of(picture: np.ndarray, color: tuple[int, int, int], side: int) -> tuple[int, int]:
    """Row and column of a square in a picture."""
    rows, columns = np.nonzero((picture == color).all(-1))
    assert len(rows) == side * side
    return (rows[0] - 2) // side, (columns[0] - 2) // side


@pytest.mark.parametrize(("cells", "side"), [(3, 20), (5, 12), (10, 6)])
def test_grid_is_solved_by_what_the_picture_shows(cells: int, side: int) -> None:
    """Reading only the picture, the shortest way pays 1 minus its length over the number of cells."""
    env = GridReach(cells)
    for seed in range(20):
        picture, _ = env.reset(seed=seed)
        start, target = place_of(picture, AGENT, side), place_of(picture, TARGET, side)
        distance, total, terminated, steps = sum(abs(a - b) for a, b in zip(start, target, strict=True)), 0.0, False, 0
        while not terminated:
            (row, column), (goal_row, goal_column) = place_of(picture, AGENT, side), target
            vertical = np.sign(goal_row - row)
            move = (vertical, 0) if vertical else (0, np.sign(goal_column - column))
            picture, reward, terminated, truncated, _ = env.step(MOVES.index(tuple(map(int, move))))
            total, steps = total + reward, steps + 1
            assert not truncated
        assert steps == distance
        assert total == pytest.approx(1 - distance / cells**2)


def test_grid_cuts_off_and_has_walls() -> None:
    env = GridReach()
    env.reset(seed=0)
    env.agent, env.target = (0, 0), (2, 2)
    outcomes = [env.step(0) for _ in range(9)]
    assert env.agent == (0, 0)
    assert [outcome[3] for outcome in outcomes] == [False] * 8 + [True]
    assert not any(outcome[2] for outcome in outcomes)
    assert sum(outcome[1] for outcome in outcomes) == pytest.approx(-1)


def test_impossible_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="cells=11 is impossible: give 2 to 10"):
        GridReach(11)
    with pytest.raises(ValueError, match="shortest=31 is impossible: give 1 to corridor=30"):
        Memory(shortest=31)


@pytest.mark.parametrize(("lamps", "corridor"), [(4, 30), (1, 5)])
def test_memory_shows_the_card_at_both_ends_and_pays_the_choice(lamps: int, corridor: int) -> None:
    env = Memory(lamps, corridor)
    for seed, right in product(range(10), (True, False)):
        seen = [env.reset(seed=seed)[0]]
        first = int(seen[0][0] > 0)
        rewards, ends = [], []
        for _ in range(corridor + 1):
            observation, reward, terminated, truncated, _ = env.step(first if right else 1 - first)
            seen.append(observation)
            rewards.append(reward)
            ends.append(terminated)
            assert not truncated
        assert np.array_equal(np.abs(seen[0][:-1]), np.ones(lamps))
        assert np.array_equal(seen[0], seen[-1])
        assert not any(observation[:-1].any() for observation in seen[1:-1])
        assert [step for step, observation in enumerate(seen) if observation[-1]] == [corridor]
        assert rewards == [0] * corridor + [float(right)]
        assert ends == [False] * corridor + [True]


def test_memory_draws_every_card_and_every_corridor() -> None:
    env = Memory(lamps=3, corridor=4, shortest=2)
    cards, corridors = set(), set()
    for seed in range(200):
        cards.add(tuple(env.reset(seed=seed)[0][:-1]))
        steps = 0
        while not env.step(0)[2]:
            steps += 1
        corridors.add(steps)
    assert cards == set(product((-1, 1), repeat=3))
    assert corridors == {2, 3, 4}


def test_frames() -> None:
    """A picture where one was asked for and the environment can draw."""
    cartpole = make_env("gym", {"id": "CartPole-v1", "render": True})
    cartpole.reset()
    assert frame(cartpole).dtype == np.uint8
    for silent in (
        make_env("gym", {"id": "CartPole-v1"}),
        make_env("gym", {"id": "dreamer_torchrl/Memory-v0", "render": True}),
    ):
        silent.reset()
        assert frame(silent) is None


@pytest.mark.parametrize("cells", [3, 4, 10])
def test_a_maze_is_one_corridor_with_its_reward_at_the_end(cells: int) -> None:
    """Whoever never turns back sees each cell once; each move leads to a neighbour or nowhere."""
    env = Maze(cells, limit=1000)
    before, cell, seen, reward, ended = env.reset(seed=0)[0], 0, [0], 0.0, False
    while not ended:
        tried = []
        for action in range(len(MOVES)):
            copied = copy.deepcopy(env)
            tried.append(copied.step(action)[4]["cell"])
        assert set(tried) <= {cell - 1, cell, cell + 1}
        picture, reward, ended, truncated, info = env.step(tried.index(cell + 1))
        assert not np.array_equal(picture, before) and not truncated
        before, cell = picture, info["cell"]
        seen.append(cell)
    assert seen == list(range(cells**2)) and reward == 1


def test_a_maze_without_rewards_lasts_until_its_limit() -> None:
    env = Maze(3, limit=20, rewards=False)
    env.reset(seed=0)
    steps = [env.step(action) for action in (3, 3, 1, 2, 2, 1, 3, 3, *[3] * 12)]
    assert steps[7][4]["cell"] == 8 and not any(step[1] or step[2] for step in steps)
    assert [step[3] for step in steps] == [False] * 19 + [True]
    with pytest.raises(ValueError, match="cells=2 is impossible: give 3 to 10"):
        Maze(2)
