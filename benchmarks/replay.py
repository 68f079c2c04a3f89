"""Milliseconds to sample 16 x 65 steps from the replay and to refresh their latents, by replay fill.

    python benchmarks/replay.py
    python benchmarks/replay.py --steps 1000000 --json benchmarks/results/replay-cpu.json
    python benchmarks/replay.py --sampler ours slice --workload proprio_size1m --steps 100000 --draws 20

    python benchmarks/replay.py --device cuda --steps 100000

Vectors are 24 floats, images 64 x 64 x 3 bytes, both with the latents of size1m. Each draw follows a write of one step
per stream, which is when TorchRL's own slice sampler (``--sampler slice``) looks through the whole storage. With a GPU,
the replay is on the host, with pinned batches, then on the GPU; times end when the GPU has the batch.
"""

import argparse
import json
import statistics
import time
from itertools import product
from pathlib import Path

import torch
from contest import synchronize
from provenance import provenance
from torchrl.data import SliceSampler
from workloads import WORKLOADS

from dreamer_torchrl import build_agent
from dreamer_torchrl.data.replay import Replay, bytes_per_step
from dreamer_torchrl.learners.learner import example_batch

STREAMS, CHUNK = 4, 1000
BATCH, LENGTH = 16, 64
SAMPLERS = {
    "ours": lambda: None,
    "slice": lambda: SliceSampler(
        slice_len=LENGTH + 1, traj_key="stream", init_key=None, truncated_key=None, fragmented=True
    ),
}


def measure(
    workload: str,
    capacity: int,
    fills: list[int],
    draws: int,
    sampler: str = "ours",
    device: torch.device = torch.device("cpu"),  # noqa: B008
    storage: torch.device = torch.device("cpu"),  # noqa: B008
) -> list[dict]:
    """Fill one replay; at each fill, time samples right after a write, and refreshes."""
    chosen = WORKLOADS[workload]
    agent = build_agent(chosen.observation_spec, chosen.action_spec, size=chosen.size_name)
    place = {"device": storage, "pin_memory": device.type == "cuda"}
    replay = Replay(capacity, STREAMS, batch=BATCH, length=LENGTH, sampler=SAMPLERS[sampler](), **place)
    chunk = example_batch(agent, STREAMS, CHUNK - 1)  # [streams, time]
    chunk["stream"] = torch.arange(STREAMS).view(-1, 1, 1).expand(STREAMS, CHUNK, 1)
    latents = chunk.select("belief", "state")[:1, :LENGTH].expand(BATCH, LENGTH).contiguous().to(device)
    rows = []
    for fill in fills:
        while len(replay) < fill:
            replay.extend(chunk[:, : min(CHUNK, (fill - len(replay)) // STREAMS)])
        if sampler == "ours":
            replay.sampler.fresh.clear()  # uniform draws, as the other's
        drawing, refreshing = [], []
        for _ in range(draws):
            replay.extend(chunk[:, :1])
            start = time.perf_counter()
            batch, where = replay.sample()
            batch.to(device, non_blocking=True)
            synchronize(device)
            middle = time.perf_counter()
            brought = replay.brought(latents)
            synchronize(device)
            replay.refresh(where, brought)
            synchronize(device)
            drawing.append(1e3 * (middle - start))
            refreshing.append(1e3 * (time.perf_counter() - middle))
        row = {
            "workload": workload,
            "sampler": sampler,
            "storage": storage.type,
            "fill": fill,
            "bytes_per_step": bytes_per_step(agent),
        }
        row |= {"sample_ms": statistics.median(drawing), "sample_ms_max": max(drawing)}
        row |= {"refresh_ms": statistics.median(refreshing)}
        rows.append(row)
        print(
            f"{workload:16}{sampler:8}{storage.type:6}{fill:10,}{row['sample_ms']:12.3f}{max(drawing):12.3f}{row['refresh_ms']:12.3f}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", nargs="+", choices=list(WORKLOADS), default=["proprio_size1m", "vision_size1m"])
    parser.add_argument("--sampler", nargs="+", choices=list(SAMPLERS), default=["ours"])
    parser.add_argument("--steps", type=int, default=1_000_000, help="capacity, and the largest fill")
    parser.add_argument("--draws", type=int, default=100, help="timed draws at each fill")
    parser.add_argument("--device", type=torch.device, default="cpu", help="of the learner")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table and its provenance")
    arguments = parser.parse_args()
    print(f"{'':16}{'sampler':8}{'where':6}{'fill':>10}{'sample ms':>12}{'slowest':>12}{'refresh ms':>12}")
    fills = [10**power for power in range(4, 12) if 10**power < arguments.steps] + [arguments.steps]
    record = provenance(arguments.device) | {"replay": []}
    host = torch.device("cpu")
    storages = [host] if arguments.device.type == "cpu" else [host, arguments.device]
    for workload, sampler, storage in product(arguments.workload, arguments.sampler, storages):
        how = arguments.steps, fills, arguments.draws, sampler, arguments.device, storage
        record["replay"] += measure(workload, *how)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
