"""Seconds per learner update on synthetic data, alone or in alternation with another implementation.

    python benchmarks/learner.py
    python benchmarks/learner.py --workload all --against torchrl --json results.json
    python benchmarks/learner.py --against sheeprl --peer-python ~/sheeprl/bin/python
    python benchmarks/learner.py --dtype bfloat16 --against float32
    python benchmarks/learner.py --workload dreamer_v1 dreamer_v2 --against sheeprl --peer-python ~/sheeprl/bin/python
    python benchmarks/learner.py --workload r2 --against decoder

One update is losses, gradients, clipping, optimizer, target critic, return normalization and new latents. Peak memory
is that of the process on a CPU, of torch's allocator on a GPU. TorchRL's learner shares our process: for the memory of
one learner, run it alone. sheeprl has its own process and virtual environment, since it needs other package versions.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from child import SHEEPRL_SETUP, ChildError, start_sheeprl
from contest import Contestant, LocalContestant, Result, take_turns
from gate import Gate
from provenance import provenance
from tensordict import TensorDictBase
from torchrl_peer import torchrl_learner
from workloads import CONTEXT, FAMILY, HORIZON, WORKLOADS, FamilyWorkload, Workload

from dreamer_torchrl import Agent, Hyperparameters, Learner, build_agent
from dreamer_torchrl.agents.backend import decide
from dreamer_torchrl.learners.learner import example_batch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PEER_MODES = {
    "torchrl": ("eager", "step", "full", "graph"),
    "sheeprl": ("eager", "compiled"),
    "float32": ("eager",),
    "decoder": ("eager",),
}


def our_learner(
    workload: Workload, agent: Agent, steps: TensorDictBase, compile: bool, native: bool = True, extra: str = ""
) -> LocalContestant:
    """Our learner as a contestant; an agent without the official parameter count is refused."""
    trained = sum(parameter.numel() for parameter in agent.parameters() if parameter.requires_grad)
    if trained != workload.parameters:
        raise RuntimeError(
            f"{workload.name} trains {trained:,} parameters where the official agent has {workload.parameters:,}: "
            "this is another architecture and not comparable"
        )
    native = native and decide(None, steps.device)
    learner = Learner(agent, Hyperparameters.official(), seed=0, compile=compile, native=native)
    name = f"dreamer_torchrl {'compiled' if compile else 'eager'}{extra}"
    notes = ["our C kernels are used"] if native else []
    return LocalContestant(name, trained, lambda: learner.update(steps), steps.device, notes)


def family_contestants(
    workload: FamilyWorkload, arguments: argparse.Namespace, batch: int, length: int, processes: ExitStack
) -> list[Contestant]:
    """Ours first, then the peer, if any: sheeprl's of the same number of parameters, or ours with its decoder."""
    ours = [workload.learner()]
    if arguments.against == "decoder":
        ours.append(workload.learner("representation=decoder"))
    context = ours[0].hyperparameters.context
    steps = example_batch(ours[0].agent, batch, length)[:, 1 - context :]
    rivals: list[Contestant] = []
    for learner, name in zip(ours, (workload.name, "dreamer_v3 with decoder"), strict=False):
        trained = sum(parameter.numel() for parameter in learner.trained.values())
        rivals.append(LocalContestant(f"our {name}", trained, partial(learner.update, steps), learner.device))
    if rivals[0].parameters != workload.parameters:
        raise RuntimeError(f"{workload.name} trains {rivals[0].parameters:,} parameters, not {workload.parameters:,}")
    if arguments.against == "sheeprl":
        mode = ("--mode", arguments.peer_mode, "--dtype", arguments.dtype)
        rivals.append(processes.enter_context(start_sheeprl(arguments.peer_python, workload.name, steps, *mode)))
    return rivals


def contestants(
    workload: Workload, arguments: argparse.Namespace, batch: int, length: int, processes: ExitStack
) -> list[Contestant]:
    """Ours first, then the peer, if any, on the same steps. Child processes end with `processes`."""
    torch.manual_seed(0)
    device, dtype = arguments.device, DTYPES[arguments.dtype]
    specs = workload.observation_spec, workload.action_spec, workload.size_name
    agent = build_agent(*specs, dtype=dtype)
    steps = example_batch(agent, batch, length).to(device)
    how = steps, arguments.compile, not arguments.no_native
    rivals: list[Contestant] = [our_learner(workload, agent.to(device), *how)]
    if arguments.against == "float32":
        rivals.append(our_learner(workload, build_agent(*specs).to(device), *how, extra=" in float32"))
    if arguments.against == "torchrl":
        rivals.append(torchrl_learner(workload, steps, dtype, arguments.peer_mode))
    if arguments.against == "sheeprl":
        mode = ("--mode", arguments.peer_mode, "--dtype", arguments.dtype)
        sheeprl = start_sheeprl(arguments.peer_python, workload.size_name, steps, *mode)
        rivals.append(processes.enter_context(sheeprl))
    return rivals


