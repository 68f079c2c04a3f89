"""``python -m dreamer_torchrl.export RUN``: write the policy of a run to one file that torch alone can load."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dreamer_torchrl.training.loading import open_run

TOLERANCE = 1e-5  # differences above it are no rounding


def main(arguments: Sequence[str] | None = None) -> int:
    """Export the policy of a run; 0 if it does the same as the original on random observations."""
    parser = argparse.ArgumentParser(prog="python -m dreamer_torchrl.export", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run, or pretrained:NAME")
    parser.add_argument("--checkpoint", help="which one, rather than the latest")
    parser.add_argument("--output", type=Path, help="the file, RUN/policy.pt2 if left out")
    parser.add_argument("--sample", action="store_true", help="draw actions, from given noise, instead of modes")
    options = parser.parse_args(arguments)
    run = open_run(parser, options.run, options.checkpoint)
    output = options.output or run.home / "policy.pt2"

    from dreamer_torchrl.agents.exporting import compare, export_policy  # need torch, which takes seconds

    try:
        path = export_policy(run.agent, output, options.sample, run.action_bounds)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    difference = compare(run.agent, path, run.action_bounds)
    print(f"{path}, {path.stat().st_size / 1e6:.1f} MB, of step {run.step:,}")
    print(f"Largest difference to the original on random observations: {difference:.1e}.")
    return 0 if difference <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
