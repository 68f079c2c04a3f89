"""A trained run, opened: what the pictures of dreamerv3.md are drawn from, and the numbers that need no picture."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from dreamer_torchrl import Learner, load
from dreamer_torchrl.learners.learner import total
from dreamer_torchrl.training.build import make_replay
from dreamer_torchrl.training.loading import LoadedRun

BATCHES = 32


@dataclass
class Look:
    """A run, opened: what the pictures are drawn from.

    Args:
        run: the trained agent.
        learner: as it stood at the checkpoint.
        batch: steps of the replay ``[B, context + T]``, drawn evenly.
        data: what the world model makes of them, ``[B, T]``.
        episode: the last recorded one that the task itself ended, ``[T]``.
        lines: what the run measured.
    """

    run: LoadedRun
    learner: Learner
    batch: TensorDictBase
    data: TensorDictBase
    episode: TensorDictBase
    lines: list[dict[str, float]]

    def curve(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of one measure."""
        points = [(line["step"], line[key]) for line in self.lines if line.get(key) is not None]
        return [step for step, _ in points], [value for _, value in points]

    def raw_kl(self, data: TensorDictBase) -> Tensor:
        """KL of posterior from prior ``[B, T]``, before free nats are given."""
        return self.run.agent.rssm.latent.kl(data["posterior_logits"], data["prior_logits"])[0]


def look_at(path: Path) -> Look:
    """Open a run and let its world model see some batches of its replay."""
    run = load(path)
    replay = make_replay(run.settings)
    run.saved.restore_replay(replay)
    replay.sampler.fresh.clear()  # evenly from all that is there, not the newest first
    learner = Learner(run.agent, run.settings.learner)
    learner.load_state_dict(run.saved.parts["learner"])
    batch = torch.cat([replay.sample()[0] for _ in range(BATCHES)])
    _, data = learner.world_model_loss(batch)
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return Look(run, learner, batch, data, last_episode(run.recorded(1000)), lines)


def last_episode(steps: TensorDictBase, least: int = 20) -> TensorDictBase:
    """The last episode ``[T]`` that the task itself ended, of recorded steps ``[time, N]``.

    Among those of at least ``least`` steps; where there is none, the longest stretch within one episode.
    """
    pieces = []
    for row in steps.unbind(1):
        starts = [0, *row["is_init"].squeeze(1)[1:].nonzero().add(1).squeeze(1).tolist(), len(row)]
        pieces += [(b, row[a:b]) for a, b in pairwise(starts) if row["is_init"][a]]
    ended = [(b, piece) for b, piece in pieces if piece["terminated"][-1] and len(piece) >= least]
    if ended:
        return max(ended, key=lambda pair: pair[0])[1]
    return max((piece for _, piece in pieces), key=len)


def update_gate(core: nn.Module, belief: Tensor, state: Tensor, action: Tensor) -> Tensor:
    """What `gru_update` mixes with, ``[N, g, D / g]``."""
    seen = []
    hook = core.gates.register_forward_hook(lambda module, inputs, output: seen.append(output))
    core(belief, state.flatten(1), action)
    hook.remove()
    return torch.sigmoid(seen[0].unflatten(-1, (core.blocks, 3, -1))[:, :, 2] - 1)


def other_numbers(look: Look) -> dict[str, str]:
    """Those that need no picture."""
    agent, learner = look.run.agent, look.learner
    features = look.data["features"]
    gap = (agent.value(features)[1] - learner.value_loss.predict_slow(features)[1]).abs().mean()
    going_on = agent.continuation(features)[1]
    terminated = look.data["terminated"]
    classes = agent.rssm.classes
    return {
        "slow_critic_gap": f"{gap:.2f}",
        "slow_critic_half_life": f"{math.log(0.5) / math.log(1 - learner.hyperparameters.slow_rate):.0f}",
        "continue_on": f"{going_on[~terminated].mean():.3f}",
        "continue_end": f"{going_on[terminated].mean():.3f}",
        "largest_kl": f"{largest_kl(classes, agent.rssm.unimix):.1f}",
        "smallest_probability": f"{agent.rssm.unimix / classes:.4g}",
        "clipped_tensors": clipped(look),
        "loss_dynamics": f"{look.curve('train/loss_dynamics')[1][-1]:.2f}",
        "loss_representation": f"{look.curve('train/loss_representation')[1][-1]:.2f}",
        "loss_value": f"{look.curve('train/loss_value')[1][-1]:.2f}",
        "loss_replay_value": f"{look.curve('train/loss_replay_value')[1][-1]:.2f}",
        "updates": f"{look.run.saved.parts['progress']['updates']:,}",
        "last_evaluation": f"{look.curve('eval/return')[1][-1]:.1f}",
    }


def largest_kl(classes: int, unimix: float) -> float:
    """KL of one variable whose two distributions are as sure of different classes as they can be."""
    low = unimix / classes
    return (1 - unimix) * math.log((1 - unimix + low) / low)


def clipped(look: Look) -> str:
    """How many parameter tensors the adaptive clipping holds back, in the mean over the batches."""
    learner, counts = look.learner, []
    parameters = list(look.run.agent.parameters())
    for batch in look.batch.chunk(BATCHES):
        with torch.enable_grad():
            losses, _ = learner.losses(batch, learner.draw_noise(*batch.shape))
            total(losses).backward()
        limits = [learner.hyperparameters.clip * parameter.norm().clamp_min(1e-3) for parameter in parameters]
        counts.append(sum(bool(p.grad.norm() > limit) for p, limit in zip(parameters, limits, strict=True)))
        learner.optimizer.zero_grad()
    return f"{sum(counts) / len(counts):.0f} of {len(parameters)}"
