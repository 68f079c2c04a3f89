"""Kill a training with SIGKILL repeatedly; its result must equal that of an uninterrupted run.

    python benchmarks/kills.py --kills 50
    python benchmarks/kills.py --kills 50 --json benchmarks/results/kills.json
    python benchmarks/kills.py --kills 25 --threads 2 --belief 256
    python benchmarks/kills.py --kills 20 --ranks 2

After each kill, the newest checkpoint must load and be no older than one that was seen before, and the metrics must be
whole lines without repetition. The next process must go on from that very checkpoint. After the last kill, a process
trains on to an end, and so does one that starts from nothing: weights, optimizer, random states, replay and the record
of episodes and evaluations must be the same in all bits. Every second kill waits for a checkpoint, so that the next
saves are hit; the others may come at any time, also before the first step. The processes are started by a server that
has imported torch; what they run is the command itself. With ``--ranks`` they are several at a time, with the variables
of torchrun. One is killed and the others get SIGTERM, as from torchrun: all must end with an error, and the next ones
go on from the newest checkpoint that each rank has.
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
from torch.distributed import TCPStore

from dreamer_torchrl.checkpoint.checkpoints import Checkpoints
from dreamer_torchrl.config.compose import saved_settings
from dreamer_torchrl.config.schema import Settings
from dreamer_torchrl.train import main as train
from dreamer_torchrl.training.build import make_replay
from dreamer_torchrl.training.ranks import RunRanks

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


def settings_for(threads: int, belief: int, ranks: int = 1) -> list[str]:
    """What to ask of training."""
    batch = ranks * (2 if threads == 1 else -(-PARALLEL // (8 * belief)))
    own = [f"threads={threads}", f"size.belief={belief}", f"replay.batch={batch}", f"train_ratio={4 * batch}"]
    return [*SETTINGS, *own, f"env.num_envs={ranks}"]


def live(words: list[str], log: Path, variables: dict[str, str]) -> None:
    """Body of a training process; its output goes to a file."""
    os.environ.update(variables)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(train(words))


def variables_of(ranks: int, port: int) -> list[dict[str, str]]:
    """What torchrun, whose store has this port, puts into the environment of each of several ranks."""
    if ranks == 1:
        return [{}]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    common |= {"LOCAL_WORLD_SIZE": str(ranks), "GROUP_WORLD_SIZE": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    common |= {"TORCHELASTIC_RUN_ID": "kills", "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_MAX_RESTARTS": "0"}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


class Watch:
    """The run that is killed, and what was observed of it."""

    def __init__(self, folder: Path, settings: list[str], ranks: int = 1):
        self.settings, self.ranks = settings, ranks
        self.run, self.log = folder / "run", folder / "log.txt"
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["dreamer_torchrl.train", "dreamer_torchrl.training.loop"])
        self.checkpoints = [Checkpoints(part / "checkpoints") for part in parts(self.run, ranks)]
        self.committed = -1  # the newest step of which a checkpoint was seen
        self.found: Counter[str] = Counter()  # what the killed processes were doing

    def start(self, run: Path, steps: int) -> list[BaseProcess]:
        """Processes that train to a step, one for each rank."""
        self.log.write_text("")
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # in which the ranks meet
        words = [*self.settings, f"run_dir={run}", f"total_steps={steps}"]
        processes = [
            self.context.Process(target=live, args=(words, self.log, variables))
            for variables in variables_of(self.ranks, self.store.port)
        ]
        for process in processes:
            process.start()
        return processes

    def kill_once(self, moment: random.Random, wait_for_checkpoint: bool) -> None:
        """Start processes, kill one, and check what it leaves."""
        processes, found = self.start(self.run, ENDLESS), self.newest()
        deadline = time.monotonic() + PATIENCE
        while wait_for_checkpoint and self.newest() == found:
            assert all(process.is_alive() for process in processes), self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.002)
        end = time.monotonic() + moment.uniform(0, 1 if wait_for_checkpoint else 3 * self.ranks)
        while time.monotonic() < end:
            self.newest()
            time.sleep(0.002)
        assert all(process.is_alive() for process in processes), self.log.read_text()
        self.newest()
        victim = moment.choice(processes) if self.ranks > 1 else processes[0]
        victim.kill()
        for process in processes:
            if process is not victim:
                process.terminate()
        for process in processes:
            process.join(PATIENCE)
            assert process.exitcode, self.log.read_text()
        self.check(found)

    def newest(self) -> int:
        """The step of the newest checkpoint that all ranks have, by its name."""
        steps = set.intersection(*({int(name[:12]) for name in each.names()} for each in self.checkpoints))
        step = max(steps, default=-1)
        self.committed = max(self.committed, step)
        return step

    def check(self, found: int) -> None:
        """All that must hold after a kill, for a process that had found the checkpoint of this step."""
        resumed = re.search(r"Resumed at step ([\d,]+)", self.log.read_text())
        if resumed:
            assert int(resumed[1].replace(",", "")) == found
        for checkpoints in self.checkpoints:
            saved = checkpoints.load()
            if saved is None:
                assert self.committed == -1
            else:
                assert saved.damaged == [] and saved.step >= self.committed, (saved.damaged, saved.step, self.committed)
        half = any(path for part in parts(self.run, self.ranks) for path in part.glob("checkpoints/.partial*"))
        doing = "training" if resumed or self.newest() > found else "starting"
        self.found["saving" if half else doing] += 1
        if (self.run / "metrics.jsonl").exists():
            whole = (self.run / "metrics.jsonl").read_bytes().rpartition(b"\n")[0].splitlines()  # the last may be torn
            check_lines([json.loads(line) for line in whole])

    def finish(self, run: Path, steps: int) -> None:
        """Let processes train to their end."""
        for process in self.start(run, steps):
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


def final_state(run: Path, ranks: int = 1) -> dict[str, Any]:
    """All that two runs of the same settings must have in common at their end."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    check_lines(lines)
    first, *others = (part_state(part, RunRanks.divided(saved_settings(run), ranks)) for part in parts(run, ranks))
    return first | {"events": events(lines), "ranks": others}


