"""Train a preset over several seeds with the command and compare with its target and the official curve.

    python benchmarks/learning.py --experiment cartpole --seeds 0 1 2
    python benchmarks/learning.py --experiment dmc_proprio --overrides env.task=walker_walk size=size1m --seeds 0

Each seed is one `python -m dreamer_torchrl.train experiment=...` followed by `python -m dreamer_torchrl.evaluate` on
episodes that training did not use, not even to decide when to stop. The time is that of the
whole training command. Results, with every episode, go to
`benchmarks/results/learning-<experiment>.json`.
"""

import argparse
import csv
import json
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from provenance import provenance

HERE = Path(__file__).parent

FRESH = 1000
"""Seeds of the final evaluations start here."""


@dataclass(frozen=True)
class Target:
    """What each seed should reach: mean return of 20 evaluation episodes, and minutes."""

    mean: float
    minutes: float


TARGETS = {
    "cartpole": Target(475, 5),
    "pendulum": Target(-170, 5),
    "acrobot": Target(-90, 20),
    "mountaincar_continuous": Target(90, 20),
    "grid_reach": Target(0.9 * 7 / 9, 20),
    "memory": Target(0.9, 20),
    "cartpole_swingup": Target(512, 60),
}


def train(experiment: str, overrides: list[str], seed: int, folder: Path, limit: float) -> dict:
    """One run of the training command and one of the evaluation."""
    run_dir = folder / f"{experiment}-{seed}"
    command = [
        "-m",
        "dreamer_torchrl.train",
        f"experiment={experiment}",
        *overrides,
        f"seed={seed}",
        f"run_dir={run_dir}",
    ]
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, timeout=limit)
    seconds = time.perf_counter() - start
    fresh = str(FRESH + seed)
    evaluate = ["-m", "dreamer_torchrl.evaluate", str(run_dir), "--episodes", "20", "--seed", fresh]
    subprocess.run([sys.executable, *evaluate], check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    final = json.loads((run_dir / "evaluation.json").read_text())
    frames = {line["step"]: line["count/frames"] for line in lines if "count/frames" in line}
    return {
        "seed": seed,
        "command": " ".join(["python", *command[:-1]]),
        "seconds": round(seconds, 1),
        "updates": max(line.get("count/updates", 0) for line in lines),
        "evaluation": final,
        "evaluations": [[line["step"], line["eval/return"]] for line in lines if "eval/return" in line],
        "episodes": [
            [
                line["step"],
                frames.get(line["step"], line["step"]),
                digits(line["episode/return"]),
                line["episode/length"],
            ]
            for line in lines
            if "episode/return" in line
        ],
    }


def digits(value: float) -> float:
    """Round to the digits of a float32, in which rewards are summed."""
    return float(f"{value:.7g}")


def official(task: str) -> list[tuple[int, float]]:
    """Frames and median return of the official code on a DeepMind Control task; empty if there is no curve."""
    path = HERE / f"references/dmc_proprio/{task}.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return [(int(row["frames"]), float(row["return"])) for row in rows]


def overlay(runs: list[dict], curve: list[tuple[int, float]]) -> list[dict]:
    """Median over seeds of the training return around each point of the official curve."""
    rows = []
    width = curve[1][0] - curve[0][0] if len(curve) > 1 else 0
    for frames, median in curve:
        near = [
            [total for _, at, total, _ in run["episodes"] if frames - width / 2 <= at < frames + width / 2]
            for run in runs
        ]
        means = [statistics.fmean(totals) for totals in near if totals]
        if means:
            rows.append({"frames": frames, "official": median, "ours": statistics.median(means)})
    return rows


def written(record: dict) -> str:
    """The record as JSON; each list of plain numbers, of which there are tens of thousands, on one line."""
    return re.sub(r"\[[-+.\deE,\s]+\]", _on_one_line, json.dumps(record, indent=1)) + "\n"


def _on_one_line(numbers: re.Match[str]) -> str:
    return f"[{' '.join(numbers[0][1:-1].split())}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="cartpole")
    parser.add_argument("--overrides", nargs="*", default=[], help="further overrides")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/learning"), help="where the runs are kept")
    parser.add_argument("--task", help="DeepMind Control task whose official curve is compared")
    parser.add_argument("--limit", type=float, default=4 * 3600, help="time limit of a seed in seconds")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="default: benchmarks/results/learning-<experiment>-<overrides>.json",
    )
    arguments = parser.parse_args()
    record = provenance(torch.device("cpu")) | {"experiment": arguments.experiment, "runs": []}
    target = TARGETS.get(arguments.experiment)
    name = "-".join([arguments.experiment, *(override.replace("/", "_") for override in arguments.overrides)])
    output = arguments.json or HERE / "results" / f"learning-{name}.json"
    for seed in arguments.seeds:
        run = train(arguments.experiment, arguments.overrides, seed, arguments.folder, arguments.limit)
        record["runs"].append(run)
        mean, minutes = run["evaluation"]["mean"], run["seconds"] / 60
        met = "" if target is None else "met" if mean >= target.mean and minutes <= target.minutes else "MISSED"
        print(f"{arguments.experiment} seed {seed}: {mean:.4g} in {minutes:.1f} minutes {met}", flush=True)
        task = arguments.task or ("cartpole_swingup" if arguments.experiment == "cartpole_swingup" else None)
        if task:
            record["official"] = overlay(record["runs"], official(task))
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(written(record))
    for row in record.get("official", []):
        print(f"{row['frames']:>8} frames: ours {row['ours']:7.1f}, official median {row['official']:7.1f}")


if __name__ == "__main__":
    main()
