"""Train on recorded CartPole alone, of random actions and of the pretrained agent, and evaluate what was learned.

    python benchmarks/offline.py --folder RUNS --json benchmarks/results/offline-cpu.json

The data are made first: files of episodes in the layout of the official Dreamer V1 and V2. Evaluations during training
decide nothing; the score is that of the last weights in episodes that they did not play.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from statistics import fmean

import gymnasium
import numpy as np
import torch
from provenance import provenance

import dreamer_torchrl
from dreamer_torchrl.checkpoint.checkpoints import Checkpoints

ENVIRONMENT, EPISODES, FRESH = "CartPole-v1", 20, 1000  # of the evaluation: episodes, and where their seeds start
Act = Callable[[np.ndarray, bool], int]  # of an observation, and whether it is the first of an episode


def random_actions(seed: int) -> Act:
    generator = np.random.default_rng(seed)
    return lambda observation, first: int(generator.integers(2))


def pretrained() -> Act:
    agent, state = dreamer_torchrl.load("pretrained/cartpole"), None

    def act(observation: np.ndarray, first: bool) -> int:
        nonlocal state
        action, state = agent.act(observation, None if first else state)
        return int(action)

    return act


def episodes(act: Act, steps: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
    """Whole episodes, of so many steps together; an action stands beside the observation that it led to."""
    env = gymnasium.make(ENVIRONMENT)
    for number in count(seed):
        if steps <= 0:
            return
        observation, ended = env.reset(seed=number)[0], False
        rows = [(observation, np.zeros(2, np.float32), 0.0, False)]
        while not ended:
            action = act(observation, len(rows) == 1)
            observation, reward, terminated, truncated, _ = env.step(action)
            rows.append((observation, np.eye(2, dtype=np.float32)[action], reward, terminated))
            ended = terminated or truncated
        steps -= len(rows) - 1
        yield dict(
            zip(("observation", "action", "reward", "is_terminal"), map(np.array, zip(*rows, strict=True)), strict=True)
        )


def make_data(folder: Path, random: int, trained: int) -> dict[str, dict[str, float]]:
    """Write both kinds of episodes into one folder; how many of each there are, and their mean returns."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {}
    torch.manual_seed(0)
    kinds = {"random": (random_actions(0), random), "pretrained": (pretrained(), trained)}
    for name, (act, steps) in kinds.items():
        if steps == 0:
            continue
        returns = []
        for number, episode in enumerate(episodes(act, steps, seed=0)):
            np.savez_compressed(folder / f"{name}-{number:05d}.npz", **episode)
            returns.append(float(episode["reward"].sum()))
        told[name] = {"episodes": len(returns), "steps": sum(map(int, returns)), "return": round(fmean(returns), 1)}
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--random", type=int, default=20_000, help="steps of random actions")
    parser.add_argument("--trained", type=int, default=20_000, help="steps of the pretrained agent")
    parser.add_argument("--updates", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True, help="of the data and of the run")
    parser.add_argument("--overrides", nargs="*", default=[], help="further ones of the training")
    parser.add_argument("--json", type=Path, help="where to write the result")
    chosen = parser.parse_args()
    data = chosen.folder / f"data-{chosen.random}-{chosen.trained}"
    told = data.with_suffix(".json")
    if not told.exists():
        told.parent.mkdir(parents=True, exist_ok=True)
        told.write_text(json.dumps(make_data(data, chosen.random, chosen.trained)))
    name = "-".join(["run", str(chosen.random), str(chosen.trained), *chosen.overrides, str(chosen.seed)])
    run_dir = chosen.folder / name.replace("/", "_")
    overrides = [f"offline={data}", "env=cartpole", f"offline_updates={chosen.updates}", f"seed={chosen.seed}"]
    overrides += ["eval.every=1000", "eval.stop_at=null", "eval.dream=0", *chosen.overrides]
    command = ["-m", "dreamer_torchrl.train", *overrides]
    subprocess.run([sys.executable, *command, f"run_dir={run_dir}"], check=True)
    options = ["--episodes", str(EPISODES), "--seed", str(FRESH + chosen.seed)]
    subprocess.run([sys.executable, "-m", "dreamer_torchrl.evaluate", str(run_dir), *options], check=True)
    returns = json.loads((run_dir / "evaluation.json").read_text())["returns"]
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    progress = Checkpoints(run_dir / "checkpoints").load().parts["progress"]
    result = {"command": f"python benchmarks/offline.py {' '.join(sys.argv[1:])}", **provenance(torch.device("cpu"))}
    result |= {"data": json.loads(told.read_text()), "seed": chosen.seed, "minutes": round(progress["seconds"] / 60, 1)}
    result |= {"updates": progress["updates"], "environment_steps_of_training": progress["steps"]}
    result |= {"return": fmean(returns), "returns": returns}
    result |= {"curve": [[line["step"], line["eval/return"]] for line in lines if "eval/return" in line]}
    print(json.dumps(result))
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