def part_state(folder: Path, settings: Settings) -> dict[str, Any]:
    """What a rank, which has these settings, saved last."""
    saved = Checkpoints(folder / "checkpoints").load()
    replay = make_replay(settings)
    saved.restore_replay(replay)
    saved.parts["progress"].pop("seconds")
    saved.parts.pop("metrics")  # where the lines end depends on how many intervals there were
    stored = replay.copy(replay.oldest, replay.written).to_dict()
    return {**saved.parts, "sampler": replay.sampler.state_dict(), "replay": stored}


def parts(run: Path, ranks: int) -> list[Path]:
    """The folders in which the ranks save."""
    return [RunRanks().folder(run, rank) for rank in range(ranks)]


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


def torture(folder: Path, kills: int, seed: int, settings: list[str], ranks: int = 1) -> dict[str, Any]:
    """Kill `kills` times, then compare the end with an uninterrupted run."""
    watch, moment, start = Watch(folder, settings, ranks), random.Random(seed), time.monotonic()
    for number in range(kills):
        watch.kill_once(moment, wait_for_checkpoint=number % 2 == 0)
        print(f"kill {number + 1:>3}: newest checkpoint of step {watch.committed:,}", flush=True)
    steps = max(watch.committed, 0) + LAST_STEPS
    twin = folder / "twin"
    watch.finish(watch.run, steps)
    watch.finish(twin, steps)
    state = final_state(watch.run, ranks)
    different = differences(state, final_state(twin, ranks))
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
    parser.add_argument("--ranks", type=int, default=1, help="processes at a time, as torchrun starts them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the outcome, and where it comes from")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record = provenance(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_for(arguments.threads, arguments.belief, arguments.ranks)
        outcome = torture(Path(folder), arguments.kills, arguments.seed, settings, arguments.ranks)
    print(", ".join(f"{key} {value}" for key, value in outcome.items()))
    print("The end is that of a run that was never killed, in all bits.")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record | {"settings": settings} | outcome, indent=2) + "\n")


if __name__ == "__main__":
    main()
