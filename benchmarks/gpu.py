"""What `gpu.sh` runs: imports, exactness, learners against TorchRL's, and all else of a training, each with a limit.

Compiling takes minutes. So all learners are built and warmed up at once, in a process each, while exactness is
checked, uncompiled and compiled; then they are timed one after another, with nothing else running. In between, after
those learners that count most, come acting (captured and not), replay (on the host and on the GPU), a profile with the
kernels of an update and the waits of the host, and a short training, if what it needs is installed. A part that fails
or takes too long is recorded as such and does not affect the others.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

from gate import Gate

BENCHMARKS = Path(__file__).parent
ROOT = Path(__file__).parents[1]
LEARNER, EXACTNESS = BENCHMARKS / "learner.py", BENCHMARKS / "exactness.py"
GOLDEN = ROOT / "tests" / "golden"
RECORDINGS = ("proprio_cont", "vision_disc")
WORKLOADS = ("proprio_size1m", "vision_size1m", "vision_size12m")

NEEDED_TO_TRAIN = ("gymnasium", "hydra", "pydantic")
NOT_NEEDED = ("gymnasium", "gym", "hydra", "omegaconf", "wandb", "ale_py", "av", "PIL", "mujoco", "dm_control")
IMPORTS = f"""
import sys
sys.modules.update(dict.fromkeys({NOT_NEEDED!r}))  # None: not to be found, even where they are installed
import dreamer_torchrl.agents.agent, dreamer_torchrl.learners.learner, dreamer_torchrl.interop.official
print("imported from", dreamer_torchrl.agents.agent.__file__)
"""

ALL_SECONDS, WARM_UP_SECONDS = 450.0, 300.0
"""Time limits in seconds: of everything, and of the warm-up."""

MODES = {
    "default": ["--compile", "--peer-mode", "graph"],
    "captured": ["--peer-mode", "graph"],
    "full": ["--compile", "--peer-mode", "full"],
}
"""How learners run on a GPU, what counts most first: ours as it trains there by default, compiled and captured, against
TorchRL's CUDA graph; both only captured, should compiling fail; TorchRL's compiled as a whole, if its minutes allow."""


@dataclass
class Part:
    """One process: name, arguments after the interpreter, and time limit in seconds."""

    name: str
    arguments: Sequence[str | Path]
    limit: float
    folder: Path
    gate: Gate | None = None
    nice: int = 0
    process: subprocess.Popen | None = field(default=None, init=False)
    began: float = field(default=0.0, init=False)
    stopped: str = field(default="", init=False)

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def record(self) -> Path:
        """The file of its own JSON, if any."""
        return self.folder / f"{self.name}.json"

    def start(self) -> None:
        """Run it away from the checkout, whose package folder lacks the configurations."""
        self.began = time.monotonic()
        with self.log.open("w") as log:
            command = ["nice", "-n", str(self.nice), sys.executable, *map(str, self.arguments)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True)

    def finish(self, seconds: float) -> None:
        """Wait up to a time limit, then end it with all its child processes."""
        try:
            self.process.wait(max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            self.stop(f"stopped after {time.monotonic() - self.began:.0f} s")

    def stop(self, why: str) -> None:
        self.stopped = why
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def outcome(self) -> dict[str, Any]:
        """Exit status, last lines of output, and its own record."""
        code = self.process.returncode
        printed = self.log.read_text(errors="replace").splitlines()
        return {
            "part": self.name,
            "status": self.stopped or ("ok" if code == 0 else f"failed with code {code}"),
            "command": " ".join(["python", *(str(argument).removeprefix(f"{ROOT}/") for argument in self.arguments)]),
            "seconds": round(time.monotonic() - self.began, 1),
            "printed": printed[-25:],
            "record": _json(self.record),
        }


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # there is none, or its writer was stopped in the middle
        return None


def checks(folder: Path, options: argparse.Namespace) -> list[Part]:
    """Untimed parts that take seconds."""
    verify = ["-m", "dreamer_torchrl.interop.verify", GOLDEN]
    return [
        Part("imports", ["-c", IMPORTS], 60, folder),
        *(Part(f"verify-{case}", [*verify, "--case", case], 90, folder) for case in options.recording),
        _exactness("exactness", 90, folder, options),
    ]


def compiled_checks(folder: Path, options: argparse.Namespace) -> list[Part]:
    """Untimed parts that run during the learners' warm-up. Without a GPU nothing is compiled."""
    if not options.device.startswith("cuda"):
        return []
    return [_exactness("exactness-compiled", options.warm_up, folder, options, "--compile")]


def _exactness(name: str, limit: float, folder: Path, options: argparse.Namespace, *more: str) -> Part:
    arguments = [EXACTNESS, GOLDEN, "--case", *options.recording, "--device", options.device, *more]
    return Part(name, [*arguments, "--json", folder / f"{name}.json"], limit, folder)


def learners(folder: Path, options: argparse.Namespace) -> list[Part]:
    """Ours and TorchRL's in alternation, for each mode, workload and precision.

    In the order of what matters, should the time run out. Without a GPU there is one mode, and neither is compiled.
    """
    parts = []
    size = (
        ["--batch", "2", "--length", "4", "--updates", "2", "--warmup", "1"] if options.quick else ["--updates", "30"]
    )
    modes = MODES if options.device.startswith("cuda") else {"eager": ["--peer-mode", "eager"]}
    for (mode, options_of_mode), workload, dtype in product(modes.items(), options.workload, options.dtype):
        name = f"{mode}-{workload}-{dtype}"
        gate = folder / f"{name}.gate"
        arguments = [LEARNER, "--workload", workload, "--dtype", dtype, "--device", options.device, *size]
        arguments += ["--against", "torchrl", *options_of_mode, "--gate", gate, "--json", folder / f"{name}.json"]
        nice = 10 if mode == "full" else 0  # its compiling gives way to those that should be warm in time
        parts.append(Part(name, arguments, 60, folder, Gate(gate), nice))
    return parts


