"""Time and memory against batch, length, size, environments and replay fill.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --axis batch length --compile --folder /tmp/scaling

Each point is measured in a process of its own, so that its peak memory is its own. Rewrites `scaling.json`, the table
`scaling.md` and the plot `scaling.png` after every point. A point that fails is recorded with its reason.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import policy
import replay
import torch
from contest import LocalContestant, peak_memory, reset_peak_memory, take_turns
from learner import DTYPES
from provenance import provenance
from scaling_plot import save_plot
from workloads import WORKLOADS

from dreamer_torchrl import Hyperparameters, Learner, build_agent
from dreamer_torchrl.learners.learner import example_batch

VECTORS = WORKLOADS["proprio_size1m"]
IMPORTED = [
    "dreamer_torchrl.learners.learner",
    "dreamer_torchrl.collectors.make_collector",
    "dreamer_torchrl.data.replay",
]
"""What the processes of the points are forked with: importing takes longer than many a point."""


@dataclass(frozen=True)
class Axis:
    """What is timed, and the values; all else is batch 16, length 64, size1m."""

    timed: str
    values: Sequence[int | str]
    quick: Sequence[int | str]


AXES = {
    "batch": Axis("update", (4, 8, 16, 32, 64), (2,)),
    "length": Axis("update", (16, 32, 64, 128, 256), (4,)),
    "size": Axis("update", ("size1m", "size12m", "size25m", "size50m"), ("nano",)),
    "environments": Axis("step of acting", (1, 4, 16, 64), (2,)),
    "replay fill": Axis("draw", (10**3, 10**4, 10**5, 10**6), (600,)),
}


@dataclass(frozen=True)
class Effort:
    """Settings of the measurement, for every axis."""

    device: torch.device
    dtype: torch.dtype
    compile: bool
    native: bool
    threads: int | None
    quick: bool


def point(axis: str, value: int | str, effort: Effort) -> dict[str, Any]:
    """Measure one point in this process: median seconds and peak bytes."""
    if effort.threads:
        torch.set_num_threads(effort.threads)
    if AXES[axis].timed == "update":
        return {"timed": "update"} | update(axis, value, effort)
    repeats, warmup = (3, 1) if effort.quick else (200, 50)
    device = torch.device("cpu")  # where replay lies
    if axis == "environments":
        device = effort.device
        reset_peak_memory(device)
        seconds = policy.measure(VECTORS, value, repeats, warmup, device)["send_ms"] / 1e3
    else:
        reset_peak_memory(device)
        with redirect_stdout(io.StringIO()):  # it prints a table of its own
            (row,) = replay.measure(VECTORS.name, value, [value], repeats)
        seconds = row["sample_ms"] / 1e3
    return {"timed": AXES[axis].timed, "seconds": seconds, "peak_memory": peak_memory(device)}


def update(axis: str, value: int | str, effort: Effort) -> dict[str, Any]:
    """Times updates where `axis` has `value`."""
    shape = {"batch": 1, "length": 4, "size": "nano"} if effort.quick else {"batch": 16, "length": 64, "size": "size1m"}
    shape[axis] = value
    torch.manual_seed(0)
    agent = build_agent(VECTORS.observation_spec, VECTORS.action_spec, size=shape["size"], dtype=effort.dtype)
    steps = example_batch(agent, shape["batch"], shape["length"]).to(effort.device)
    learner = Learner(
        agent.to(effort.device),
        Hyperparameters.official(),
        compile=effort.compile,
        native=None if effort.native else False,
    )
    contestant = LocalContestant("", 0, lambda: learner.update(steps), effort.device)
    (result,) = take_turns([contestant], *((1, 1) if effort.quick else (2, 5)))
    return {"seconds": result.median, "peak_memory": result.peak_memory}


def in_own_process(axis: str, value: int | str, effort: Effort) -> dict[str, Any]:
    """Measure the point in a fresh process; the error if that fails."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with ProcessPoolExecutor(1, mp_context=context) as process:
        try:
            return process.submit(point, axis, value, effort).result()
        except BrokenProcessPool:
            return {"error": "the process was killed, most likely for memory"}
        except (MemoryError, RuntimeError) as error:  # torch tells a lack of memory as a RuntimeError
            return {"error": str(error).partition("\n")[0]}


def table(points: Sequence[dict[str, Any]]) -> str:
    """All points in Markdown."""
    lines = ["| what grows | value | timed | milliseconds | peak memory, MiB |", "|---|---:|---|---:|---:|"]
    for found in points:
        value = f"{found['value']:,}" if isinstance(found["value"], int) else found["value"]
        if "error" in found:
            lines.append(f"| {found['axis']} | {value} | {found['error']} | | |")
            continue
        numbers = f"{1e3 * found['seconds']:,.2f} | {found['peak_memory'] / 2**20:,.0f}"
        lines.append(f"| {found['axis']} | {value} | {found['timed']} | {numbers} |")
    return "\n".join(lines)


def write(folder: Path, record: dict[str, Any]) -> bool:
    """Write all results; False without matplotlib."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scaling.json").write_text(json.dumps(record, indent=2) + "\n")
    machine = f"{record['machine']['cpu']}, {record['settings']['device']}, {record['settings']['dtype']}"
    heading = f"Time and memory ({machine}; all else: batch 16, length 64, size1m, 24 floats and 6 actions).\n\n"
    (folder / "scaling.md").write_text(heading + table(record["points"]) + "\n")
    return save_plot(record["points"], folder / "scaling.png")


def main() -> None:
    arguments = _arguments()
    dtype = DTYPES[arguments.dtype]
    effort = Effort(
        arguments.device, dtype, arguments.compile, not arguments.no_native, arguments.threads, arguments.quick
    )
    settings = {name: getattr(arguments, name) for name in ("dtype", "compile", "no_native", "threads", "quick")}
    settings["device"] = str(arguments.device)
    record = provenance(arguments.device) | {"settings": settings, "points": []}
    print(table([]))
    plotted = True
    for name in arguments.axis:
        for value in AXES[name].quick if arguments.quick else AXES[name].values:
            record["points"].append({"axis": name, "value": value} | in_own_process(name, value, effort))
            print(table(record["points"][-1:]).splitlines()[-1], flush=True)
            plotted = write(arguments.folder, record)
    if not plotted:
        print("No plot: pip install matplotlib")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axis", nargs="+", choices=list(AXES), default=list(AXES), help="what grows")
    parser.add_argument(
        "--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the updates")
    parser.add_argument("--compile", action="store_true", help="updates compiled")
    parser.add_argument("--no-native", action="store_true", help="updates without C kernels")
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's choice)")
    parser.add_argument("--folder", type=Path, default=Path(__file__).with_name("results"), help="of what is written")
    parser.add_argument("--quick", action="store_true", help="one tiny point per axis, as a smoke test")
    return parser.parse_args()


if __name__ == "__main__":
    main()
