"""Losses and gradients on any device against the official recordings; captured updates against eager ones.

    python benchmarks/exactness.py tests/golden --device cuda
    python benchmarks/exactness.py tests/golden --device cuda --compile

`python -m dreamer_torchrl.interop.verify` compares every quantity, on the CPU; this compares what training follows on
another device, whose sums run in other orders: each loss and each gradient, in float32 without TF32. Then updates as
`Learner.update` runs them there (one CUDA graph, replayed) must give what `Learner.step` gives from the same seed.
`--compile` does the same with compiled networks and loops, as a GPU trains by default; it takes minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from recording import Recording
from verification import GRADIENT, POOLED, PREDICTION, Row, compare
from workloads import WORKLOADS

from dreamer_torchrl import Agent, Hyperparameters, Learner, build_agent
from dreamer_torchrl.interop.official import load_into
from dreamer_torchrl.interop.official_names import links
from dreamer_torchrl.learners.learner import example_batch, total

OFFICIAL_TERMS = {
    "dynamics": ("dyn",),
    "representation": ("rep",),
    "reward": ("rew",),
    "continue": ("con",),
    "actor": ("policy",),
    "value": ("value",),
    "replay_value": ("repval",),
}
UPDATES = 5


def learner_of(agent: Agent, hyperparameters: Hyperparameters, compiled: bool) -> Learner:
    """A learner with compiled loops instead of C kernels, or without compiling."""
    return Learner(agent, hyperparameters, compile=compiled, native=False if compiled else None)


def recorded(recording: Recording, device: torch.device, compiled: bool) -> Iterator[Row]:
    """Losses and gradients of both recorded steps."""
    for number in (1, 2):
        h, step = recording.hyperparameters(), recording.load(f"step{number}")
        learner = learner_of(recording.agent().to(device), h, compiled)
        load_into(learner, recording.load(f"params{number - 1}"))
        batch, noise = recording.batch(learner.agent), recording.noise(learner.agent, step)
        losses, _ = learner.losses(batch.to(device), noise.to(device))
        total(losses).backward()
        for name, parts in (OFFICIAL_TERMS | {"reconstruction": tuple(recording.observation_keys)}).items():
            scale = getattr(h, f"{name}_scale")
            theirs = scale * sum(step[f"losses/{part}"].mean(dtype=np.float64) for part in parts)
            yield compare(f"{number} loss {name}", losses[f"loss_{name}"].cpu(), theirs, PREDICTION)
        gradients = recording.load(f"grads{number}")
        for link in links(learner.agent):
            ours = torch.from_numpy(link.to_official(link.parameter.grad))
            tolerance = POOLED if link.name.startswith("enc/cnn") else GRADIENT
            yield compare(f"{number} grad {link.name}", ours, gradients[link.name], tolerance)


def captured(device: torch.device, compiled: bool) -> Iterator[Row]:
    """Objective and weights after some updates, of `Learner.update` and of `Learner.step`."""
    workload = WORKLOADS["proprio_size1m"]
    learners = []
    for _ in range(2):
        torch.manual_seed(0)
        agent = build_agent(workload.observation_spec, workload.action_spec, "nano").to(device)
        learners.append(learner_of(agent, Hyperparameters.official(), compiled))
    trained, plain = learners
    start = [parameter.detach().clone() for parameter in plain.agent.parameters()]
    for number in range(UPDATES):
        steps = example_batch(plain.agent, 4, 8, seed=number)
        ours, _ = trained.update(steps)
        theirs = plain.step(steps.to(device)).metrics
        yield compare(f"update {number + 1}", ours["objective"].cpu(), theirs["objective"].cpu(), PREDICTION)
    moved = [
        torch.cat([(now - then).flatten() for now, then in zip(learner.agent.parameters(), start, strict=True)])
        for learner in learners
    ]  # [all weights], how far they went
    yield compare("way of the weights", moved[0].cpu(), moved[1].detach().cpu(), 1e-2)


def main() -> int:
    arguments = _arguments()
    torch.backends.cudnn.allow_tf32 = False  # in matrix products, torch leaves it out by itself
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # instead of going on uncompiled without a word
    how = arguments.device, arguments.compile
    found = sorted(path.name.removesuffix("_config.json") for path in Path(arguments.folder).glob("*_config.json"))
    tables = {case: recorded(Recording(arguments.folder, case), *how) for case in arguments.case or found}
    tables["captured"] = captured(*how)
    summary = {}
    for case, table in tables.items():
        torch._dynamo.reset()  # torch compiles eight variants of a function at most, and each case needs its own
        rows = list(table)
        wrong = [row for row in rows if not row.ok]
        worst = max(rows, key=lambda row: row.relative / row.tolerance)
        print(f"{case}: {len(rows) - len(wrong)} of {len(rows)} agree on {arguments.device}; the furthest:\n{worst}")
        print("".join(f"{row}\n" for row in wrong), end="", flush=True)
        summary[case] = {"compared": len(rows), "wrong": [str(row) for row in wrong], "furthest": str(worst)}
        if arguments.json:  # after each: it may be stopped in the next
            arguments.json.write_text(json.dumps(summary, indent=2) + "\n")
    return 1 if any(part["wrong"] for part in summary.values()) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where the recordings are")
    parser.add_argument("--case", nargs="+", help="their names; all where not given")
    parser.add_argument(
        "--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda"
    )
    parser.add_argument("--compile", action="store_true", help="networks and loops compiled")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the largest error of each kind")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