def others(folder: Path, options: argparse.Namespace) -> list[Part]:
    """Timed parts that start when it is their turn: acting, replay, a profile, and a training where one can run."""
    on_gpu, quick = options.device.startswith("cuda"), options.quick
    where, which = ["--device", options.device], ["--workload", *options.workload]
    acting = ["--steps", "5", "--warmup", "1"] if quick else ["--steps", "200", "--warmup", "20"]
    replay = ["--steps", "8000", "--draws", "5"] if quick else ["--steps", "50000", "--draws", "50"]
    profiled = [] if on_gpu else ["--no-compile", "--nano", "--batch", "2", "--length", "4"]
    profiled += ["--dtype", options.dtype[0]]
    programs = {
        "acting": ("policy.py", [*where, *which, *acting]),
        "replay": ("replay.py", [*where, *which, *replay]),
        "profile": ("launches.py", [*where, "--workload", options.workload[0], *profiled]),
    }
    if all(map(importable, NEEDED_TO_TRAIN)):
        short = ["size=nano", "replay.batch=2", "replay.length=8", "train_ratio=8", "log.every=0.5"] if quick else []
        settings = [f"device={options.device}", f"dtype={options.dtype[0]}", "compile=false", *short]
        length = ["--steps", "400" if quick else "800", "--folder", folder / "training"]
        programs["training"] = "end_to_end.py", ["--only", "cartpole", *length, "--overrides", *settings]
    return [
        Part(name, [BENCHMARKS / program, *arguments, "--json", folder / f"{name}.json"], 60, folder)
        for name, (program, arguments) in programs.items()
    ]


def importable(name: str) -> bool:
    try:
        import_module(name)
    except ImportError:
        return False
    return True


def run(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """All parts; the file is written after each."""
    began = time.monotonic()
    outcomes: list[dict[str, Any]] = []

    def ended(part: Part) -> None:
        outcomes.append(part.outcome())
        print(f"{time.monotonic() - began:5.0f} s  {part.name:32} {_headline(outcomes[-1])}")
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"name": options.name, "parts": outcomes}, indent=2) + "\n")

    waiting, compiled = learners(folder, options), compiled_checks(folder, options)
    first = len(options.workload) * len(options.dtype)  # of the mode that counts most
    timed = [*waiting[:first], *others(folder, options), *waiting[first:]]
    try:
        for part in [*waiting, *compiled]:
            part.start()
        for part in checks(folder, options):
            part.start()
            part.finish(part.limit)
            ended(part)
        for part in compiled:
            part.finish(part.began + part.limit - time.monotonic())
            ended(part)
        while time.monotonic() < began + options.warm_up and not all(map(_is_settled, waiting)):
            time.sleep(0.1)
        for part in waiting:
            if not _is_settled(part):
                part.stop(f"not warm after {time.monotonic() - part.began:.0f} s")
        for part in timed:
            if part.gate is None:
                part.start()
            else:
                part.gate.open()
            part.finish(min(part.limit, began + options.seconds - time.monotonic()))
            ended(part)
    finally:
        for part in [*timed, *compiled]:
            if part.process and part.process.poll() is None:
                part.stop("not run to its end")
    return outcomes


def _headline(outcome: dict[str, Any]) -> str:
    """Status and result of a part in one line."""
    found, record = [outcome["status"]], outcome["record"] or {}
    for row in record.get("policy", []):
        found.append(f"{row['environments']}{' captured' * row['captured']} {row['send_ms']:.2f} ms")
    for row in record.get("replay", []):
        found.append(f"{row['storage']} {row['sample_ms']:.2f} + {row['refresh_ms']:.2f} ms")
    for row in record.get("launches", []):
        found.append(f"{row['launches']:,} launches in {row['part']}, waits {row['waits']}")
    found += [f"learner {run['shares']['learner']:.0%}" for run in record.get("runs", [])]
    for workload in record.get("workloads", []):
        found += [f"{result['contestant']} {1e3 * result['median']:.1f} ms" for result in workload["results"]]
        found += [f"ratio {workload['ratio']:.3f}"] if workload["ratio"] else []
    return ", ".join(found)


def _is_settled(part: Part) -> bool:
    return part.gate.is_ready or part.process.poll() is not None


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=__doc__)
    parser.add_argument("name", help="of the machine, for the name of the file")
    parser.add_argument("--output", type=Path, help="the file, if not benchmarks/results/gpu-NAME.json")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try this script")
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--recording", nargs="+", choices=RECORDINGS, default=list(RECORDINGS), help="to compare with")
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["bfloat16", "float32"])
    parser.add_argument("--quick", action="store_true", help="two updates of two sequences: to see that it runs")
    parser.add_argument("--seconds", type=float, default=ALL_SECONDS, help="for everything")
    parser.add_argument("--warm-up", type=float, default=WARM_UP_SECONDS, help="seconds of that for the warm-up")
    options = parser.parse_args()
    options.output = (options.output or ROOT / "benchmarks" / "results" / f"gpu-{options.name}.json").absolute()
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "2")  # many processes compile at once
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run(options, Path(folder))
    print(f"written to {options.output}")
    return 0 if all(outcome["status"] == "ok" for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
