"""Shares of the wall-clock time of a training: environment, acting, replay, learner, other.

    python benchmarks/end_to_end.py
    python benchmarks/end_to_end.py --overrides size=size12m --only grid_reach

Each is one `python -m dreamer_torchrl.train` with the official batch of 16 x 64 and an official train ratio. Shares are
means over its records without the first, which contains the start. Results go to
`benchmarks/results/end-to-end-<device>.json`.
"""

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from provenance import provenance

PARTS = ("learner", "collector", "replay", "evaluation", "other")
OFFICIAL = ("size=size1m", "replay.batch=16", "replay.length=64", "learner.learning_rate=4e-5")
TARGET = 0.85
"""Share of the learner at official train ratios."""


@dataclass(frozen=True)
class Training:
    """An environment, its train ratio, and steps for about a minute on two cores."""

    env: str
    train_ratio: int
    steps: int


TRAININGS = (
    Training("cartpole", 512, 1200),
    Training("pendulum", 512, 1200),
    Training("grid_reach", 256, 1200),
)


def shares(records: list[dict]) -> dict[str, float]:
    """Mean share of each part over all records but the first."""
    counted = [record for record in records if "share/learner" in record][1:]
    if not counted:
        raise RuntimeError("The run wrote no second record of shares: give it more steps.")
    return {part: statistics.fmean(record[f"share/{part}"] for record in counted) for part in PARTS}


def train(training: Training, overrides: list[str], folder: Path, steps: int | None) -> dict:
    """One run and its time shares."""
    run_dir = folder / training.env
    settings = [f"env={training.env}", "experiment=laptop", *OFFICIAL, f"train_ratio={training.train_ratio}"]
    settings += [f"total_steps={steps or training.steps}", "prefill=0", "eval.every=0", "log.every=2", *overrides]
    command = ["-m", "dreamer_torchrl.train", *settings]
    subprocess.run([sys.executable, *command, f"run_dir={run_dir}"], check=True)
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    last = [record for record in records if "rate/updates_per_second" in record][-1]
    return {
        "env": training.env,
        "command": " ".join(["python", *command]),
        "shares": shares(records),
        "seconds": last["time/elapsed"],
        "updates": last["count/updates"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[training.env for training in TRAININGS])
    parser.add_argument("--overrides", nargs="*", default=[], help="further overrides")
    parser.add_argument("--steps", type=int, help="of each run")
    parser.add_argument("--folder", type=Path, default=Path("runs/end-to-end"), help="where the runs are kept")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    output = arguments.json or Path(__file__).parent / "results" / f"end-to-end-{device.type}.json"
    record = provenance(device) | {"runs": []}
    for training in TRAININGS:
        if arguments.only and training.env not in arguments.only:
            continue
        run = train(training, arguments.overrides, arguments.folder, arguments.steps)
        record["runs"].append(run)
        text = ", ".join(f"{part} {share:.1%}" for part, share in run["shares"].items())
        met = "met" if run["shares"]["learner"] >= TARGET else "MISSED"
        print(f"{training.env}: {text} (learner {TARGET:.0%} or more: {met})", flush=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
