"""Kill a training with SIGKILL repeatedly; its result must equal that of an uninterrupted run.

    python benchmarks/kills.py --kills 50
    python benchmarks/kills.py --kills 50 --json benchmarks/results/kills.json
    python benchmarks/kills.py --kills 25 --threads 2 --belief 256

After each kill, the newest checkpoint must load and be no older than one that was seen before, and the metrics must be
whole lines without repetition. The next process must go on from that very checkpoint. After the last kill, a process
trains on to an end, and so does one that starts from nothing: weights, optimizer, random states, replay and the record
of episodes and evaluations must be the same in all bits. Every second kill waits for a checkpoint, so that the next
saves are hit; the others may come at any time, also before the first step. The processes are started by a server that
has imported torch; what they run is the command itself.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from provenance import provenance

from dreamer_torchrl.checkpoint.checkpoints import Checkpoints
from dreamer_torchrl.config.compose import saved_settings
from dreamer_torchrl.train import main as train
from dreamer_torchrl.training.build import make_replay

SETTINGS = (
    *("env=cartpole", "device=cpu", "size=nano", "size.hidden=16", "size.units=16", "replay.length=8"),
    *("learner.imagination_length=3", "prefill=0", "log.every=0.2", "checkpoint.every=0.1"),
    *("eval.every=100", "eval.episodes=2", "eval.num_envs=2", "eval.dream=0"),
)
PARALLEL = 32_768
"""Elements from which on torch writes with several threads: a batch of latents has as many where there are several."""

ENDLESS = 1_000_000
LAST_STEPS = 300
"""Steps after the last kill: more than a batch of either kind needs."""

PATIENCE = 120.0
"""Seconds without progress after which a process counts as hanging."""


def settings_for(threads: int, belief: int) -> list[str]:
    """What to ask of training."""
    batch = 2 if threads == 1 else -(-PARALLEL // (8 * belief))
    own = [f"threads={threads}", f"size.belief={belief}", f"replay.batch={batch}", f"train_ratio={4 * batch}"]
    return [*SETTINGS, *own]


def live(words: list[str], log: Path) -> None:
    """Body of a training process; its output goes to a file."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(train(words))


class Watch:
    """The run that is killed, and what was observed of it."""

    def __init__(self, folder: Path, settings: list[str]):
        self.settings = settings
        self.run, self.log = folder / "run", folder / "log.txt"
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["dreamer_torchrl.train", "dreamer_torchrl.training.loop"])
        self.checkpoints = Checkpoints(self.run / "checkpoints")
        self.committed = -1  # the newest step of which a checkpoint was seen
        self.found: Counter[str] = Counter()  # what the killed processes were doing

    def start(self, run: Path, steps: int) -> BaseProcess:
        """A process that trains to a step."""
        process = self.context.Process(
            target=live, args=([*self.settings, f"run_dir={run}", f"total_steps={steps}"], self.log)
        )
        process.start()
        return process

    def kill_once(self, moment: random.Random, wait_for_checkpoint: bool) -> None:
        """Start a process, kill it, and check what it leaves."""
        process, found = self.start(self.run, ENDLESS), self.newest()
        deadline = time.monotonic() + PATIENCE
        while wait_for_checkpoint and self.newest() == found:
            assert process.is_alive() and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.002)
        end = time.monotonic() + moment.uniform(0, 1 if wait_for_checkpoint else 3)
        while time.monotonic() < end:
            self.newest()
            time.sleep(0.002)
        assert process.is_alive(), self.log.read_text()
        process.kill()
        process.join()
        self.check(found)

    def newest(self) -> int:
        """The step of the newest checkpoint, by its name."""
        names = self.checkpoints.names()
        step = int(names[-1][:12]) if names else -1
        self.committed = max(self.committed, step)
        return step

    def check(self, found: int) -> None:
        """All that must hold after a kill, for a process that had found the checkpoint of this step."""
        resumed = re.search(r"Resumed at step ([\d,]+)", self.log.read_text())
        if resumed:
            assert int(resumed[1].replace(",", "")) == found
        saved = self.checkpoints.load()
        if saved is None:
            assert self.committed == -1
        else:
            assert saved.damaged == [] and saved.step >= self.committed, (saved.damaged, saved.step, self.committed)
        half = any(self.run.glob("checkpoints/.partial*"))
        doing = "training" if resumed or self.newest() > found else "starting"
        self.found["saving" if half else doing] += 1
        if (self.run / "metrics.jsonl").exists():
            whole = (self.run / "metrics.jsonl").read_bytes().rpartition(b"\n")[0].splitlines()  # the last may be torn
            check_lines([json.loads(line) for line in whole])

    def finish(self, run: Path, steps: int) -> None:
        """Let a process train to its end."""
        process = self.start(run, steps)
        process.join()
        assert process.exitcode == 0, self.log.read_text()


