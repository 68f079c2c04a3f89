"""Draw the pictures of dreamerv3.md, and gather its numbers, from a trained run and the code itself.

    python docs/make_pictures.py RUN [--out docs/pictures]

The run needs an observation of numbers and checkpoints that hold its replay, as every run of `train` has.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from opened_run import Look, look_at, other_numbers, update_gate
from PIL import Image
from tensordict import TensorDict
from torch import nn

from dreamer_torchrl import LaProp, Size
from dreamer_torchrl.config.checks import ConfigError
from dreamer_torchrl.modules import RSSM, BlockLinear, Continuous, symexp, symlog
from dreamer_torchrl.modules.decoder import reconstruction_key
from dreamer_torchrl.modules.distributions import two_hot_bins, two_hot_neighbours
from dreamer_torchrl.modules.rollout import imagine
from dreamer_torchrl.views.plots import PALETTE, REFERENCE, new_figure, plain, save_figure

SEEN, DREAMS, SHOWN = 5, 8, 45  # steps seen, dreams of the rest, steps in the picture
BLUE, ORANGE, GREEN = PALETTE[:3]

NAMES = {"Acrobot-v1": {4: "speed of the first joint", 5: "speed of the second joint"}}
"""Of an environment's numbers that the page speaks of."""

Drawn = tuple[Figure, dict[str, str]]
"""A picture, and the numbers that the page says about it."""


def side_by_side(count: int, width: float = 6.6, height: float = 2.4) -> tuple[Figure, list[Axes]]:
    """A low figure with so many axes in a row."""
    figure = new_figure(width, height)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def draw_dream(look: Look) -> Drawn:
    """A few steps are seen, the rest is dreamt with the actions that were really taken."""
    agent, steps = look.run.agent, look.episode[:SHOWN]
    key = next(key for key, space in agent.spaces.items() if isinstance(space, Continuous))
    action = agent.action_space.flatten({name: steps[name] for name in agent.action_space.keys})  # [T, A]
    encoded = agent.encoder(*[steps[name] for name in agent.encoder.in_keys])  # [T, E]
    belief, state = agent.rssm.initial(DREAMS)
    last = min(SEEN, len(steps) - 1) - 1
    for t in range(last + 1):
        before = action[t - 1] if t else torch.zeros_like(action[0])
        rows = [x.expand(DREAMS, -1) for x in (encoded[t], before, torch.tensor([t == 0]))]
        belief, state, _ = agent.rssm(*rows, belief, state)
    given = action[last:-1].expand(DREAMS, -1, -1)  # [N, H, A]
    features, _ = imagine(agent.rssm, belief, state, given, torch.rand(*given.shape[:2], agent.rssm.stochastic))
    dreamt = agent.decoder.tensordict_module()(TensorDict({"features": features}, features.shape[:2]))
    values = symexp(dreamt[reconstruction_key(key)])  # [N, H + 1, size]
    truth = agent.spaces[key].flatten(steps[key])  # [T, size]
    shown = truth.var(0).argsort(descending=True)[:2].sort().values.tolist()
    names = NAMES.get(look.run.settings.env.options.get("id"), {})
    figure, plots = side_by_side(len(shown))
    for axes, index in zip(plots, shown, strict=True):
        for row, line in enumerate(values[..., index]):
            label = None if row else f"{DREAMS} dreams"
            axes.plot(range(last, len(steps)), line, color=ORANGE, linewidth=0.8, alpha=0.8, label=label)
        axes.plot(truth[:, index], color=BLUE, linewidth=1.6, label="what happened")
        axes.axvline(last, color=REFERENCE, linestyle="--", linewidth=1.2)
        plain(axes, "step of the episode", names.get(index, f"number {index} of {key}"))
    figure.suptitle(f"dashed line: {last + 1} steps seen, then dreamt", fontsize=9)
    plots[-1].legend(fontsize=7, frameon=False)
    error = (values[:, :, shown] - truth[last:, shown]).abs().mean((0, 2))  # [H + 1]
    ahead = min(5, len(error) - 1)
    return figure, {f"dream_error_{ahead}_steps_ahead": f"{error[ahead]:.2f}", "dream_steps": str(len(error) - 1)}


def draw_gate(look: Look) -> Drawn:
    """How much of the belief a step replaces: in an untrained recurrence and in the trained one."""
    rssm, size = look.run.agent.rssm, look.run.settings.size
    fresh = RSSM(rssm.core.action_in.linear.in_features, 1, size.belief, size.hidden, *_state(rssm), size.blocks)
    action = look.data["previous_action"].flatten(0, 1)
    figure, (axes,) = side_by_side(1, 5.0)
    numbers = {}
    for core, name, color in ((fresh.core, "untrained", BLUE), (rssm.core, "trained", ORANGE)):
        update = update_gate(core, look.data["belief"].flatten(0, 1), look.data["state"].flatten(0, 1), action)
        numbers[f"gate_{name}"] = f"{update.mean():.2f}"
        label = f"{name}, mean {update.mean():.2f}"
        axes.hist(
            update.flatten(), 60, range=(0, 1), density=True, histtype="step", color=color, label=label, linewidth=1.5
        )
    plain(axes, "update gate: share of the belief that a step replaces", "density")
    axes.legend(fontsize=8, frameon=False)
    large = Size.named("size12m")
    dense, blocks = large.belief * 3 * large.belief, BlockLinear(large.belief, 3 * large.belief, large.blocks)
    numbers |= {"gates_dense": f"{dense:,}", "gates_blocks": f"{blocks.weight.numel():,}"}
    return figure, numbers


