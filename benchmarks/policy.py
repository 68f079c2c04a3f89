"""Milliseconds per policy step, for one and for several environments, alone or in alternation with sheeprl.

    python benchmarks/policy.py
    python benchmarks/policy.py --workload proprio_size1m --environments 1 16 --json benchmarks/results/policy-cpu.json
    python benchmarks/policy.py --against sheeprl --peer-python ~/sheeprl/bin/python

Two times of the same steps: `policy` is the call of the policy alone, which other implementations are compared by, and
`send` is all that it takes to get from what is seen to actions: latents beside observations, the way to the device and
back, there with a captured step and without. Observations are prepared, so no environment's time is in it. States and
actions are drawn, as in training. In turn with sheeprl each side makes 50 steps, then the other; `turns` and `peer` are
the medians of these.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from child import SHEEPRL_SETUP, ChildError, start_sheeprl
from contest import LocalContestant, take_turns
from provenance import provenance
from tensordict import TensorDictBase
from torchrl.envs.utils import ExplorationType, set_exploration_type
from workloads import WORKLOADS, Workload

from dreamer_torchrl import Agent, build_agent
from dreamer_torchrl.agents.backend import attach, decide
from dreamer_torchrl.agents.device_policy import DevicePolicy
from dreamer_torchrl.agents.policy import Policy
from dreamer_torchrl.keys import LATENTS
from dreamer_torchrl.learners.learner import example_batch

TARGETS = {("proprio_size1m", 1): 1.0, ("proprio_size1m", 16): 1.4}
"""Target milliseconds of the policy."""

PREPARED = 8
"""Number of different observations."""

TURN = 50
"""Steps of one side before the other."""


def observations(agent: Agent, environments: int) -> list[TensorDictBase]:
    """Observations of some steps, `[N]` each."""
    steps = example_batch(agent, environments, PREPARED)
    acted = agent.action_space.spaces
    return list(steps.exclude(*LATENTS, *acted).unbind(1))


def agent_for(workload: Workload, device: torch.device) -> Agent:
    """An agent that acts as in a run, with kernels where they are."""
    torch.manual_seed(0)
    agent = build_agent(workload.observation_spec, workload.action_spec, size=workload.size_name).to(device)
    attach(agent, decide(None, device))
    return agent


def measure(
    workload: Workload, environments: int, steps: int, warmup: int, device: torch.device, capture: bool = False
) -> dict[str, Any]:
    """Act in `environments` environments; medians, quartiles and minima in milliseconds."""
    agent = agent_for(workload, device)
    policy, seen = agent.policy, observations(agent, environments)
    sender = policy
    if device.type != "cpu":
        generator = torch.Generator(device).manual_seed(0)
        sender = DevicePolicy(agent.encoder, agent.rssm, agent.actor, generator, capture=capture)
        sender.carries = True
    latents = agent.latent_spec.expand(environments).zero()
    with set_exploration_type(ExplorationType.RANDOM):
        sending = []
        for step in range(warmup + steps):
            start = time.perf_counter()
            latents = acted(sender, seen[step % len(seen)], latents)
            sending.append(1e3 * (time.perf_counter() - start))  # ends on the CPU: there is nothing left to wait for
        carried = [now.copy().update(latents).to(device) for now in seen]
        acting = [_timed_policy(policy, carried[step % len(carried)].copy(), device) for step in range(warmup + steps)]
    sending, acting = sending[warmup:], acting[warmup:]
    row: dict[str, Any] = {"workload": workload.name, "environments": environments, "captured": capture}
    for name, times in (("policy", acting), ("send", sending)):
        lower, median, upper = statistics.quantiles(times, method="inclusive")
        row |= {f"{name}_ms": median, f"{name}_ms_quartiles": [lower, upper], f"{name}_ms_min": min(times)}
    return row | {"target_ms": TARGETS.get((workload.name, environments))}


def in_turn(workload: Workload, environments: int, steps: int, warmup: int, python: Path) -> dict[str, Any]:
    """Act in alternation with sheeprl; medians in milliseconds per step, and ours over theirs."""
    agent = agent_for(workload, torch.device("cpu"))
    policy = agent.policy
    seen = observations(agent, environments)
    latents = acted(policy, seen[0], agent.latent_spec.expand(environments).zero())
    carried = [now.copy().update(latents) for now in seen]

    def act() -> None:
        with set_exploration_type(ExplorationType.RANDOM):
            for number in range(TURN):
                policy(carried[number % len(carried)])

    parameters = sum(parameter.numel() for parameter in policy.parameters())
    ours = LocalContestant("dreamer_torchrl", parameters, act, torch.device("cpu"))
    shown = example_batch(agent, environments, PREPARED)
    with start_sheeprl(python, workload.size_name, shown, "--act", str(TURN)) as sheeprl:
        times = take_turns([ours, sheeprl], -(-warmup // TURN), -(-steps // TURN))
    mine, theirs = (1e3 * result.median / TURN for result in times)
    sides = {"parameters": parameters, "peer": times[1].contestant, "peer_parameters": times[1].parameters}
    return sides | {"turns_ms": mine, "peer_ms": theirs, "ratio": mine / theirs}


def acted(policy: Policy, seen: TensorDictBase, latents: TensorDictBase) -> TensorDictBase:
    """The latents after a step of acting, on the CPU as the actions are."""
    return policy(seen.copy().update(latents)).select(*LATENTS)


def _timed_policy(policy: Policy, seen: TensorDictBase, device: torch.device) -> float:
    start = time.perf_counter()
    policy(seen)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    arguments = _arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    record = provenance(arguments.device) | {"steps": arguments.steps, "policy": []}
    graphs = (False, True) if arguments.device.type == "cuda" else (False,)
    duel = f"{'turns':>10}{'peer':>10}{'ratio':>10}" if arguments.against else ""
    print(f"{'ms per step':16}{'environments':>14}{'policy':>10}{'min':>10}{'send':>10}{'target':>10}{duel}")
    for name in arguments.workload:
        for environments, capture in product(arguments.environments, graphs):
            row = measure(WORKLOADS[name], environments, arguments.steps, arguments.warmup, arguments.device, capture)
            times = "".join(f"{row[key]:10.3f}" for key in ("policy_ms", "policy_ms_min", "send_ms"))
            target = f"{row['target_ms'] or '-':>10}"
            if arguments.against:
                how = environments, arguments.steps, arguments.warmup, arguments.peer_python
                row |= in_turn(WORKLOADS[name], *how)
                target += "".join(f"{row[key]:10.3f}" for key in ("turns_ms", "peer_ms", "ratio"))
            print(f"{name:16}{environments:14}{times}{target}{' captured' if capture else ''}", flush=True)
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
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's choice)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table and its provenance")
    parser.add_argument("--against", choices=["sheeprl"], help="acts in alternation with ours")
    parser.add_argument("--peer-python", type=Path, metavar="PATH", help="the interpreter that has sheeprl")
    arguments = parser.parse_args()
    if arguments.against and not arguments.peer_python:
        parser.error(f"--against {arguments.against} needs --peer-python. {SHEEPRL_SETUP}")
    if arguments.against and arguments.device.type != "cpu":
        parser.error(f"--against {arguments.against}: that peer runs on the CPU, not on {arguments.device}")
    return arguments


if __name__ == "__main__":
    try:
        main()
    except ChildError as error:
        sys.exit(f"error: {error}")