def check_lines(lines: list[dict[str, Any]]) -> None:
    """Lines are in order and none is repeated."""
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps)
    counts = Counter((line["step"], line.get("episode/environment"), "eval/return" in line) for line in events(lines))
    assert all(count == 1 for count in counts.values()), counts.most_common(3)


def events(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Episodes and evaluations, of which nothing depends on the time that things took."""
    return [line for line in lines if "episode/return" in line or "eval/return" in line]


def final_state(run: Path) -> dict[str, Any]:
    """All that two runs of the same settings must have in common at their end."""
    saved = Checkpoints(run / "checkpoints").load()
    replay = make_replay(saved_settings(run))
    saved.restore_replay(replay)
    saved.parts["progress"].pop("seconds")
    saved.parts.pop("metrics")  # where the lines end depends on how many intervals there were
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    check_lines(lines)
    return {
        **saved.parts,
        "sampler": replay.sampler.state_dict(),
        "replay": replay.copy(replay.oldest, replay.written).to_dict(),
        "events": events(lines),
    }


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Names of the leaves of two trees that differ in any bit."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [name for key in one for name in differences(one[key], other[key], f"{path}.{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [name for index, pair in pairs for name in differences(*pair, f"{path}[{index}]")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [path]
    return [] if one == other else [path]


def torture(folder: Path, kills: int, seed: int, settings: list[str]) -> dict[str, Any]:
    """Kill `kills` times, then compare the end with an uninterrupted run."""
    watch, moment, start = Watch(folder, settings), random.Random(seed), time.monotonic()
    for number in range(kills):
        watch.kill_once(moment, wait_for_checkpoint=number % 2 == 0)
        print(f"kill {number + 1:>3}: newest checkpoint of step {watch.committed:,}", flush=True)
    steps = max(watch.committed, 0) + LAST_STEPS
    twin = folder / "twin"
    watch.finish(watch.run, steps)
    watch.finish(twin, steps)
    state = final_state(watch.run)
    different = differences(state, final_state(twin))
    assert not different, f"not the same as in a run that was never killed: {', '.join(different)}"
    return {
        "kills": kills,
        "killed_while": dict(watch.found),
        "seed": seed,
        "steps": state["progress"]["steps"],
        "updates": state["progress"]["updates"],
        "episodes_and_evaluations": len(state["events"]),
        "seconds": round(time.monotonic() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--threads", type=int, default=1, help="of torch in each process")
    parser.add_argument("--belief", type=int, default=32, help="size of the recurrent state")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the outcome, and where it comes from")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record = provenance(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_for(arguments.threads, arguments.belief)
        outcome = torture(Path(folder), arguments.kills, arguments.seed, settings)
    print(", ".join(f"{key} {value}" for key, value in outcome.items()))
    print("The end is that of a run that was never killed, in all bits.")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record | {"settings": settings} | outcome, indent=2) + "\n")


if __name__ == "__main__":
    main()
