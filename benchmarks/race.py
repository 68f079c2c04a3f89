"""Train ours and other systems for the same minutes on the same core, and draw return over minutes.

    python benchmarks/race.py --task cartpole --against sb3 --minutes 5 --seed 0 --python PEERS/bin/python
    python benchmarks/race.py --draw

The systems train one after the other with one thread, on the last core that the machine or `taskset -c` allows. All of
them train the environments of `race_tasks.py`, which write down each finished episode; the returns are therefore those
of training episodes, of all systems alike. Minutes begin with the process, so that they contain its imports.
`race_peers.py` has the settings.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import yaml
from provenance import provenance
from race_peers import PEERS, System, ours
from race_tasks import TASKS
from scores import RESULTS, curve, read_rows, read_targets, write_rows

HERE = Path(__file__).resolve().parent
RACES = RESULTS / "race"
HEAD = ["step", "frames", "minutes", "training"]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
LAST = 20
"""Episodes at the end whose mean return is noted."""
SMOOTH = 5
"""Rows of a curve that a point of the picture is the mean of."""


@dataclass(frozen=True)
class Race:
    """One training; ``ended`` are the minutes after which it ended by itself or was ended."""

    task: str
    system: str
    seed: int
    minutes: float
    ended: float
    frames: int
    episodes: int
    last: float
    versions: str
    commit: str
    date: str
    machine: str
    settings: str
    command: str

    @property
    def run(self) -> tuple[str, str, int]:
        """What a later training in place of this one shares with it."""
        return self.task, self.system, self.seed


class Failure(Exception):
    """A training that gave no curve; the message says where its output is."""


def versions(python: str, packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of packages that an interpreter has; `SystemExit` with the remedy where it has not all of them."""
    code = "import json; from importlib.metadata import distributions; "
    code += "print(json.dumps({each.name.lower().replace('-', '_'): each.version for each in distributions()}))"
    try:
        printed = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"--python {python} does not run: {error}") from None
    installed = json.loads(printed)
    if missing := [name for name in packages if name.replace("-", "_") not in installed]:
        raise SystemExit(f"{python} lacks {' and '.join(missing)}: {python} -m pip install {' '.join(missing)}")
    return {name: installed[name.replace("-", "_")] for name in packages}


def recipe(python: str) -> str:
    """TorchRL's recipe in the wheel that an interpreter has."""
    code = "import importlib.util as u; print(u.find_spec('torchrl').submodule_search_locations[0])"
    package = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    file = Path(package).parent / "sota-implementations" / "dreamer_v3" / "train.py"
    if not file.exists():
        raise SystemExit(f"The torchrl of {python} has no {file.relative_to(file.parents[2])}: install 0.14.1's wheel.")
    return str(file)


def train(system: System, python: str, minutes: float, folder: Path) -> tuple[float, list[dict]]:
    """Train in that folder for so many minutes at most; minutes that it took, and a line for each finished episode."""
    places = {"RECIPE": recipe(python) if "RECIPE" in system.command else "", "BENCHMARKS": str(HERE)}
    command = [python]
    for word in system.command:
        place, slash, rest = word.partition("/")
        command.append(places.get(place, place) + slash + rest)
    folder.mkdir(parents=True)
    episodes, output = folder / "episodes.txt", folder / "output.txt"
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    env = {**os.environ, **dict.fromkeys(THREADS, "1"), "PYTHONPATH": path, "RACE_EPISODES": str(episodes.resolve())}
    start = time.time()
    with output.open("w") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(minutes * 60)
        except subprocess.TimeoutExpired:
            code = 0
        finally:
            ended = (time.time() - start) / 60
            end(process)
    if code:
        raise Failure(f"{system.name} ended with exit code {code}; its messages are in {output}.")
    if not (lines := episode_lines(episodes, start, minutes)):
        raise Failure(f"{system.name} finished no episode in {minutes:g} minutes; its messages are in {output}.")
    return min(ended, minutes), lines