def _state(rssm: RSSM) -> tuple[int, int]:
    return rssm.stochastic, rssm.classes


def draw_free_nats(look: Look) -> Drawn:
    """How surprised the model is by each step, and the loss that is left when a nat is free."""
    nats = look.raw_kl(look.data).flatten()
    figure, (left, right) = side_by_side(2)
    left.hist(nats.clamp_max(8).numpy(), 50, color=BLUE)
    left.axvline(look.run.settings.learner.free_nats, color=ORANGE, linewidth=1.5)
    plain(left, "KL of one step in nats (8 and more at 8)", "steps", "left of the line: no gradient")
    right.plot(*look.curve("train/loss_dynamics"), color=BLUE, linewidth=1)
    right.axhline(look.run.settings.learner.free_nats, color=ORANGE, linewidth=1.5)
    right.set_ylim(0)
    plain(right, "environment steps", "dynamics loss (nats)")
    return figure, {
        "kl_mean": f"{nats.mean():.2f}",
        "kl_free": f"{100 * (nats < look.run.settings.learner.free_nats).float().mean():.0f}%",
    }


def draw_context(look: Look) -> Drawn:
    """Surprise along the trained steps of a sequence: begun from the stored latent, and begun from nothing."""
    cold = look.batch.clone()
    cold["is_init"][:, look.learner.hyperparameters.context] = True
    warm_kl = look.raw_kl(look.data).mean(0)
    cold_kl = look.raw_kl(look.learner.world_model_loss(cold)[1]).mean(0)
    figure, (axes,) = side_by_side(1, 5.0)
    place = range(1, len(warm_kl) + 1)
    axes.plot(place, cold_kl, color=ORANGE, marker="o", markersize=3, label="from nothing")
    axes.plot(place, warm_kl, color=BLUE, marker="o", markersize=3, label="from the stored latent")
    axes.set_ylim(0)
    plain(axes, "step of the sequence", "mean KL in nats")
    axes.legend(fontsize=8, frameon=False)
    return figure, {"context_stored": f"{warm_kl[0]:.1f}", "context_nothing": f"{cold_kl[0]:.1f}"}


def draw_symlog(look: Look) -> Drawn:
    """Symlog, and the critic's bins with what it says of one step and the two-hot target beside it."""
    figure, (left, right) = side_by_side(2)
    x = torch.linspace(-100, 100, 401)
    left.plot(x, x, color=REFERENCE, linestyle="--", linewidth=1, label="x")
    left.plot(x, symlog(x), color=BLUE, label="symlog x")
    left.set_ylim(-8, 8)
    plain(left, "x")
    left.legend(fontsize=8, frameon=False)
    logits, value = look.run.agent.value(look.data["features"].flatten(0, 1))
    row = int((value.squeeze(1) - value.median()).abs().argmin())
    bins, target = two_hot_bins(), torch.tensor(round(float(value[row]), 1))
    below, above, weight = two_hot_neighbours(target, bins)
    near = range(max(0, int(below) - 8), min(255, int(above) + 9))
    right.bar(
        [f"{bins[i]:.4g}" for i in near],
        logits[row].softmax(-1)[list(near)].numpy(),
        color=BLUE,
        label="the critic says",
    )
    places = [int(below) - near.start, int(above) - near.start]
    right.plot(places, [1 - weight, weight], "v", color=ORANGE, label=f"two-hot target {target:.4g}")
    right.vlines(places, 0, [1 - weight, weight], color=ORANGE, linewidth=1)
    plain(right, "value of the bin", "probability")
    right.tick_params(axis="x", rotation=90, labelsize=6)
    right.legend(fontsize=7, frameon=False)
    return figure, {
        "two_hot_target": f"{target:.4g}",
        "two_hot_bins": f"{bins[below]:.2f} and {bins[above]:.2f}",
        "two_hot_weights": f"{1 - weight:.2f} and {weight:.2f}",
    }


def draw_returns(look: Look) -> Drawn:
    """The range in which the return normalizer believes most imagined returns to lie."""
    figure, (axes,) = side_by_side(1, 5.0)
    (steps, low), (_, high) = look.curve("train/return_low"), look.curve("train/return_high")
    axes.fill_between(steps, low, high, color=BLUE, alpha=0.2)
    axes.plot(steps, high, color=BLUE, label="95th percentile")
    axes.plot(steps, low, color=BLUE, linestyle="--", label="5th percentile")
    axes.plot(*look.curve("train/imagined_value"), color=ORANGE, linewidth=0.8, label="mean value")
    plain(axes, "environment steps", "imagined return")
    axes.legend(fontsize=8, frameon=False)
    scale = look.curve("train/return_scale")[1]
    return figure, {"return_scale_first": f"{scale[0]:.1f}", "return_scale_last": f"{scale[-1]:.1f}"}


