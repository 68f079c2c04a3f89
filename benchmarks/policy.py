"""Milliseconds per step of acting, for one environment and for several.

    python benchmarks/policy.py
    python benchmarks/policy.py --workload proprio_size1m --environments 1 16 --json benchmarks/results/policy-cpu.json

Two times of the same steps: `policy` is the call of the policy alone, which other implementations are compared by, and
`send` is all that `Collector.send` does to get from what is seen to actions: latents beside observations, the way to
the device and back. Observations are prepared, so no environment's time is in it. States and actions are drawn, as in
training.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from provenance import provenance
from tensordict import TensorDictBase
from torchrl.data import Composite
from torchrl.envs.utils import ExplorationType, set_exploration_type
from workloads import WORKLOADS, Workload

from dreamer_torchrl import Agent, build_agent
from dreamer_torchrl.agent import LATENTS
from dreamer_torchrl.data.collect import Collector
from dreamer_torchrl.learner import example_batch
from dreamer_torchrl.native.calls import decide, use_native

TARGETS = {("proprio_size1m", 1): 1.0, ("proprio_size1m", 16): 1.4}
"""Milliseconds that the policy is meant to take."""

PREPARED = 8
"""Different observations; more would only measure the memory."""


class PreparedStreams:
    """Streams as a `Collector` wants them, in which no environment runs: it takes actions and does nothing."""

    def __init__(self, count: int, action_spec: Composite):
        self.count, self.action_spec = count, action_spec

    def __len__(self) -> int:
        return self.count

    def send(self, actions: TensorDictBase) -> None:
        pass


def observations(agent: Agent, environments: int) -> list[TensorDictBase]:
    """What environments show at some steps, `[N]` each."""
    steps = example_batch(agent, environments, PREPARED)
    acted = agent.action_space.spaces
    return list(steps.exclude(*LATENTS, *acted).unbind(1))


def measure(workload: Workload, environments: int, steps: int, warmup: int, device: torch.device) -> dict[str, Any]:
    """Act in so many environments; every time measured, in milliseconds."""
    torch.manual_seed(0)
    agent = build_agent(workload.observation_spec, workload.action_spec, size=workload.size_name).to(device)
    use_native(agent, decide(None, device))  # as a run does
    collector = Collector(PreparedStreams(environments, Composite(action=workload.action_spec)), agent.policy)
    seen = observations(agent, environments)
    sending = [_timed_send(collector, seen[step % len(seen)]) for step in range(warmup + steps)][warmup:]
    carried = [now.copy().update(collector.latents).to(device) for now in seen]
    with set_exploration_type(ExplorationType.RANDOM):
        acting = [
            _timed_policy(collector, carried[step % len(carried)].copy(), device) for step in range(warmup + steps)
        ][warmup:]
    row: dict[str, Any] = {"workload": workload.name, "environments": environments}
    for name, times in (("policy", acting), ("send", sending)):
        lower, median, upper = statistics.quantiles(times, method="inclusive")
        row |= {f"{name}_ms": median, f"{name}_ms_quartiles": [lower, upper], f"{name}_ms_min": min(times)}
    return row | {"target_ms": TARGETS.get((workload.name, environments))}


def _timed_send(collector: Collector, seen: TensorDictBase) -> float:
    collector.now = seen
    start = time.perf_counter()
    collector.send()  # ends on the CPU, so there is nothing left to wait for
    return 1e3 * (time.perf_counter() - start)


def _timed_policy(collector: Collector, seen: TensorDictBase, device: torch.device) -> float:
    start = time.perf_counter()
    collector.policy(seen)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    arguments = _arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    record = provenance(arguments.device) | {"steps": arguments.steps, "policy": []}
    print(f"{'ms per step':16}{'environments':>14}{'policy':>10}{'min':>10}{'send':>10}{'target':>10}")
    for name in arguments.workload:
        for environments in arguments.environments:
            row = measure(WORKLOADS[name], environments, arguments.steps, arguments.warmup, arguments.device)
            times = "".join(f"{row[key]:10.3f}" for key in ("policy_ms", "policy_ms_min", "send_ms"))
            target = f"{row['target_ms']:10.1f}" if row["target_ms"] else ""
            print(f"{name:16}{environments:14}{times}{target}", flush=True)
            record["policy"].append(row)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--workload",
        nargs="+",
        choices=list(WORKLOADS),
        default=["proprio_size1m", "vision_size1m"],
        help="which agent",
    )
    parser.add_argument("--environments", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--steps", type=int, default=500, help="timed steps")
    parser.add_argument("--warmup", type=int, default=100, help="steps before the timed ones")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    parser.add_argument("--threads", type=int, help="torch threads; torch's own choice where not given")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the table, and where it comes from")
    return parser.parse_args()


if __name__ == "__main__":
    main()
