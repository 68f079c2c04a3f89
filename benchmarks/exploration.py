"""Train Plan2Explore in a maze without rewards, and count the cells that it and random actions visit in as many steps.

    python benchmarks/exploration.py --steps 30000 --folder RUNS --json exploration.json

Random actions play the same environments with the same limits. Cells of the run are read off the images in its replay.
The same command continues a run that is there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from provenance import provenance

from dreamer_torchrl.checkpoint.checkpoints import Checkpoints
from dreamer_torchrl.config.compose import saved_settings
from dreamer_torchrl.envs.tasks import AGENT, Maze
from dreamer_torchrl.training.build import make_replay


def cells_in(images: np.ndarray, maze: Maze) -> set[int]:
    """The cells in which the agent is seen in images ``[N, 64, 64, 3]``."""
    centers = {}
    for cell in range(maze.cells**2):
        maze.cell = cell
        row, column = np.argwhere((maze.render() == AGENT).all(-1))[0]
        centers[cell] = row, column
    return {cell for cell, (row, column) in centers.items() if (images[:, row, column] == AGENT).all(-1).any()}


def random_cells(steps: int, envs: int, seed: int) -> set[int]:
    """The cells that random actions visit in so many steps, over all environments."""
    seen = set()
    for index in range(envs):
        env, ended = Maze(rewards=False), True
        actions = np.random.default_rng([seed, index])
        for _ in range(steps // envs):
            if ended:
                seen.add(env.reset(seed=index)[1]["cell"])
            _, _, terminated, truncated, info = env.step(int(actions.integers(4)))
            ended = terminated or truncated
            seen.add(info["cell"])
    return seen


def explored_cells(run_dir: Path) -> tuple[set[int], int]:
    """The cells in the replay of a run, and how many steps that has."""
    settings = saved_settings(run_dir)
    replay = make_replay(settings)
    saved = Checkpoints(run_dir / "checkpoints").load(replay)
    images = replay.buffer.storage[: len(replay)]["pixels"].flatten(0, -4).numpy()
    return cells_in(images, Maze(rewards=False)), saved.parts["progress"]["steps"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True, help="of the run")
    parser.add_argument("--overrides", nargs="*", default=[], help="further ones of the training")
    parser.add_argument("--json", type=Path, help="where to write the result")
    chosen = parser.parse_args()
    run_dir = chosen.folder / f"maze-plan2explore-{chosen.seed}"
    overrides = ["env=maze", "exploration=plan2explore", "env.arguments.rewards=false", "eval.every=0"]
    overrides += [f"total_steps={chosen.steps}", f"seed={chosen.seed}", *chosen.overrides]
    command = ["-m", "dreamer_torchrl.train", *overrides]
    subprocess.run([sys.executable, *command, f"run_dir={run_dir}"], check=True)
    cells, steps = explored_cells(run_dir)
    by_chance = random_cells(steps, saved_settings(run_dir).env.num_envs, chosen.seed)
    result = {"command": f"python {' '.join(command)}", **provenance(torch.device("cpu"))}
    result |= {"steps": steps, "seed": chosen.seed, "cells": len(cells), "cells_random": len(by_chance)}
    result |= {"ratio": round(len(cells) / len(by_chance), 2), "cells_of_the_maze": 100}
    print(json.dumps(result, indent=1))
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
