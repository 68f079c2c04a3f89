"""``python -m dreamer_torchrl.evaluate RUN``: play episodes with what a run has learned, or with a pretrained agent."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dreamer_torchrl.limits import at_least
from dreamer_torchrl.training.loading import FAILED, open_run, play


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dreamer_torchrl.evaluate", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run, or pretrained:NAME")
    parser.add_argument("--episodes", type=at_least(1), help="how many, as in training if left out")
    parser.add_argument("--checkpoint", help="which one, the newest if left out")
    parser.add_argument("--seed", type=int, help="of the episodes, those of training's evaluations if left out")
    parser.add_argument("--deterministic", action="store_true", help="the most likely actions instead of drawn ones")
    parser.add_argument("--video", action="store_true", help="film the first episode, up to 2,000 steps of it")
    parser.add_argument("--output", type=Path, help="the JSON file (RUN/evaluation.json; for a pretrained agent none)")
    options = parser.parse_args(arguments)
    run = open_run(parser, options.run, options.checkpoint)

    from dreamer_torchrl.record.video import write_video
    from dreamer_torchrl.training.build import choose_device  # needs torch, which takes seconds

    agent, given = run.agent.to(choose_device(run.settings.device)), run.settings.eval
    deterministic = given.deterministic or options.deterministic
    evaluated = replace(given, episodes=options.episodes or given.episodes, deterministic=deterministic)
    seed = run.settings.seed if options.seed is None else options.seed
    evaluation = play(replace(run.settings, seed=seed, eval=evaluated), agent, options.video)
    for number, (total_reward, length) in enumerate(zip(evaluation.returns, evaluation.lengths, strict=True)):
        print(f"episode {number:>3}  return {total_reward:>10.2f}  length {length:>6}")
    print(f"step {run.step:,}: mean return {evaluation.mean:.2f} +- {evaluation.deviation:.2f}")
    result = {"step": run.step, "checkpoint": run.name, "seed": seed, "deterministic": deterministic}
    result |= {name: getattr(evaluation, name) for name in ("mean", "deviation", "returns", "lengths")}
    output = options.output or (run.path / "evaluation.json" if run.saved else None)
    try:
        if output:
            output.write_text(json.dumps(result, indent=1) + "\n")
            print(f"Written to {output}.")
        if evaluation.frames:
            path = run.home / "videos" / f"{run.name}-evaluation.mp4"
            print(f"Filmed: {write_video(path, evaluation.frames, fps=30)}.")
    except OSError as error:
        print(f"Not written: {error}. Give another --output.", file=sys.stderr)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
