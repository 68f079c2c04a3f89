"""``python -m dreamer_torchrl.dream RUN``: open-loop prediction of an episode by a run's world model, as a video."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dreamer_torchrl.limits import at_least
from dreamer_torchrl.training.loading import FAILED, open_run, play
from dreamer_torchrl.views.report_page import IMAGINED

if TYPE_CHECKING:
    from dreamer_torchrl.views.imagination import PredictionError


def main(arguments: Sequence[str] | None = None) -> int:
    """Play an episode, predict it, write the video, and print how far the prediction is from what happened."""
    parser = argparse.ArgumentParser(prog="python -m dreamer_torchrl.dream", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run, or pretrained:NAME")
    parser.add_argument("--steps", type=at_least(2), default=64, help="how many at most, the context included (64)")
    parser.add_argument("--context", type=at_least(1), help="steps that the model sees (5, fewer of a short episode)")
    parser.add_argument("--start", type=at_least(0), default=0, help="the first of these steps in its episode (0)")
    parser.add_argument("--imagine", type=at_least(1), metavar="N", help="also imagine N steps with the policy")
    parser.add_argument("--checkpoint", help="which one, the newest if left out")
    parser.add_argument("--seed", type=at_least(0), help="of the episode and the prediction, the run's own if left out")
    parser.add_argument("--output", type=Path, help="the .mp4 file, RUN/dreams/CHECKPOINT.mp4 if left out")
    options = parser.parse_args(arguments)
    if (options.context or 0) >= options.steps:
        parser.error(f"--context {options.context} leaves nothing to predict of --steps {options.steps}: give more.")
    if options.output and options.output.suffix != ".mp4":
        parser.error(f"--output {options.output} is no video: end its name with .mp4.")
    run = open_run(parser, options.run, options.checkpoint)

    from dreamer_torchrl.training.build import choose_device, dream_title, seed_for  # these need torch
    from dreamer_torchrl.views.imagination import context_for, open_loop, prediction_error
    from dreamer_torchrl.views.imagination_video import write_open_loop

    agent = run.agent.to(choose_device(run.settings.device))
    seed = run.settings.seed if options.seed is None else options.seed
    settings = replace(run.settings, seed=seed, eval=replace(run.settings.eval, episodes=1))
    episode = play(settings, agent, record=options.start + options.steps)
    steps, left = episode.steps, len(episode.steps) - options.start
    context = options.context or context_for(max(left, 1))
    if left <= context:
        told = f"The episode has {episode.lengths[0] + 1} steps: after --start {options.start} and a context of"
        parser.error(f"{told} {context} nothing is left to predict. Give less, or another --seed.")
    own, title = seed_for(seed, "dream"), dream_title(settings, run.step)
    path = options.output or run.home / "dreams" / f"{run.name}.mp4"
    print(f"Step {run.step:,}: an episode of {episode.lengths[0]} actions with return {episode.returns[0]:.2f}.")
    print(f"Sees {context} step{'s' * (context > 1)} from step {options.start} on, then predicts {left - context}.")
    print(table(prediction_error(agent, steps, context, seed=own)))
    try:
        files = [*write_open_loop(open_loop(agent, steps, context, options.start, own), path, title)]
        if options.imagine:
            free = open_loop(agent, steps, context, options.start, own, options.imagine)
            files += write_open_loop(free, path.with_name(f"{path.stem}{IMAGINED}.mp4"), title)
    except OSError as error:
        print(f"Not written: {error}. Give another --output.", file=sys.stderr)
        return FAILED
    for file in files:
        print(f"Written to {file}.")
    return 0


def table(error: PredictionError) -> str:
    """Errors of the model, and in brackets those of predicting that nothing changes, by how far ahead."""
    if not error.horizons:
        return "The episode is too short to measure the prediction error."
    width = max(map(len, error.model))
    heads = "".join(f"{f'{ahead} step' + 's' * (ahead > 1) + ' ahead':>20}" for ahead in error.horizons)
    lines = ["Mean error from each step on (in brackets: if nothing changed):", " " * width + heads]
    for name, errors in error.model.items():
        pairs = zip(errors, error.unchanged[name], strict=True)
        lines.append(f"{name:<{width}}" + "".join(f"{f'{own:.4f} ({none:.4f})':>20}" for own, none in pairs))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