def report(workload: Workload | FamilyWorkload, results: Sequence[Result], ratio: float | None) -> str:
    """The table of one workload."""
    titles = ("median", "min", "25%", "75%", "max", "first", "peak MiB", "parameters")
    lines = [f"{workload.name:28}" + "".join(f"{title:>11}" for title in titles)]
    for result in results:
        times = (result.median, result.min, result.lower_quartile, result.upper_quartile, result.max)
        first = (result.warmup_seconds + result.seconds)[0]  # with whatever is compiled or captured on the way
        seconds = "".join(f"{time:11.4f}" for time in (*times, first))
        lines.append(f"{result.contestant:28}{seconds}{result.peak_memory / 2**20:11.0f}{result.parameters:11,}")
    lines += [f"  note: {note}" for result in results for note in result.notes]
    if ratio is not None:
        lines.append(f"ratio {ratio:.3f}  (ours over theirs, medians)")
    return "\n".join(lines)


def main() -> None:
    arguments = _arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    record = provenance(arguments.device) | {"settings": _settings(arguments), "workloads": []}
    print(
        f"seconds per update: horizon {HORIZON}, {arguments.dtype}, {arguments.device}, "
        f"{torch.get_num_threads()} threads, {arguments.updates} updates each"
    )
    for name in WORKLOADS if "all" in arguments.workload else arguments.workload:
        workload = (WORKLOADS | FAMILY)[name]
        make = family_contestants if name in FAMILY else contestants
        batch, length = arguments.batch or workload.batch, arguments.length or workload.length
        with ExitStack() as processes:
            rivals = make(workload, arguments, batch, length, processes)
            results = take_turns(rivals, arguments.warmup, arguments.updates, arguments.gate and arguments.gate.wait)
        ratio = results[0].median / results[1].median if len(results) > 1 else None
        print(f"\nbatch {batch} x {length}\n" + report(workload, results, ratio), flush=True)
        record["workloads"].append(
            {"workload": name, "batch": batch, "length": length, "ratio": ratio, "results": [*map(asdict, results)]}
        )
        if arguments.json:  # after each workload: the last one may take long
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(record, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", nargs="+", choices=[*WORKLOADS, "all", *FAMILY], default=["proprio_size1m"])
    parser.add_argument("--updates", type=_positive, default=10, help="timed updates of each contestant")
    parser.add_argument("--warmup", type=int, default=3, help="updates of each before the timed ones")
    parser.add_argument("--batch", type=_positive, help="sequences (default: 16; of dreamer_v1 50)")
    text = f"trained steps, after {CONTEXT} of context (default: 64; of dreamer_v1 and dreamer_v2 50, without context)"
    parser.add_argument("--length", type=_positive, help=text)
    parser.add_argument(
        "--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the computation")
    parser.add_argument("--compile", action="store_true", help="our side compiled")
    parser.add_argument("--no-native", action="store_true", help="our side without C kernels")
    parser.add_argument("--threads", type=_positive, help="torch threads (default: torch's choice)")
    parser.add_argument(
        "--against",
        choices=list(PEER_MODES),
        help="timed in alternation with ours: another implementation, ours in float32, or (r2) with a decoder",
    )
    parser.add_argument("--peer-python", type=Path, metavar="PATH", help="the interpreter that has sheeprl")
    parser.add_argument(
        "--peer-mode",
        choices=sorted({mode for modes in PEER_MODES.values() for mode in modes}),
        default="eager",
        help="eager; of torchrl also one step of its sequence compiled, all compiled (full: minutes; on CUDA captured "
        "in a graph), or captured without compiling (graph); of sheeprl also all but its sequence compiled",
    )
    parser.add_argument(
        "--gate",
        type=Gate,
        metavar="FILE",
        help="write FILE.ready after the warm-up, then wait for FILE: several compile at once and are timed one by one",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements and their provenance")
    arguments = parser.parse_args()
    if arguments.against and arguments.peer_mode not in PEER_MODES[arguments.against]:
        modes = ", ".join(PEER_MODES[arguments.against])
        parser.error(f"--peer-mode {arguments.peer_mode}: {arguments.against} has {modes}")
    if arguments.peer_mode == "graph" and arguments.device.type != "cuda":
        parser.error(f"--peer-mode graph: {arguments.device} captures no graphs")
    for name in set(arguments.workload) & set(FAMILY):
        if arguments.against not in (None, FAMILY[name].against):
            parser.error(f"--workload {name} is timed --against {FAMILY[name].against}")
    if arguments.against == "decoder" and not set(arguments.workload) <= set(FAMILY):
        parser.error("--against decoder is for --workload r2")
    if arguments.against == "sheeprl" and not arguments.peer_python:
        parser.error(f"--against sheeprl needs --peer-python. {SHEEPRL_SETUP}")
    if arguments.against == "sheeprl" and arguments.device.type != "cpu":
        parser.error(f"--against sheeprl: that peer runs on the CPU, not on {arguments.device}")
    return arguments


def _settings(arguments: argparse.Namespace) -> dict:
    names = ("updates", "warmup", "batch", "length", "dtype", "compile", "no_native", "against", "peer_mode")
    return {
        **{name: getattr(arguments, name) for name in names},
        "device": str(arguments.device),
        "context": CONTEXT,
        "horizon": HORIZON,
    }


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    try:
        main()
    except ChildError as error:
        sys.exit(f"error: {error}")
