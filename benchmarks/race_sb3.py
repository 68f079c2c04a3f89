"""Stable-Baselines3 in `race.py`: the RL Zoo's training command with the RL Zoo's settings for the task.

Where a rate follows a schedule over the published number of steps, this number is kept and the run ends with it.
`grid_reach`, of which the zoo knows nothing, gets the settings for Atari without Atari's frame skipping and stacking.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import rl_zoo3.train
import yaml
from race_peers import ENDLESS
from race_tasks import TASKS


def settings(task: str, algorithm: str) -> dict:
    """The zoo's settings for the task, with the number of steps to run."""
    zoo = yaml.safe_load((Path(rl_zoo3.__file__).parent / "hyperparams" / f"{algorithm}.yml").read_text())
    found = zoo["atari" if task == "grid_reach" else TASKS[task]]
    for name in ("env_wrapper", "frame_stack") if task == "grid_reach" else ():
        del found[name]
    if "exploration_fraction" not in found and not any(str(value).startswith("lin_") for value in found.values()):
        found["n_timesteps"] = ENDLESS
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument("--algorithm", required=True)
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    env = f"race/{arguments.task}-v0"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "settings.yml"
        file.write_text(yaml.safe_dump({env: settings(arguments.task, arguments.algorithm)}))
        options = f"--device cpu --num-threads 1 --eval-freq -1 --verbose 0 --log-folder {folder}".split()
        told = ["--algo", arguments.algorithm, "--env", env, "--seed", str(arguments.seed), "--conf-file", str(file)]
        sys.argv = ["train", *told, *options]
        rl_zoo3.train.train()


if __name__ == "__main__":
    main()
