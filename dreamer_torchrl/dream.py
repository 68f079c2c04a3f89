"""``python -m dreamer_torchrl.dream RUN``: show what a run's world model believes, as a video and a picture."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dreamer_torchrl.training.loading import FAILED, open_run, play
from dreamer_torchrl.views.report_page import IMAGINED

if TYPE_CHECKING:
    from dreamer_torchrl.views.imagination import PredictionError


def main(arguments: Sequence[str] | None = None) -> int:
    """Play an episode, dream it, write the pictures, and print how far the dream is from what happened."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    complaint = impossible(options)
    if complaint:
        parser.error(complaint)

    run = open_run(parser, options.run, options.checkpoint)

    from dreamer_torchrl.training.build import choose_device, dream_title, seed_for
    from dreamer_torchrl.views.imagination import context_for, dream, imagined, prediction_error
    from dreamer_torchrl.views.imagination_pictures import write_dream  # these need torch, which takes seconds

    agent = run.agent.to(choose_device(run.settings.device))
    seed = run.settings.seed if options.seed is None else options.seed
    settings = replace(run.settings, seed=seed, eval=replace(run.settings.eval, episodes=1))
    episode = play(settings, agent, record=options.start + options.steps)
    steps, left = episode.steps, len(episode.steps) - options.start
    context = options.context or context_for(max(left, 1))
    if left <= context:
        parser.error(
            f"The episode has {episode.lengths[0] + 1} steps: after --start {options.start} and a context of {context} "
            "nothing is left to dream. Give less, or another --seed."
        )
    own, title = seed_for(seed, "dream"), dream_title(settings, run.saved.step)
    path = options.output or options.run / "dreams" / f"{run.saved.path.name}.mp4"
    print(f"Step {run.saved.step:,}: an episode of {episode.lengths[0]} actions with return {episode.returns[0]:.2f}.")
    plural = "s" if context > 1 else ""
    print(f"Sees {context} step{plural} from step {options.start} on, then dreams {left - context}.")
    print(table(prediction_error(agent, steps, context, seed=own)))
    try:
        files = [*write_dream(dream(agent, steps, context, options.start, own), path, title)]
        if options.imagine:
            free = imagined(agent, steps, options.imagine, context, options.start, own)
            files += write_dream(free, path.with_name(f"{path.stem}{IMAGINED}.mp4"), title)
    except OSError as error:
        print(f"Not written: {error}. Give another --output.", file=sys.stderr)
        return FAILED
    for file in files:
        print(f"Written to {file}.")
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The words that the command takes."""
    parser = argparse.ArgumentParser(prog="python -m dreamer_torchrl.dream", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--steps", type=int, default=64, help="how many at most, the context included (64)")
    parser.add_argument("--context", type=int, help="steps seen before the dream (5, fewer in a very short episode)")
    parser.add_argument("--start", type=int, default=0, help="the first of these steps in its episode (0)")
    parser.add_argument("--imagine", type=int, metavar="N", help="film N steps without environment, too")
    parser.add_argument("--checkpoint", help="which one, the newest if left out")
    parser.add_argument("--seed", type=int, help="of the episode and the dream, the run's own if left out")
    parser.add_argument("--output", type=Path, help="the .mp4 file, RUN/dreams/CHECKPOINT.mp4 if left out")
    return parser


def impossible(options: argparse.Namespace) -> str | None:
    """What is wrong with the words, if anything is."""
    least = (("--steps", 2), ("--context", 1), ("--start", 0), ("--imagine", 1), ("--seed", 0))
    for word, limit in least:
        value = getattr(options, word[2:])
        if value is not None and value < limit:
            return f"{word} {value} is impossible: give at least {limit}."
    if options.context is not None and options.context >= options.steps:
        return f"--context {options.context} leaves nothing to dream of {options.steps} steps: give more --steps."
    if options.output is not None and options.output.suffix != ".mp4":
        return f"--output {options.output} is no video: end its name with .mp4."
    return None


def table(error: PredictionError) -> str:
    """Errors of the model, and in brackets those of a guess that nothing changes, by how far ahead."""
    if not error.horizons:
        return "The episode is too short to measure how well it is foreseen."
    heads = [f"{ahead} step{'s' if ahead > 1 else ''} ahead" for ahead in error.horizons]
    width = max(map(len, error.model))
    lines = ["Mean error from each step on (in brackets: if nothing changed):"]
    lines.append(" " * width + "".join(f"{head:>20}" for head in heads))
    for name, errors in error.model.items():
        cells = [f"{own:.4f} ({none:.4f})" for own, none in zip(errors, error.unchanged[name], strict=True)]
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