def end(process: subprocess.Popen) -> None:
    """End a training and all processes that it started."""
    for number, patience in ((signal.SIGTERM, 30), (signal.SIGKILL, 30)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def episode_lines(path: Path, start: float, minutes: float) -> list[dict]:
    """Episodes that ended within those minutes after the start, for `curve`; steps are milliseconds to it."""
    frames, lines = 0, []
    for line in path.read_text().splitlines() if path.exists() else []:
        ended, length, value = map(float, line.split())
        frames += int(length)
        seconds = ended - start
        if seconds <= minutes * 60:
            of_time = {"step": round(1000 * seconds), "time/elapsed": seconds}
            lines.append({**of_time, "count/frames": frames, "episode/return": value})
    return lines


def action_repeat(folder: Path) -> int:
    """Frames per step of our run in that folder; the other systems repeat no action."""
    file = folder / "run" / "config.yaml"
    return yaml.safe_load(file.read_text())["env"]["action_repeat"] if file.exists() else 1


def write(race: Race, rows: list[dict], repeat: int, results: Path) -> None:
    """Write the curve of a training, and its line in `races.csv` in place of an earlier one."""
    rows = [{**row, "step": row["frames"] // repeat} for row in rows]
    rows = [{key: row[key] for key in HEAD} for row in rows]
    write_rows(results / f"{race.task}-{race.system}-{race.seed}.csv", HEAD, rows)
    table = results / "races.csv"
    others = [other for other in read_rows(table, Race) if other.run != race.run] if table.exists() else []
    lines = map(asdict, sorted([*others, race], key=lambda each: each.run))
    write_rows(table, [field.name for field in fields(Race)], lines)


def record(system: System, python: str, arguments: argparse.Namespace) -> Race:
    """Train a system, and write and return what came of it."""
    task, seed, minutes = arguments.task, arguments.seed, arguments.minutes
    found = versions(python, system.packages)
    folder = arguments.folder / f"{task}-{system.name}-{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    ended, lines = train(system, python, minutes, folder)
    source = provenance(torch.device("cpu"))
    command = f"python benchmarks/race.py --task {task} --against {system.name} --minutes {minutes:g} --seed {seed}"
    race = Race(
        task=task,
        system=system.name,
        seed=seed,
        minutes=minutes,
        ended=round(ended, 2),
        frames=lines[-1]["count/frames"],
        episodes=len(lines),
        last=float(f"{statistics.fmean(line['episode/return'] for line in lines[-LAST:]):.6g}"),
        versions=", ".join(f"{name} {number}" for name, number in found.items()),
        commit=source["commit"] or "",
        date=source["date"][:10],
        machine=f"1 core of {source['machine']['cpu']}, load {source['machine']['load_average']:.1f}",
        settings=shlex.join(system.command),
        command=command,
    )
    write(race, curve(lines), action_repeat(folder), arguments.results)
    return race


def contestants(task: str, against: list[str], seed: int) -> list[System]:
    """Ours, and of the others those whose name or family was given."""
    peers = [system for make in PEERS.values() for system in make(task, seed)]
    known = [*PEERS, *(system.name for system in peers), "dreamer_torchrl"]
    if unknown := [name for name in against if name not in known]:
        raise SystemExit(f"--against {unknown[0]}: on {task} there are {', '.join(known)}.")
    return [ours(task, seed)] + [each for each in peers if {each.name, each.name.partition("-")[0]} & {*against}]


def draw(results: Path) -> None:
    """A picture for each task: return over minutes, a colour for each system, a line for each seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    races = read_rows(results / "races.csv", Race)
    targets = read_targets()
    for task in sorted({race.task for race in races}):
        lines = defaultdict(list)
        for race in sorted(races, key=lambda race: (race.system != "dreamer_torchrl", *race.run)):
            if race.task == task:
                file = results / f"{task}-{race.system}-{race.seed}.csv"
                lines[race.system].append(smoothed(list(csv.DictReader(file.read_text().splitlines()))))
        figure = Figure((7, 4), layout="constrained")
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        for index, (system, seeds) in enumerate(lines.items()):
            for number, points in enumerate(seeds):
                name = None if number else f"{system} ({len(seeds)} seeds)" if len(seeds) > 1 else system
                axis.plot(*points, color=f"C{index}", label=name, linewidth=2 if index == 0 else 1.2)
        if task in targets:
            axis.axhline(targets[task].mean, color="gray", linewidth=0.8, linestyle="--")
        axis.set_title(f"{task}: one core, one thread", fontsize=10)
        axis.set_xlabel("minutes since the process started")
        axis.set_ylabel("return of training episodes")
        axis.legend(fontsize=8)
        figure.savefig(results / f"{task}.png", dpi=110)


def smoothed(rows: list[dict]) -> tuple[list[float], list[float]]:
    """Minutes, and means of the returns of some rows up to there."""
    minutes, returns = ([float(row[key]) for row in rows] for key in ("minutes", "training"))
    return minutes, [statistics.fmean(returns[max(0, end - SMOOTH) : end]) for end in range(1, len(returns) + 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="cartpole")
    parser.add_argument("--against", nargs="*", default=[], help=f"{', '.join(PEERS)}, or one system such as sb3-ppo")
    parser.add_argument("--minutes", type=float, default=5, help="for each system")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--python", type=os.path.abspath, help="interpreter that has the other systems")
    parser.add_argument("--folder", type=Path, default=Path("runs/race"), help="where the runs are kept")
    parser.add_argument("--results", type=Path, default=RACES, help="where curves and pictures are written")
    parser.add_argument("--draw", action="store_true", help="only draw the pictures again")
    arguments = parser.parse_args()
    if not arguments.draw:
        systems = contestants(arguments.task, arguments.against, arguments.seed)
        if len(systems) > 1 and not arguments.python:
            raise SystemExit("Other systems need --python, an interpreter that has them; see docs/benchmarks.md.")
        for system in systems[1:]:
            versions(arguments.python, system.packages)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        failed = 0
        for index, system in enumerate(systems):
            try:
                race = record(system, arguments.python if index else sys.executable, arguments)
            except Failure as failure:
                failed += 1
                print(failure, file=sys.stderr, flush=True)
                continue
            told = f"{race.frames:,} frames, last {LAST} episodes {race.last:.4g}"
            print(f"{race.task} {race.system} seed {race.seed}: {race.ended:.2f} minutes, {told}", flush=True)
        if failed:
            raise SystemExit(f"{failed} of {len(systems)} systems failed; `--draw` draws the others.")
    draw(arguments.results)


if __name__ == "__main__":
    main()
