"""Fill the tables of `benchmarks.md` from the docstrings of the programs and from the files in `benchmarks/results/`.

python docs/make_benchmarks.py
"""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
PAGE = ROOT / "docs" / "benchmarks.md"

MARK = re.compile(r"(?<=<!-- made by docs/make_benchmarks.py: )(?P<name>\w+) -->\n.*?(?=<!-- end -->)", re.DOTALL)
MEBIBYTE = 2**20
PARTS = ("learner", "environment", "acting", "replay", "other")

Record = Mapping[str, Any]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows]) + "\n"


def programs() -> str:
    """What can be run: programs whose docstring shows the command, with its first line and that command."""
    rows = []
    for file in sorted(BENCHMARKS.glob("*.py")):
        docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
        command = re.search(rf"^ +(python benchmarks/{file.name}.*)$", docstring, re.MULTILINE)
        if command and "--steps steps.pt" not in command[1]:  # a part of learner.py
            rows.append([f"`{file.name}`", docstring.splitlines()[0], f"`{command[1]}`"])
    script = (BENCHMARKS / "gpu.sh").read_text().splitlines()
    commands = [line.strip("# ") for line in script if line.startswith("#     ")]
    rows.append(["`gpu.sh`", script[1].strip("# "), f"`{commands[0]}`"])
    return table(["program", "what it measures", "how to run it"], rows)


def results() -> str:
    """Every committed result, in a table for its kind."""
    files = {file.name: json.loads(file.read_text()) for file in sorted((BENCHMARKS / "results").glob("*.json"))}
    parts = []
    for title, head, rows in KINDS:
        these = {name: content for name, content in files.items() if kind(content) == title}
        if these:
            parts += [f"### {title}\n", table(["file", *head], [row for pair in these.items() for row in rows(*pair)])]
            notes = [
                f"- `{name}`: {' '.join(remarks(content))}\n" for name, content in these.items() if remarks(content)
            ]
            parts += ["".join(notes)] if notes else []
    return "\n".join(parts)


def races(file: Path = BENCHMARKS / "results" / "race" / "races.csv") -> str:
    """Every committed training of `race.py`; nothing before the first."""
    if not file.exists():
        return ""
    rows = [
        [
            f"`{race['task']}`",
            f"`{race['system']}`",
            race["seed"],
            race["ended"],
            f"{int(race['frames']):,}",
            race["last"],
        ]
        for race in csv.DictReader(file.read_text().splitlines())
    ]
    return table(["task", "system", "seed", "minutes", "frames", "return of the last 20 episodes"], rows)


def kind(content: Record) -> str:
    """Which of the tables a result belongs into; none where it has another form."""
    if "parts" in content:
        return "GPU machines"
    if "runs" in content:
        return "Shares of a training"
    keys = {
        "workloads": "Updates",
        "policy": "Acting",
        "replay": "Replay",
        "points": "Scaling",
        "killed_while": "Kills",
        "scaling_out": "Several ranks",
        "environment_steps_of_training": "Recorded data alone",
    }
    return next((title for key, title in keys.items() if key in content), "")


def remarks(content: Record) -> list[str]:
    """Shared memory, and notes written by hand."""
    found = []
    if shares_a_process(content):
        found.append("Memory in brackets is that of one process that held both learners: it compares nothing.")
    return [*found, content["note"]] if "note" in content else found


def shares_a_process(content: Record) -> bool:
    """Whether two learners were measured in one process, as TorchRL's is."""
    return "workloads" in content and content["settings"]["against"] == "torchrl"


def learner_rows(name: str, content: Record) -> Iterable[list[str]]:
    """Seconds per update, one contestant a row."""
    for workload in content["workloads"]:
        for index, result in enumerate(workload["results"]):
            quartiles = f"{result['lower_quartile']:.3f} to {result['upper_quartile']:.3f}"
            ratio = f"{workload['ratio']:.2f}" if index == 0 and workload.get("ratio") else ""
            memory = f"{result['peak_memory'] / MEBIBYTE:.0f} MiB"
            memory = f"({memory})" if shares_a_process(content) else memory
            times = [f"{result['median']:.3f} s", quartiles, str(len(result["seconds"])), memory]
            yield [f"`{name}`", workload["workload"], result["contestant"], *times, ratio]