def draw_entropy(look: Look) -> Drawn:
    """From trying everything to knowing what to do."""
    figure, (left, right) = side_by_side(2)
    steps, entropy = look.curve("train/entropy")
    left.plot(steps, entropy, color=BLUE, linewidth=1)
    plain(left, "environment steps", "entropy of the policy in nats")
    right.plot(*look.curve("episode/return"), ".", color=REFERENCE, markersize=2, label="training episode")
    right.plot(*look.curve("eval/return"), color=ORANGE, marker="o", markersize=3, label="evaluation")
    plain(right, "environment steps", "return")
    right.legend(fontsize=7, frameon=False)
    return figure, {"entropy_first": f"{entropy[0]:.2f}", "entropy_last": f"{entropy[-1]:.2f}"}


def draw_value(look: Look) -> Drawn:
    """The critic's word along one recorded episode beside what really came."""
    agent, steps = look.run.agent, look.episode
    batch = steps.clone().unsqueeze(0)
    belief, state = agent.rssm.initial(1, len(steps))
    batch["belief"], batch["state"] = belief, state
    loss = look.learner.world_model_loss
    nothing = batch[:, :1].expand(1, look.learner.hyperparameters.context)  # the episode begins after it
    padded = torch.cat([nothing, batch], 1)
    value = agent.value(loss(padded)[1]["features"])[1].squeeze()
    discount = 1 - 1 / look.run.settings.learner.horizon
    reward, truth = steps["reward"].squeeze(1).tolist(), [0.0]
    for paid in reward[:0:-1]:
        truth.insert(0, paid + discount * truth[0])
    figure, (axes,) = side_by_side(1, 5.0)
    axes.plot(truth, color=BLUE, label="discounted rewards that followed")
    axes.plot(value, color=ORANGE, label="the critic's value")
    plain(axes, "step of the episode", "value")
    axes.legend(fontsize=8, frameon=False)
    error = (value - torch.tensor(truth)).abs().mean()
    return figure, {"value_error": f"{error:.1f}", "value_range": f"{max(truth) - min(truth):.0f}"}


def draw_laprop(look: Look) -> Drawn:
    """One gradient in 400 is a hundred times too large: how far a parameter tensor of norm 1 has gone on."""
    figure, (left, right) = side_by_side(2)
    rate, numbers = 1e-4, {}
    for name, color in (("Adam", REFERENCE), ("LaProp", ORANGE), ("LaProp, clipped", BLUE)):
        weight = nn.Parameter(torch.full((64,), 1 / 8))
        clip = 0.3 if name.endswith("clipped") else math.inf
        laprop = LaProp([weight], lr=rate, clip=clip, warmup=0)
        optimizer = torch.optim.Adam([weight], lr=rate, eps=1e-20) if name == "Adam" else laprop
        moved = [0.0]
        for step in range(400):
            weight.grad = torch.full((64,), 0.1 / 8 * (100 if step == 100 else 1))  # of norm 0.1, once of norm 10
            optimizer.step()
            moved.append(float((1 / 8 - weight.detach()).mean()) / rate)
        speed = [b - a for a, b in pairwise(moved)]
        left.plot(moved, color=color, label=name)
        right.plot(range(90, 140), speed[90:140], color=color, label=name)
        numbers[f"speed_{name}"] = f"{speed[-1]:.2f}"
        numbers[f"jump_{name}"] = f"{max(speed):.1f}"
    plain(left, "update", "distance travelled", "in learning rates")
    plain(right, "update", "step", "in learning rates, around the outlier")
    left.legend(fontsize=8, frameon=False)
    return figure, numbers


PICTURES = {
    "dream": draw_dream,
    "gate": draw_gate,
    "free_nats": draw_free_nats,
    "context": draw_context,
    "symlog": draw_symlog,
    "returns": draw_returns,
    "entropy": draw_entropy,
    "value": draw_value,
    "laprop": draw_laprop,
}


@torch.no_grad()
def make_pictures(run: Path, out: Path) -> dict[str, str]:
    """Draw all pictures as PNG into ``out``, and the numbers beside them as ``numbers.json``."""
    torch.manual_seed(0)
    look = look_at(run)
    numbers = {"steps": f"{look.run.saved.step:,}", **other_numbers(look)}
    for name, draw in PICTURES.items():
        figure, more = draw(look)
        (file,) = save_figure(figure, out / name, ["png"])
        Image.open(file).convert("RGB").quantize(64).save(file, optimize=True)  # a third of the bytes
        numbers |= more
    (out / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")
    return numbers


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code is 2 where the folder is no run that can be drawn."""
    parser = argparse.ArgumentParser(description="Draw the pictures of dreamerv3.md from a run.")
    parser.add_argument("run", type=Path, help="the folder that training printed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "pictures")
    words = parser.parse_args(arguments)
    try:
        numbers = make_pictures(words.run, words.out)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(numbers, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
