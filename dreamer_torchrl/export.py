"""``python -m dreamer_torchrl.export RUN``: write the policy of a run to one file that torch alone can load."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dreamer_torchrl.training.loading import NO_CHECKPOINT, LoadedRun, open_run, play

if TYPE_CHECKING:
    from tensordict import TensorDictBase

TOLERANCE = 1e-5  # differences above it are no rounding
STEPS = 64  # of each environment, recorded ones, on which a file is compared with its original


def main(arguments: Sequence[str] | None = None) -> int:
    """Export the policy of a run; 0 if it does the same as the original on recorded observations."""
    parser = argparse.ArgumentParser(prog="python -m dreamer_torchrl.export", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run, or pretrained:NAME")
    parser.add_argument("--checkpoint", help="which one, rather than the latest")
    parser.add_argument("--output", type=Path, help="the file, RUN/policy.pt2 if left out")
    parser.add_argument("--sample", action="store_true", help="draw actions, from given noise, instead of modes")
    options = parser.parse_args(arguments)
    run = open_run(parser, options.run, options.checkpoint)
    output = options.output or run.home / "policy.pt2"

    from dreamer_torchrl.agents.exporting import compare, export_policy  # need torch, which takes seconds
    from dreamer_torchrl.checkpoint.manifest import DamagedFile

    try:
        steps = run.recorded(STEPS) if run.saved else episode(run)
        path = export_policy(run.agent, output, options.sample, run.action_bounds)
    except DamagedFile as error:
        print(f"The replay of {options.run} is damaged: {error}.", file=sys.stderr)
        return NO_CHECKPOINT
    except (OSError, ValueError) as error:
        parser.error(str(error))
    difference = compare(run.agent, path, steps, run.action_bounds)
    print(f"{path}, {path.stat().st_size / 1e6:.1f} MB")
    print(f"Largest difference to the original over {steps.numel():,} recorded steps: {difference}.")
    return 0 if difference.largest <= TOLERANCE else 1


def episode(run: LoadedRun) -> TensorDictBase:
    """Steps ``[T, 1]`` of a new episode, where no replay holds any."""
    settings = replace(run.settings, eval=replace(run.settings.eval, episodes=1))
    return play(settings, run.agent, record=STEPS).steps.unsqueeze(1)


if __name__ == "__main__":
    sys.exit(main())
