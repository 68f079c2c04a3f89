"""Kernels that an update and a step of acting launch, counted by the profiler, and on a GPU how often the host waits.

    python benchmarks/launches.py --no-compile
    python benchmarks/launches.py --json launches.json
    python benchmarks/launches.py --device cuda --dtype bfloat16

On the CPU, where no graph hides them, an operation of PyTorch's dispatcher counts as one launch, as it is on a GPU,
unless it only makes a view or takes memory; so does each kernel that `torch.compile` has fused. Ours is without C
kernels, as on a GPU. On a GPU the kernels themselves are counted, in the course of a training: sample, update, refresh
of the update before, a step of acting; and the calls of CUDA in which the host waits.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from policy import observations
from provenance import provenance
from tensordict import TensorDictBase
from torch._C import DispatchKey
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile
from torchrl.envs.utils import ExplorationType, set_exploration_type
from workloads import WORKLOADS

from dreamer_torchrl import Hyperparameters, Learner, build_agent
from dreamer_torchrl.agents.device_policy import DevicePolicy
from dreamer_torchrl.agents.policy import Policy
from dreamer_torchrl.data.replay import Replay
from dreamer_torchrl.learners.learner import example_batch
from dreamer_torchrl.training.late import Update

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NOTHING = {"empty", "empty_like", "empty_strided", "new_empty", "promote_types", "result_type", "item"}
NOTHING |= {"_local_scalar_dense", "lift_fresh", "resolve_conj", "resolve_neg", "is_nonzero"}
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
BEFORE = 5  # calls that are not counted: of these, some compile and capture


@cache
def kind(operation: str) -> str:
    """``launch``, ``composite`` (of others, which count) or ``nothing`` of an operation in `torch.ops.aten`."""
    packet = getattr(torch.ops.aten, operation)
    overloads = [getattr(packet, name) for name in packet.overloads()]
    overloads = [each for each in overloads if torch._C._dispatch_has_kernel(each.name())]  # not TorchScript's own
    if operation in NOTHING or all(makes_view(overload) for overload in overloads):
        return "nothing"
    composite = DispatchKey.CompositeImplicitAutograd
    return "composite" if all(each.has_kernel_for_dispatch_key(composite) for each in overloads) else "launch"


def makes_view(overload: Any) -> bool:
    aliases = [result.alias_info for result in overload._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def launches(events: Iterable[FunctionEvent]) -> Counter[str]:
    """Launches by name among these events of the host and those below them."""
    found: Counter[str] = Counter()
    for event in events:
        name, known = event.name, event.name.startswith("aten::") and hasattr(torch.ops.aten, event.name[6:])
        what = kind(name[6:]) if known else "launch" if "_fused_" in name else "composite"
        if what == "launch":
            found[name] += 1
        elif what == "composite":
            found += launches(event.cpu_children)
    return found


def counted(body: Callable[[], object], device: torch.device) -> tuple[Counter[str], dict[str, int]]:
    """Launches of one call by name, and waits of the host by the call in which it waits."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as measured:
        body()
    events = measured.events()
    if not on_gpu:
        return launches(event for event in events if event.cpu_parent is None), {}
    kernels = Counter(event.name for event in events if event.device_type is DeviceType.CUDA)
    return kernels, {name: count for name in WAITS if (count := sum(event.name == name for event in events))}


def measure(workload: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for an update, one for a step of acting."""
    chosen, device = WORKLOADS[workload], arguments.device
    torch.manual_seed(0)
    size = "nano" if arguments.nano else chosen.size_name
    agent = build_agent(chosen.observation_spec, chosen.action_spec, size, dtype=DTYPES[arguments.dtype]).to(device)
    learner = Learner(agent, Hyperparameters.official(), compile=arguments.compile, native=False)
    parts = agent.encoder, agent.rssm, agent.actor, torch.Generator(device).manual_seed(0)
    policy = Policy(*parts) if device.type == "cpu" else DevicePolicy(*parts, capture=True)
    seen, *_ = observations(agent, arguments.environments)
    seen.update(agent.latent_spec.expand(len(seen)).zero())

    def act() -> None:
        with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
            policy(seen.copy())

    steps = example_batch(agent, arguments.batch, arguments.length)
    update = partial(learner.step, steps) if device.type == "cpu" else trained(learner, steps)
    rows = []
    for part, body in {"update": update, "acting": act}.items():
        for _ in range(BEFORE):
            body()
        found, waits = counted(body, device)
        rows.append({"workload": workload, "part": part, "launches": found.total(), "waits": waits})
        rows[-1]["most"] = dict(found.most_common(10))
        told = f"; the host waits in {waits or 'none'}" if device.type == "cuda" else ""
        print(f"{workload}: {found.total():,} launches in {part}{told}", flush=True)
    return rows


def trained(learner: Learner, steps: TensorDictBase) -> Callable[[], None]:
    """An update as in a training on a GPU, from a replay there; then the host looks at the one before."""
    streams, length = steps.shape
    steps["stream"] = torch.arange(streams).reshape(-1, 1, 1).expand(*steps.shape, 1).clone()
    replay = Replay(steps.numel(), streams, streams, length - 1, device=learner.device)
    replay.extend(steps)
    under_way: list[Update] = []

    def body() -> None:
        under_way.append(Update(learner, replay, *replay.sample()))
        for done in under_way[:-1]:
            if done.finite:
                replay.refresh(done.where, done.latents)
        del under_way[:-1]

    return body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", nargs="+", choices=list(WORKLOADS), default=["proprio_size1m"])
    parser.add_argument("--batch", type=int, default=16, help="sequences")
    parser.add_argument("--length", type=int, default=64, help="trained steps")
    parser.add_argument("--nano", action="store_true", help="an agent of size nano")
    parser.add_argument("--environments", type=int, default=4, help="that are acted in")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the computation")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="networks and loops as they are")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts and their provenance")
    arguments = parser.parse_args()
    record = provenance(arguments.device) | {"launches": []}
    with torch._inductor.config.patch("cpp.enable_kernel_profile", True):
        for workload in arguments.workload:
            record["launches"] += measure(workload, arguments)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
