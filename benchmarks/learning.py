"""Train a task over several seeds with the command, evaluate new episodes, and add each run to `results/scores.csv`.

    python benchmarks/learning.py --env cartpole --seeds 0 1 2
    python benchmarks/learning.py --env dmc_proprio --task walker_walk --overrides env.task=walker_walk
    python benchmarks/learning.py --experiment laptop --env carracing --seeds 0 --minutes 120

Each seed is one `python -m dreamer_torchrl.train` followed by `python -m dreamer_torchrl.evaluate` on episodes that
training did not use, not even to decide when to stop. The minutes are those of the whole training command. After
`--minutes` the run is saved and evaluated as it is; the same command, with the same `--folder`, continues it. Its
learning curve is written to `results/curves/`.
"""

import argparse
import csv
import json
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml
from provenance import provenance
from scores import DEFAULT, RESULTS, Score, add_score, read_targets, run_name, write_curve

from dreamer_torchrl.config.compose import size_name

HERE = Path(__file__).parent

FRESH = 1000
"""Seeds of the final evaluations start here."""


def train(overrides: list[str], seed: int, run_dir: Path, minutes: float) -> list[str]:
    """Start or continue a run and save it after so many minutes. The command; its time is added to that of the run."""
    command = ["-m", "dreamer_torchrl.train", *overrides, f"seed={seed}"]
    clock = run_dir.with_name(f"{run_dir.name}.seconds")
    before = float(clock.read_text()) if run_dir.exists() and clock.exists() else 0.0
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command, f"run_dir={run_dir}"])
    try:
        code = process.wait(minutes * 60)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        code = process.wait()
    if code:
        raise SystemExit(f"The training of {run_dir} ended with exit code {code}; its messages are above.")
    clock.write_text(str(before + time.perf_counter() - start))
    return command


def evaluate(run_dir: Path, seed: int, episodes: int) -> dict:
    """New episodes with the newest checkpoint."""
    options = ["--episodes", str(episodes), "--seed", str(FRESH + seed)]
    command = [sys.executable, "-m", "dreamer_torchrl.evaluate", str(run_dir), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((run_dir / "evaluation.json").read_text())


def score_of(
    run_dir: Path, task: str, experiment: str, algorithm: str, seed: int, command: list[str], evaluation: dict
) -> Score:
    """The line for `scores.csv`."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    settings = yaml.safe_load((run_dir / "config.yaml").read_text())
    source = provenance(torch.device("cpu"))
    stop_at, stopped = settings["eval"]["stop_at"], [line["eval/return"] for line in lines if "eval/return" in line]
    reached = stop_at is not None and bool(stopped) and stopped[-1] >= stop_at
    seconds = float(run_dir.with_name(f"{run_dir.name}.seconds").read_text())
    return Score(
        task=task,
        experiment=experiment,
        algorithm=algorithm,
        size=size_name(settings["size"]) or "own",
        seed=seed,
        mean=float(f"{evaluation['mean']:.6g}"),
        deviation=float(f"{evaluation['deviation']:.4g}"),
        episodes=len(evaluation["returns"]),
        steps=evaluation["step"],
        frames=max((line.get("count/frames", 0) for line in lines), default=0),
        updates=max((line.get("count/updates", 0) for line in lines), default=0),
        minutes=round(seconds / 60, 1),
        finished=reached or evaluation["step"] >= settings["total_steps"],
        commit=(source["commit"] or "")[:7],
        date=source["date"][:10],
        machine=f"{source['machine']['cores']} cores of {source['machine']['cpu']}",
        command=" ".join(["python", *command]),
    )


def official(task: str) -> list[tuple[int, float]]:
    """Frames and median return of the official code on a DeepMind Control task; empty if there is no curve."""
    path = HERE / f"references/dmc_proprio/{task}.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return [(int(row["frames"]), float(row["return"])) for row in rows]


def beside_official(
    curves: list[list[dict]], official_curve: list[tuple[int, float]]
) -> list[tuple[int, float, float]]:
    """Frames, our median over seeds of the training return around them, and the official median."""
    rows = []
    width = official_curve[1][0] - official_curve[0][0] if len(official_curve) > 1 else 0
    for frames, median in official_curve:
        near = [
            [
                float(row["training"])
                for row in rows
                if row["training"] and abs(int(row["frames"]) - frames) <= width / 2
            ]
            for rows in curves
        ]
        means = [statistics.fmean(returns) for returns in near if returns]
        if means:
            rows.append((frames, statistics.median(means), median))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="laptop")
    parser.add_argument("--algorithm", default=DEFAULT, help="as in configs/algorithm")
    parser.add_argument("--env", default="cartpole", help="environment, as in configs/env")
    parser.add_argument("--overrides", nargs="*", default=[], help="further overrides")
    parser.add_argument("--task", help="name in targets.csv and of the curves (default: the environment)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=240, help="of training for each seed, in this command")
    parser.add_argument("--folder", type=Path, default=Path("runs/learning"), help="where the runs are kept")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where scores.csv and curves/ are")
    arguments = parser.parse_args()
    task, experiment = arguments.task or arguments.env, arguments.experiment
    algorithm = arguments.algorithm
    overrides = [f"experiment={experiment}", f"env={arguments.env}"]
    overrides += [] if algorithm == DEFAULT else [f"algorithm={algorithm}"]
    overrides += arguments.overrides
    target, curves = read_targets().get(task), []
    for seed in arguments.seeds:
        run_dir = arguments.folder / run_name(task, experiment, algorithm, seed)
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        command = train(overrides, seed, run_dir, arguments.minutes)
        evaluation = evaluate(run_dir, seed, target.episodes if target else 20)
        score = score_of(run_dir, task, experiment, algorithm, seed, command, evaluation)
        add_score(score, arguments.results / "scores.csv")
        path = arguments.results / "curves" / f"{run_dir.name}.csv"
        write_curve(run_dir, path)
        curves.append(list(csv.DictReader(path.read_text().splitlines())))
        met = (
            ""
            if target is None
            else "met"
            if score.mean >= target.mean and score.minutes <= target.minutes
            else "MISSED"
        )
        print(f"{task} seed {seed}: {score.mean:.4g} in {score.minutes:.1f} minutes {met}", flush=True)
    for frames, ours, theirs in beside_official(curves, official(task)):
        print(f"{frames:>8} frames: ours {ours:7.1f}, official median {theirs:7.1f}")


if __name__ == "__main__":
    main()