def policy_rows(name: str, content: Record) -> Iterable[list[str]]:
    """Milliseconds of acting."""
    for row in content["policy"]:
        times = [f"{row['policy_ms']:.2f}", f"{row['policy_ms_min']:.2f}", f"{row['send_ms']:.2f}"]
        yield [f"`{name}`", row["workload"], str(row["environments"]), *times]


def replay_rows(name: str, content: Record) -> Iterable[list[str]]:
    """Milliseconds of drawing and refreshing."""
    for row in content["replay"]:
        times = [f"{row[key]:.2f}" for key in ("sample_ms", "sample_ms_max", "refresh_ms")]
        yield [f"`{name}`", row["workload"], f"{row['fill']:,}", f"{row['bytes_per_step']:,}", *times]


def share_rows(name: str, content: Record) -> Iterable[list[str]]:
    """Where the time of whole trainings goes."""
    for run in content["runs"]:
        yield [f"`{name}`", run["env"], *(f"{run['shares'][part]:.0%}" for part in PARTS)]


def gpu_rows(name: str, content: Record) -> Iterable[list[str]]:
    """How each part ended, and what its learners took."""
    for part in content["parts"]:
        workloads = (part.get("record") or {}).get("workloads", [])
        taken = [f"{result['contestant']} {result['median']:.4f} s" for work in workloads for result in work["results"]]
        yield [f"`{name}`", part["part"], part["status"], ", ".join(taken)]


def scaling_rows(name: str, content: Record) -> Iterable[list[str]]:
    """Only how much there is: `scaling.md` beside it has the table."""
    yield [f"`{name}`", ", ".join(dict.fromkeys(point["axis"] for point in content["points"])), "`scaling.md`"]


def kill_rows(name: str, content: Record) -> Iterable[list[str]]:
    """How often a run was killed, and what it was doing."""
    while_doing = ", ".join(f"{count} while {what}" for what, count in content["killed_while"].items())
    compared = f"{content['steps']:,} steps, {content['updates']:,} updates, all bits the same"
    yield [f"`{name}`", f"{content['kills']} ({while_doing})", compared, f"{content['seconds'] / 60:.1f}"]


def rank_rows(name: str, content: Record) -> Iterable[list[str]]:
    """Measured with one and two ranks, and what follows for more."""
    for workload, found in content["scaling_out"].items():
        one, two = found["whole"], found["together"]
        times = [f"{1 / one['median']:.2f}", f"{1 / two['median']:.2f}", f"{found['cpu_efficiency']:.0%}"]
        more = [f"{each['a batch for each']['efficiency']:.1%}" for each in found["extrapolated"]]
        yield [f"`{name}`", workload, *times, f"{found['sent_bytes']:,}", *more]


def offline_rows(name: str, content: Record) -> Iterable[list[str]]:
    data = ", ".join(
        f"{kind}: {made['steps']:,} steps of return {made['return']:,.1f}" for kind, made in content["data"].items()
    )
    played = f"{content['return']:,.1f} ({len(content['returns'])} episodes)"
    yield [f"`{name}`", data, f"{content['updates']:,}", f"{content['environment_steps_of_training']:,}", played]


Rows = Callable[[str, Record], Iterable[list[str]]]
KINDS: tuple[tuple[str, tuple[str, ...], Rows], ...] = (
    ("Updates", ("workload", "learner", "median", "quartiles", "updates", "peak memory", "ratio"), learner_rows),
    ("Acting", ("workload", "environments", "policy, ms", "its minimum", "with collector, ms"), policy_rows),
    ("Replay", ("workload", "steps in it", "bytes a step", "draw, ms", "its maximum", "refresh, ms"), replay_rows),
    ("Shares of a training", ("environment", *PARTS), share_rows),
    ("Scaling", ("what grows", "all of it"), scaling_rows),
    ("GPU machines", ("part", "how it ended", "updates, median"), gpu_rows),
    (
        "Several ranks",
        (
            *("workload", "updates/s, 1 rank", "2 ranks", "efficiency by processor time"),
            *("bytes sent by a rank of 2", "efficiency of 8 GPUs, a batch each", "of 64"),
        ),
        rank_rows,
    ),
    ("Recorded data alone", ("data", "updates", "environment steps of training", "return"), offline_rows),
    ("Kills", ("kills", "compared with an uninterrupted run", "minutes"), kill_rows),
)


def filled(page: str) -> str:
    """The page with its tables as they are now."""
    made = {"programs": programs, "races": races, "results": results}
    return MARK.sub(lambda match: f"{match['name']} -->\n\n{made[match['name']]()}\n", page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
