"""Updates per second, efficiency and bytes sent of one and of two ranks, and what follows for 8 and 64 GPUs.

    python benchmarks/scaling_out.py --json scaling-out.json
    python benchmarks/scaling_out.py --device cuda --workload vision_size12m --json scaling-out-gpu.json

Two processes take turns: one update of rank 0 with the whole batch; both with half of it, each for itself; both with
half of it as ranks of one learner. The second against the first is what half a batch saves, the third against the
second what the exchange costs. Updates get equally long sequences one after the other, so half a batch saves less than
half of the time. On a CPU the extrapolation goes by the processor's time, which other programs do not change.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from contest import synchronize
from provenance import provenance
from tensordict import TensorDictBase
from torch import Tensor
from torch.multiprocessing import spawn
from workloads import WORKLOADS, Workload

from dreamer_torchrl import Hyperparameters, Learner, build_agent
from dreamer_torchrl.learners.distributed import Ranks
from dreamer_torchrl.learners.learner import example_batch

WARM_UP = 3
LINKS = {"NVLink in a machine of 8": (450e9, 5e-6), "400 Gb/s per GPU between machines": (50e9, 20e-6)}
"""Assumed bytes per second in one direction, and seconds until a message arrives."""


class CountedRanks(Ranks):
    """Ranks that count what an update exchanges."""

    reduced = gathered = 0  # bytes of this rank's tensors

    def average(self, gradients: list[Tensor], losses: TensorDictBase) -> TensorDictBase:
        self.reduced += sum(gradient.nbytes for gradient in gradients) + 4 * len(list(losses.keys()))
        return super().average(gradients, losses)

    def gather(self, values: Tensor) -> Tensor:
        self.gathered += values.nbytes
        return super().gather(values)


def our_learner(workload: Workload, device: str, ranks: Ranks | None = None) -> Learner:
    torch.manual_seed(0)
    agent = build_agent(workload.observation_spec, workload.action_spec, workload.size).to(device)
    return Learner(agent, Hyperparameters.official(), ranks=ranks)


def live(rank: int, folder: str, name: str, kind: str, updates: int) -> None:
    """Body of one of two processes; rank 0 writes what both measured."""
    torch.set_num_threads(1)
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    device, workload = f"cuda:{rank}" if kind == "cuda" else kind, WORKLOADS[name]
    ranks = CountedRanks(dist.group.WORLD)
    alone, together = our_learner(workload, device), our_learner(workload, device, ranks)
    whole = example_batch(alone.agent, workload.batch, workload.length).to(device)
    half = whole[: workload.batch // 2]
    turns = {"whole": (alone, whole, rank == 0), "half": (alone, half, True), "together": (together, half, True)}
    seconds: dict[str, list[tuple[float, float]]] = {turn: [] for turn in turns}
    for number in range(WARM_UP + updates):
        for turn, (learner, batch, takes_part) in turns.items():
            dist.all_reduce(torch.zeros(()))  # both begin
            start = time.perf_counter(), time.process_time()
            if takes_part:
                learner.update(batch)
                synchronize(learner.device)
            if number >= WARM_UP:
                now = time.perf_counter(), time.process_time()
                seconds[turn].append(tuple(after - before for after, before in zip(now, start, strict=True)))
        if number == WARM_UP - 1:
            ranks.reduced = ranks.gathered = 0
    found: list[Any] = [None, None]
    dist.all_gather_object(found, seconds)
    if rank == 0:
        record: dict[str, Any] = {"compute": "median" if kind == "cuda" else "cpu_median"}
        for turn in turns:
            slowest = [tuple(map(max, *pair)) for pair in zip(*(one[turn] for one in found), strict=True)]
            wall, processor = zip(*slowest, strict=True)
            record[turn] = {"median": median(wall), "cpu_median": median(processor), "seconds": wall}
        record |= {"reduced_bytes": ranks.reduced // updates, "gathered_bytes": ranks.gathered // updates}
        Path(folder, "found.json").write_text(json.dumps(record))
    dist.destroy_process_group()


def sent(found: dict[str, Any], ranks: int) -> float:
    """Bytes that each rank sends in an update: a ring all-reduce, and its part to all others."""
    return 2 * (ranks - 1) / ranks * found["reduced_bytes"] + (ranks - 1) * found["gathered_bytes"]


def extrapolated(found: dict[str, Any], batch: int, ranks: int) -> dict[str, Any]:
    """An update of more ranks, with the same batch over all of them and with one as large for each, and in words."""
    link, (speed, latency) = list(LINKS.items())[ranks > 8]
    one, half = (found[turn][found["compute"]] for turn in ("whole", "half"))
    each = max(0.0, one - half) / (batch / 2)
    fixed = one - each * batch
    exchange = sent(found, ranks) / speed + 2 * (ranks - 1) * latency
    told = [
        f"{ranks} ranks, {link}: 2 x {ranks - 1}/{ranks} x {found['reduced_bytes']:,} + {ranks - 1} x "
        f"{found['gathered_bytes']:,} = {sent(found, ranks):,.0f} bytes,",
        f"  / {speed / 1e9:g} GB/s + 2 x {ranks - 1} x {latency * 1e6:g} us = {exchange * 1e3:.3f} ms of exchange, "
        f"a tenth of the update where its compute takes {9e3 * exchange:.1f} ms",
    ]
    result = {"ranks": ranks, "link": link, "exchange_seconds": exchange}
    for what, sequences in (("the same batch", batch / ranks), ("a batch for each", batch)):
        if sequences < 1:
            told.append(f"  {what}: a rank would have less than one sequence")
            continue
        seconds = fixed + each * sequences
        efficiency = one / (seconds + exchange) * sequences / batch
        told.append(
            f"  {what}: {fixed * 1e3:.1f} + {sequences:g} x {each * 1e3:.2f} = {seconds * 1e3:.1f} ms of compute, "
            f"{1 / (seconds + exchange):.2f} updates/s, {efficiency * ranks:.2f} times the sequences of "
            f"one rank in the same time: efficiency {efficiency:.1%}"
        )
        result[what] = {"seconds": seconds + exchange, "efficiency": efficiency}
    return result | {"arithmetic": told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", nargs="+", default=["proprio_size1m", "vision_size1m"], choices=WORKLOADS)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--circumstances", help="what else ran on the machine")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record = provenance(torch.device(arguments.device)) | {"scaling_out": {}, "links": LINKS}
    if arguments.circumstances:
        record["circumstances"] = arguments.circumstances
    for name in arguments.workload:
        batch = WORKLOADS[name].batch
        with tempfile.TemporaryDirectory() as folder:
            spawn(live, (folder, name, arguments.device, arguments.updates), nprocs=2)
            found = json.loads(Path(folder, "found.json").read_text())
        for name_of, key in (("efficiency", "median"), ("cpu_efficiency", "cpu_median")):
            found[name_of] = found["whole"][key] / found["together"][key] / 2
        found["extrapolated"] = [extrapolated(found, batch, ranks) for ranks in (8, 64)]
        record["scaling_out"][name] = found
        print(f"{name}, batch {batch}, {WORKLOADS[name].length} steps")
        for turn, told in (("whole", "1 rank"), ("half", "half the batch, no exchange"), ("together", "2 ranks")):
            wall, processor = found[turn]["median"], found[turn]["cpu_median"]
            print(f"{told}: {1 / wall:.3f} updates/s, {wall * 1e3:.0f} ms, {processor * 1e3:.0f} of a processor")
        of_time = f"{found['cpu_efficiency']:.1%} of the processor's time"
        print(f"efficiency of 2 ranks: {found['efficiency']:.1%}, {of_time}")
        found["sent_bytes"] = round(sent(found, 2))
        print(f"{found['sent_bytes']:,} bytes sent by each rank in an update")
        print(*(line for more in found["extrapolated"] for line in more["arithmetic"]), sep="\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
